"""Starts the auth service."""

from gaggle.auth.v1 import auth_service_pb2
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
    return Wiring(
        servicers=[Exposed(auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"], servicer, AUTH_ACCESS)],
        keeps_state=False,
        has_events=False,
    )


if __name__ == "__main__":
    run("auth", AuthSettings, build)
