"""The auth service's methods."""

import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.auth.v1 import auth_service_pb2 as api
from gaggle.auth.v1 import auth_service_pb2_grpc as api_grpc
from services.auth.domain import public_keys, token_request
from services.runtime.access import ADMIN, PUBLIC, Access, user_or
from services.runtime.errors import UnavailableError
from services.runtime.identity import TokenSigner, current_caller, since_boot

# A service may ask what the mesh believes of its token as anyone may: the answer is the token's own words.
_SERVICES = ("agent", "audit", "conversation", "extension", "notification", "recipe", "recurrence", "reminder", "sync",
             "task")  # fmt: skip
AUTH_ACCESS: dict[str, Access] = {
    "GetSession": user_or(*_SERVICES),
    "IssueToken": ADMIN,
    "GetJwks": PUBLIC,
}

SecretSource = Callable[[str], Awaitable[str]]


class AuthServicer(api_grpc.AuthServiceServicer):
    """Serves gaggle.auth.v1.AuthService."""

    def __init__(self, secret: SecretSource, *, issuer: str, audience: str, default_ttl_seconds: int) -> None:
        """`secret` reads a secret of one value by its name."""
        self._secret = secret
        self._issuer = issuer
        self._audience = audience
        self._default_ttl = default_ttl_seconds

    async def GetSession(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        caller = current_caller()
        session = api.Session(
            user_id=caller.user_id,
            roles=sorted(caller.roles),
            issuer=caller.issuer,
            issue_time=Timestamp(seconds=int(caller.issued_at)),
            expire_time=Timestamp(seconds=int(caller.expires_at)),
            service=caller.service,
        )
        if caller.ask_again_at != math.inf:
            session.fresh_for.FromMilliseconds(max(0, int((caller.ask_again_at - since_boot()) * 1000)))
        return api.GetSessionResponse(session=session)

    async def IssueToken(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        wanted = token_request(request, self._default_ttl)
        # Read at each call: a key that was exchanged in the secret store is used from then on.
        signer = TokenSigner(await self._secret("issuer-key"), issuer=self._issuer, audience=self._audience)
        now = Timestamp()
        now.GetCurrentTime()
        token = signer.sign(wanted.user_id, ttl_seconds=wanted.ttl_seconds, roles=wanted.roles)
        return api.IssueTokenResponse(token=token, expire_time=Timestamp(seconds=now.seconds + wanted.ttl_seconds))

    async def GetJwks(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        try:
            keys = json.loads(await self._secret("token-jwks"))
        except ValueError as error:
            raise UnavailableError("secret 'token-jwks'") from error
        return api.GetJwksResponse(jwks_json=json.dumps(public_keys(keys), separators=(",", ":")))
