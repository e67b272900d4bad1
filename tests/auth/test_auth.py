"""The auth service in this process, behind the pipeline that every service has."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from joserfc.jwk import KeySet, OKPKey

from gaggle.auth.v1 import auth_service_pb2 as api
from gaggle.auth.v1 import auth_service_pb2_grpc
from services.auth.servicer import AUTH_ACCESS, AuthServicer
from services.runtime.identity import TokenSigner, Verifier
from services.runtime.pipeline import Pipeline
from services.runtime.service import Exposed, make_server
from services.runtime.telemetry import Metrics, Tracing

_DAY = 24 * 3600


@dataclass
class Auth:
    """A running auth service and the keys of its mesh."""

    stub: Any
    verifier: Verifier
    issuer: TokenSigner
    agent: TokenSigner

    def as_user(self, user_id: str, *roles: str) -> tuple[tuple[str, str], ...]:
        """Give the metadata of a user's call."""
        return (("authorization", f"Bearer {self.issuer.sign(user_id, ttl_seconds=600, roles=list(roles))}"),)


@pytest.fixture
async def auth() -> AsyncIterator[Auth]:
    """The service on a free port."""
    keys = [OKPKey.generate_key("Ed25519", {"kid": name, "use": "sig"}) for name in ("issuer", "agent")]
    secrets = {
        "issuer-key": json.dumps(keys[0].as_dict(private=True)),
        # As it must never be, so that the test shows that nothing private gets out even then.
        "token-jwks": json.dumps({"keys": [key.as_dict(private=True) for key in keys]}),
    }

    async def secret(name: str) -> str:
        return secrets[name]

    async def jwks() -> str:
        return json.dumps(KeySet([*keys]).as_dict(private=False))

    verifier = Verifier("gaggle", ("gaggle", jwks))
    pipeline = Pipeline(
        verifier=verifier,
        tracing=Tracing("auth", sample_ratio=0, otlp_endpoint=""),
        metrics=Metrics(),
        app_api_token="app",
        max_concurrent_calls=100,
        max_streams=100,
        call_timeout_seconds=10,
    )
    pipeline.ready = True
    servicer = AuthServicer(secret, issuer="gaggle", audience="gaggle", default_ttl_seconds=3600)
    service = api.DESCRIPTOR.services_by_name["AuthService"]
    server, _ = make_server(pipeline, [Exposed(service, servicer, AUTH_ACCESS)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    signers = [TokenSigner(json.dumps(key.as_dict(private=True)), issuer="gaggle", audience="gaggle") for key in keys]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Auth(auth_service_pb2_grpc.AuthServiceStub(channel), verifier, *signers)
    await server.stop(None)


@pytest.mark.parametrize(
    ("ttl_seconds", "lasts"),
    [
        pytest.param(None, 3600, id="an hour by default"),
        pytest.param(60, 60, id="as asked"),
        pytest.param(_DAY, _DAY, id="a day at most"),
    ],
)
async def test_an_admin_issues_tokens(auth: Auth, ttl_seconds: int | None, lasts: int) -> None:
    """A token that an admin had issued is the user's, with the roles given and no longer than asked."""
    ttl = None if ttl_seconds is None else Duration(seconds=ttl_seconds)
    request = api.IssueTokenRequest(user_id="ann", roles=["admin", "admin"], ttl=ttl)
    response = await auth.stub.IssueToken(request, metadata=auth.as_user("root", "admin"))
    caller = await auth.verifier.verify(f"Bearer {response.token}")
    assert (caller.user_id, sorted(caller.roles), caller.service, caller.issuer) == ("ann", ["admin"], "", "gaggle")
    assert caller.expires_at - caller.issued_at == lasts
    assert abs(response.expire_time.seconds - time.time() - lasts) < 5


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        pytest.param(api.IssueTokenRequest(), "user_id", id="no user"),
        pytest.param(api.IssueTokenRequest(user_id="ü" * 65), "user_id", id="long user"),
        pytest.param(api.IssueTokenRequest(user_id="a\0b"), "user_id", id="a user that no row can hold"),
        pytest.param(api.IssueTokenRequest(user_id="a", roles=["root"]), "roles", id="unknown role"),
        pytest.param(api.IssueTokenRequest(user_id="a", ttl=Duration(seconds=_DAY + 1)), "ttl", id="too long"),
        pytest.param(
            api.IssueTokenRequest(user_id="a", ttl=Duration(seconds=_DAY, nanos=1)), "ttl", id="a bit too long"
        ),
        pytest.param(api.IssueTokenRequest(user_id="a", ttl=Duration(nanos=1)), "ttl", id="too short"),
        pytest.param(api.IssueTokenRequest(user_id="a", ttl=Duration(seconds=-1)), "ttl", id="in the past"),
    ],
)
async def test_refuses(auth: Auth, request_: api.IssueTokenRequest, field: str) -> None:
    """A wrong request is INVALID_ARGUMENT and names its field."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await auth.stub.IssueToken(request_, metadata=auth.as_user("root", "admin"))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(caught.value)
    assert status is not None
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    assert [one.field for one in bad.field_violations] == [field]


async def test_users_and_services_issue_nothing(auth: Auth) -> None:
    """Only an admin's own client gets tokens issued, even where a service claims the role."""
    request = api.IssueTokenRequest(user_id="ann")
    posing = auth.agent.sign("ann", ttl_seconds=60, service="agent", roles=["admin"])
    for metadata in (auth.as_user("ann"), (("authorization", f"Bearer {posing}"),)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await auth.stub.IssueToken(request, metadata=metadata)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_a_session_is_what_the_token_says(auth: Auth) -> None:
    """GetSession tells user, roles, times and the service that acts; without a token it tells nothing."""
    session = (await auth.stub.GetSession(api.GetSessionRequest(), metadata=auth.as_user("ann", "admin"))).session
    assert (session.user_id, list(session.roles), session.issuer, session.service) == ("ann", ["admin"], "gaggle", "")
    assert session.expire_time.seconds - session.issue_time.seconds == 600
    token = auth.agent.sign("ann", ttl_seconds=60, service="agent")
    acted = await auth.stub.GetSession(api.GetSessionRequest(), metadata=(("authorization", f"Bearer {token}"),))
    assert (acted.session.user_id, acted.session.service) == ("ann", "agent")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await auth.stub.GetSession(api.GetSessionRequest())
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_public_keys_are_public_and_nothing_else(auth: Auth) -> None:
    """Anyone gets the keys that verify tokens; what signs never leaves, whatever the secret store holds."""
    response = await auth.stub.GetJwks(api.GetJwksRequest())
    keys = json.loads(response.jwks_json)["keys"]
    assert [key["kid"] for key in keys] == ["issuer", "agent"]
    assert all(set(key) == {"kty", "crv", "x", "kid", "use"} for key in keys)
