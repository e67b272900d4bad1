"""Who may call a method. The whole of it is a table beside each servicer: method name to Access."""

from dataclasses import dataclass

from gaggle.common.v1 import error_reason_pb2
from services.runtime.errors import PermissionDeniedError
from services.runtime.identity import Caller


@dataclass(frozen=True, slots=True)
class Access:
    """What a method asks of its caller."""

    public: bool = False
    """No token at all: health, reflection, public keys."""

    callback: bool = False
    """The own sidecar alone, by the app token, and not proxied."""

    untokened: bool = False
    """A callback that daprd makes without the app token: what it asks at its start. Still refused when proxied."""

    users: bool = True
    """A user's own client may call."""

    role: str = ""
    """The role that a user must have; empty: none."""

    services: frozenset[str] = frozenset()
    """The services that may call for a user."""

    def check(self, caller: Caller) -> None:
        """Let the caller pass. Raises PermissionDeniedError."""
        if caller.service:
            if caller.service not in self.services:
                raise PermissionDeniedError(
                    f"service {caller.service!r} may not call this method",
                    reason=error_reason_pb2.ERROR_REASON_SERVICE_NOT_ALLOWED,
                    metadata={"service": caller.service},
                )
        elif not self.users:
            raise PermissionDeniedError(
                "this method is for services of the mesh",
                reason=error_reason_pb2.ERROR_REASON_SERVICE_NOT_ALLOWED,
            )
        elif self.role and self.role not in caller.roles:
            raise PermissionDeniedError(f"this method needs the role {self.role!r}", metadata={"role": self.role})


USER = Access()
ADMIN = Access(role="admin")
PUBLIC = Access(public=True)
CALLBACK = Access(callback=True)
CALLBACK_AT_START = Access(callback=True, untokened=True)


def user_or(*services: str) -> Access:
    """Users, and these services for them."""
    return Access(services=frozenset(services))


def only(*services: str) -> Access:
    """These services alone."""
    return Access(users=False, services=frozenset(services))
