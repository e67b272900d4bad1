"""The services that the tools call, for the user of each call."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cli.conversations.client import Client, Target, connect
from cli.errors import CommandError, NotRunning
from gaggle.notification.v1.notification_service_pb2_grpc import NotificationServiceStub
from gaggle.reminder.v1.reminder_service_pb2_grpc import ReminderServiceStub
from gaggle.task.v1.task_service_pb2_grpc import TaskServiceStub

_STUBS = {
    "task": TaskServiceStub,
    "reminder": ReminderServiceStub,
    "notification": NotificationServiceStub,
}

call_token: ContextVar[str] = ContextVar("call_token", default="")
"""The token that came with the call being served."""


class NoTokenError(CommandError):
    """The call names no user, and it may not be guessed."""


@dataclass(frozen=True)
class Where:
    """How the services are found, and in whose name they are called."""

    data: Path | None = None
    """The local mesh's data directory; None: the usual one."""

    sidecar: str = ""
    """host:port of any sidecar of the mesh; empty: the services' own ports, as mesh.json has them."""

    suffix: str = ""
    """What the mesh's app ids end in."""

    user: str = ""
    token: str = ""
    on_behalf: bool = False
    """Each call brings its user's token; there is no other one."""


class Peers:
    """The task, reminder and notification services."""

    def __init__(self, clients: dict[str, Client]) -> None:
        """`clients` by service; one that the mesh runs without is not among them."""
        self._clients = clients
        self._stubs: dict[str, Any] = {name: _STUBS[name](client.channel) for name, client in clients.items()}

    def has(self, service: str) -> bool:
        """Whether the mesh has this one."""
        return service in self._clients

    async def ask(self, service: str, method: str, request: Any, answer: type[Any]) -> Any:
        """Calls a method until it answers. Raises ServiceRefusedError, UnreachableError, NoTokenError."""
        if service not in self._clients:
            raise NotRunning(f"the mesh runs without the {service} service")
        return await self._clients[service].call(getattr(self._stubs[service], method), request, answer)


@asynccontextmanager
async def open_peers(where: Where, timeout_seconds: float) -> AsyncIterator[Peers]:
    """Opens the ways to them. Raises NotRunning where there is no mesh, CommandError."""
    async with AsyncExitStack() as held:
        clients: dict[str, Client] = {}
        for name in _STUBS:
            try:
                target = _target(where, name)
            except NotRunning:
                if name == "task":
                    raise
                continue
            clients[name] = await held.enter_async_context(connect(target, timeout_seconds=timeout_seconds))
        yield Peers(clients)


def _target(where: Where, service: str) -> Target:
    app_id = f"{service}{where.suffix}" if where.sidecar else ""
    if not where.on_behalf:
        return Target.find(
            data=where.data,
            address=where.sidecar,
            app_id=app_id,
            user=where.user,
            token=where.token,
            service=service,
        )
    # `find` signs no token that it is given; what it is given here is never sent.
    found = Target.find(data=where.data, address=where.sidecar, app_id=app_id, token="-", service=service)  # noqa: S106
    return replace(found, token=_token_of_the_call, user="")


def _token_of_the_call() -> str:
    token = call_token.get()
    if not token:
        raise NoTokenError("the call brings no token of a user, and this server acts for nobody else")
    return token
