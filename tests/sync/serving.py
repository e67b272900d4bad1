"""The sync service in this process: a real gRPC server, a real WebSocket, a log in memory."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import json_format
from joserfc.jwk import KeySet, OKPKey
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gaggle.common.v1 import event_pb2
from gaggle.sync.v1 import frame_pb2, sync_service_pb2, sync_service_pb2_grpc
from services.runtime.errors import GaggleError, InvalidArgumentError
from services.runtime.identity import TokenSigner, Verifier
from services.runtime.pipeline import Pipeline
from services.runtime.service import Exposed, make_server
from services.runtime.telemetry import Metrics, Tracing
from services.sync.domain import Entry, Hub
from services.sync.gateway import Gateway
from services.sync.log import Feed, Page
from services.sync.metrics import SyncMetrics
from services.sync.servicer import SYNC_ACCESS, SyncServicer
from services.sync.settings import SyncSettings
from services.sync.watching import Watcher

WITHIN = 10.0
_PAGE = 3


class MemoryLog:
    """A log that can be held up, be away, and be swapped for an older one."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.open = asyncio.Event()
        self.open.set()
        self.failure: GaggleError | None = None
        self._grown = asyncio.Event()

    @property
    def head(self) -> int:
        return self.entries[-1].position if self.entries else 0

    def add(self, user_id: str, *, entity_type: str = "task", event_type: str = "task.updated", text: str = "") -> int:
        """Log an event; gives its position. Positions have holes, as the real log's have for any one user."""
        event = event_pb2.Event(
            event_id=f"e{self.head}", event_type=event_type, entity_type=entity_type, entity_id="t", user_id=user_id
        )
        event.timestamp.GetCurrentTime()
        event.data["title"] = text
        self.entries.append(Entry(self.head + 2, event))
        self._wake()
        return self.head

    def restore(self, count: int) -> None:
        """Be as it was after so many events."""
        del self.entries[count:]
        self._wake()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    async def follow(self, after: int | None) -> AsyncIterator[tuple[list[Entry], int]]:
        position = self.head if after is None else after
        self._check(position)
        yield [], position
        while True:
            grown = self._grown
            self._check(position)
            found = [one for one in self.entries if one.position > position]
            if found:
                position = found[-1].position
                yield found, position
            else:
                await grown.wait()

    async def read(self, user_id: str, after: int) -> Page:
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        self._check(after)
        found = [one for one in self.entries if one.position > after and one.event.user_id == user_id]
        page = found[:_PAGE]
        return Page(page, page[-1].position if len(found) > _PAGE else max(after, self.head))

    def _check(self, position: int) -> None:
        if position > self.head:
            raise InvalidArgumentError({"after_position": "is beyond the end of the log"})


class Socket:
    """One WebSocket client. Every frame that it gets must be one of the contract."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.position: int | None = None

    async def send(self, **frame: Any) -> None:
        """Send a frame."""
        await self.connection.send(json.dumps(frame))

    async def next(self) -> frame_pb2.ServerFrame:
        """Wait for a frame."""
        async with asyncio.timeout(WITHIN):
            frame = json_format.Parse(await self.connection.recv(), frame_pb2.ServerFrame())
        self.position = frame.position or self.position
        return frame

    async def event(self) -> event_pb2.Event:
        """Wait for an event."""
        while True:
            frame = await self.next()
            kind = frame.WhichOneof("kind")
            assert kind != "error", frame
            if kind == "event":
                return frame.event

    async def caught_up(self) -> int:
        """Wait until the stream begins; gives where."""
        frame = await self.next()
        assert frame.WhichOneof("kind") == "caught_up", frame
        return int(frame.position)

    async def refusal(self) -> tuple[frame_pb2.FrameError, int]:
        """Wait for the last frame, and the code that the socket is closed with."""
        while True:
            frame = await self.next()
            if frame.WhichOneof("kind") == "error":
                break
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(WITHIN):
                while True:
                    await self.connection.recv()
        code = self.connection.close_code
        assert code is not None
        return frame.error, code


@dataclass
class Served:
    """The parts of a running sync service."""

    log: MemoryLog
    hub: Hub
    watcher: Watcher
    channel: grpc.aio.Channel
    stub: Any
    signer: TokenSigner
    url: str

    def token(self, user: str, *, ttl_seconds: float = 600, **claims: object) -> str:
        """Sign a token."""
        return self.signer.sign(user, ttl_seconds=ttl_seconds, **claims)

    def as_user(self, user: str) -> tuple[tuple[str, str], ...]:
        """Give the metadata of a user's call."""
        return (("authorization", f"Bearer {self.token(user)}"),)

    @asynccontextmanager
    async def socket(self, **options: Any) -> AsyncIterator[Socket]:
        """Open a socket that has said nothing yet."""
        async with connect(self.url, ping_interval=None, proxy=None, **options) as connection:
            yield Socket(connection)

    @asynccontextmanager
    async def watching(self, user: str, *, after: int | None = None, **options: Any) -> AsyncIterator[Socket]:
        """Open a socket that watches for a user."""
        async with self.socket(**options) as socket:
            position = {} if after is None else {"afterPosition": str(after)}
            await socket.send(token=self.token(user), **position)
            yield socket

    def watch(self, user: str, **fields: Any) -> Any:
        """Open a stream by gRPC."""
        return self.stub.Watch(sync_service_pb2.WatchRequest(**fields), metadata=self.as_user(user))


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Served]:
    """Run the service on free ports; `settings` as in SyncSettings."""
    given = {"app_id": "sync", "port": 0, "sidecar_port": 1, "app_api_token": "t", "http_port": 0, **settings}
    told = SyncSettings.model_validate(given)
    key = OKPKey.generate_key("Ed25519", {"kid": "issuer"})
    other = OKPKey.generate_key("Ed25519", {"kid": "task"})
    signer = TokenSigner(json.dumps(key.as_dict(private=True)), issuer="gaggle", audience="gaggle")

    async def keys() -> str:
        return json.dumps(KeySet([key, other]).as_dict(private=False))

    verifier = Verifier("gaggle", ("gaggle", keys))
    metrics = Metrics()
    log = MemoryLog()
    hub = Hub(
        max_clients=told.max_clients,
        max_clients_per_user=told.max_clients_per_user,
        pending_events=told.pending_events,
    )
    watcher = Watcher(hub, log, SyncMetrics(metrics.registry), heartbeat_seconds=told.heartbeat_seconds)
    gateway = Gateway(watcher, verifier, told, metrics)
    servicer = SyncServicer(watcher, send_timeout_seconds=told.send_timeout_seconds)
    pipeline = Pipeline(
        verifier=verifier,
        tracing=Tracing("sync", sample_ratio=0, otlp_endpoint=""),
        metrics=metrics,
        app_api_token="app",
        max_concurrent_calls=100,
        max_streams=100,
        call_timeout_seconds=10,
    )
    pipeline.ready = True
    service = sync_service_pb2.DESCRIPTOR.services_by_name["SyncService"]
    server, _ = make_server(pipeline, [Exposed(service, servicer, SYNC_ACCESS)])
    port = server.add_insecure_port("127.0.0.1:0")
    await gateway.listen()
    await server.start()
    work = [asyncio.create_task(Feed(log, hub).run()), asyncio.create_task(gateway.serve())]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = sync_service_pb2_grpc.SyncServiceStub(channel)
            yield Served(log, hub, watcher, channel, stub, signer, f"ws://127.0.0.1:{gateway.port}/ws")
    finally:
        await server.stop(None)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
