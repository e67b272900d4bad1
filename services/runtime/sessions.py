"""Sessions of a better-auth server, as every service but auth learns of them: by asking the auth service."""

from gaggle.auth.v1 import auth_service_pb2 as api
from gaggle.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from services.runtime.identity import Session, SessionSource
from services.runtime.invocation import Peer
from services.runtime.sidecar import Sidecar

_SECONDS = 8.0


def sessions_of(sidecar: Sidecar, app_id: str) -> SessionSource:
    """Ask the auth service of that app id, in the session's own name."""
    auth = Peer(sidecar, app_id, AuthServiceStub)

    async def ask(token: str) -> Session:
        answer = await auth.ask("GetSession", api.GetSessionRequest(), token, timeout_seconds=_SECONDS)
        session = answer.session
        return Session(
            user_id=session.user_id,
            # What an admin may do here says the auth service's own setting; nothing else is known of roles.
            roles=frozenset(session.roles),
            issued_at=session.issue_time.seconds,
            expires_at=session.expire_time.seconds,
            fresh_seconds=session.fresh_for.ToTimedelta().total_seconds(),
        )

    return ask
