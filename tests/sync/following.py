"""Clients of the sync service of a mesh."""

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf import json_format
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from gaggle.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from gaggle.common.v1 import event_pb2
from gaggle.sync.v1 import frame_pb2
from tests.conditions import eventually
from tests.mesh_fixture import Mesh

_BACK_SECONDS = 0.1


def socket_url(mesh: Mesh, replica: int = 0) -> str:
    """Where a replica's WebSocket is."""
    return f"ws://{mesh.service('sync').replicas[replica].http}/ws"


class Follower:
    """A client that stays on, whatever breaks: it resumes at the next of its replicas, behind what it saw last."""

    def __init__(self, mesh: Mesh, user: str, replicas: Sequence[int] = (0,), **wanted: Any) -> None:
        """`wanted`: more of the first frame."""
        self._mesh = mesh
        self._user = user
        self._urls = itertools.cycle([socket_url(mesh, one) for one in replicas])
        self._wanted = wanted
        self.began: int | None = None
        self.position: int | None = None
        self.events: list[event_pb2.Event] = []
        self.ends: list[str] = []
        """Why its sockets ended: a reason that it was told, or how the connection broke."""

    async def run(self) -> None:
        """Follow until cancelled."""
        for url in self._urls:
            try:
                async with connect(url, ping_interval=None, proxy=None, open_timeout=5) as connection:
                    resumed = {} if self.position is None else {"afterPosition": str(self.position)}
                    first = {"token": self._mesh.token(self._user), **self._wanted, **resumed}
                    await connection.send(json.dumps(first))
                    async for text in connection:
                        self._take(json_format.Parse(text, frame_pb2.ServerFrame()))
            except (OSError, ConnectionClosed, InvalidHandshake, TimeoutError) as error:
                self.ends.append(type(error).__name__)
            # As a client does: not at once again where nobody answers.
            await asyncio.sleep(_BACK_SECONDS)

    def _take(self, frame: frame_pb2.ServerFrame) -> None:
        kind = frame.WhichOneof("kind")
        if kind == "error":
            self.ends.append(frame.error.reason)
            return
        if self.began is None:
            self.began = frame.position
        assert self.position is None or frame.position >= self.position, "the stream went back"
        self.position = frame.position
        if kind == "event":
            self.events.append(frame.event)

    async def until(self, count: int, *event_types: str, within: float = 60.0) -> list[event_pb2.Event]:
        """Wait until it has so many events, of these types if some are named; gives them."""

        async def there() -> list[event_pb2.Event]:
            found = [one for one in self.events if not event_types or one.event_type in event_types]
            return found if len(found) >= count else []

        return await eventually(there, within=within, what=f"{count} events {event_types} of {self._user}")


@asynccontextmanager
async def following(mesh: Mesh, user: str, replicas: Sequence[int] = (0,), **wanted: Any) -> AsyncIterator[Follower]:
    """Follow a user's events in the background of a test."""
    follower = Follower(mesh, user, replicas, **wanted)
    running = asyncio.create_task(follower.run())

    async def begun() -> bool:
        if running.done():
            running.result()
        return follower.began is not None

    try:
        await eventually(begun, within=30.0, what="the stream's beginning")
        yield follower
        if running.done():
            running.result()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def logged(mesh: Mesh, user: str, after: int = 0) -> list[event_pb2.Event]:
    """What the log has of a user behind a position, in its order."""
    found: list[event_pb2.Event] = []
    async with mesh.channel("audit") as channel:
        stub: Any = audit_service_pb2_grpc.AuditServiceStub(channel)
        request = audit_service_pb2.ListEventsRequest(page_size=1000)
        while True:
            page = await stub.ListEvents(request, metadata=mesh.metadata(user), timeout=20)
            found += [one.event for one in page.entries if one.position > after]
            request.page_token = page.next_page_token
            if not request.page_token:
                return found
