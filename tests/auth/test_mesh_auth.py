"""The auth service on a real mesh."""

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from gaggle.auth.v1 import auth_service_pb2 as api
from gaggle.auth.v1 import auth_service_pb2_grpc
from tests.conditions import eventually
from tests.mesh_fixture import Mesh

pytestmark = pytest.mark.mesh
_WITHIN = 30.0


@pytest.fixture
async def auth(mesh: Mesh) -> AsyncIterator[Any]:
    """The auth service's stub, on its own port, once it takes calls."""
    async with mesh.channel("auth") as channel:
        stub: Any = auth_service_pb2_grpc.AuthServiceStub(channel)

        async def answers() -> bool:
            try:
                await stub.GetSession(api.GetSessionRequest(), metadata=mesh.metadata("probe"))
            except grpc.aio.AioRpcError:
                return False
            return True

        await eventually(answers, within=_WITHIN, what="the auth service taking calls")
        yield stub


async def test_an_issued_token_is_good_in_the_mesh(mesh: Mesh, auth: Any, user: str) -> None:
    """A token that IssueToken gave is taken by the services, directly and through another one's sidecar."""
    admin = mesh.metadata("root", roles=["admin"])
    token = (await auth.IssueToken(api.IssueTokenRequest(user_id=user), metadata=admin)).token
    metadata = (("authorization", f"Bearer {token}"),)
    direct = await auth.GetSession(api.GetSessionRequest(), metadata=metadata)
    assert direct.session.user_id == user
    async with mesh.sidecar("conversation") as channel:
        proxied: Any = auth_service_pb2_grpc.AuthServiceStub(channel)
        through = (*metadata, ("dapr-app-id", mesh.service("auth").app_id))
        assert (await proxied.GetSession(api.GetSessionRequest(), metadata=through)).session == direct.session


async def test_keys_of_the_mesh(auth: Any) -> None:
    """GetJwks names the issuer's key and every service's, and none of their private halves."""
    keys = json.loads((await auth.GetJwks(api.GetJwksRequest())).jwks_json)["keys"]
    assert {"issuer", "conversation", "audit", "auth"} <= {key["kid"] for key in keys}
    assert not any("d" in key for key in keys)
