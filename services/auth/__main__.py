"""Starts the auth service."""

from gaggle.auth.v1 import auth_service_pb2
from services.auth.better_auth import BetterAuth
from services.auth.breaker import Breaker
from services.auth.servicer import AUTH_ACCESS, AuthServicer
from services.auth.settings import AuthSettings
from services.runtime.service import Exposed, Runtime, Wiring, run


def build(runtime: Runtime, settings: AuthSettings) -> Wiring:
    """Put the service together."""
    servicer = AuthServicer(
        runtime.secret,
        issuer=settings.token_issuer,
        audience=settings.token_audience,
        default_ttl_seconds=settings.token_ttl_seconds,
    )
    exposed = Exposed(auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"], servicer, AUTH_ACCESS)
    if not settings.better_auth:
        return Wiring(servicers=[exposed], keeps_state=False, has_events=False)
    better_auth = bridge(settings)
    runtime.verifier.sessions = better_auth.session
    return Wiring(servicers=[exposed], stop=[better_auth.close], keeps_state=False, has_events=False)


def bridge(settings: AuthSettings) -> BetterAuth:
    """Make the way to the better-auth server that the settings name."""
    through_sidecar = settings.use_dapr_invocation
    dependency = settings.dapr_app_id_auth if through_sidecar else settings.better_auth_url
    token = settings.dapr_api_token.get_secret_value() if through_sidecar else ""
    return BetterAuth(
        settings.better_auth_target,
        dependency=dependency,
        breaker=Breaker(
            dependency, failures=settings.better_auth_failures, pause_seconds=settings.better_auth_pause_seconds
        ),
        cookie=settings.better_auth_cookie,
        fresh_seconds=settings.session_cache_seconds,
        timeout_seconds=settings.better_auth_timeout_seconds,
        headers={"dapr-api-token": token} if token else {},
        admin_role=settings.better_auth_admin_role,
        direct=not through_sidecar,
    )


if __name__ == "__main__":
    run("auth", AuthSettings, build)
