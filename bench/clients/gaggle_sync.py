"""Gaggle's realtime: many clients that are there and mostly silent, and events that find the right one among them."""

import asyncio
import contextlib
import itertools
import json
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
from websockets.asyncio.client import connect as connect_socket

from bench.clients.client import Spec
from gaggle.sync.v1 import sync_service_pb2, sync_service_pb2_grpc
from gaggle.task.v1 import task_service_pb2, task_service_pb2_grpc

_AT_ONCE = 32
"""Clients that connect at the same time."""

_CHANNELS = 20
"""Connections that gRPC's streams share, 50 on each."""

_CONNECT_SECONDS = 60.0
_AFTER_SECONDS = 20.0


class Clients:
    """Users with a stream each, and a task service that makes things happen to them."""

    def __init__(self, spec: Spec, tokens: list[str], task: grpc.aio.Channel, channels: list[grpc.aio.Channel]) -> None:
        """A token for each user; `channels` lead to the sync service."""
        self._spec = spec
        self._tokens = tokens
        self._tasks: Any = task_service_pb2_grpc.TaskServiceStub(task)
        self._stubs: list[Any] = [sync_service_pb2_grpc.SyncServiceStub(channel) for channel in channels]
        self._round = itertools.count()
        self._came: Counter[str] = Counter()
        self._latencies: list[float] = []

    async def sync(self, clients: int, per_second: int, seconds: float, *, sockets: bool) -> dict[str, Any]:
        """Have `per_second` tasks made for one user after another; give how late each was with its user's client.

        Late counts from the change's own time, as its owner's clock has it. Raises AssertionError if an event is lost,
        comes twice or to another user's client.
        """
        self._came.clear()
        self._latencies = []
        places = asyncio.Semaphore(_AT_ONCE)
        ready = [asyncio.Event() for _ in range(clients)]
        watch = self._socket if sockets else self._stream
        watching = [asyncio.create_task(watch(number, places, ready[number])) for number in range(clients)]
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                for one in ready:
                    await one.wait()
            made = await self._make(clients, per_second, seconds)
            end = time.monotonic() + _AFTER_SECONDS
            while len(self._came) < len(made) and time.monotonic() < end:  # noqa: ASYNC110 - a deadline
                await asyncio.sleep(0.05)
            broken = [task.exception() for task in watching if task.done()]
            assert not broken, f"{len(broken)} clients were cut: {broken[0]!r}"
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        lost = made - self._came.keys()
        twice = [one for one, times in self._came.items() if times > 1]
        assert (len(lost), len(twice)) == (0, 0), f"{len(lost)} of {len(made)} lost, {len(twice)} twice"
        return {"seconds": seconds, "latencies_ms": [round(one, 3) for one in self._latencies]}

    async def _make(self, clients: int, per_second: int, seconds: float) -> set[str]:
        """Make tasks by the clock, whether or not earlier ones were answered; gives their ids."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        calls = []
        name = next(self._round)
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(max(begin + number / per_second - loop.time(), 0))
            metadata = (("authorization", f"Bearer {self._tokens[number % clients]}"),)
            request = task_service_pb2.CreateTaskRequest(title=f"{name}: {number}")
            calls.append(asyncio.ensure_future(self._tasks.CreateTask(request, metadata=metadata)))
        return {str((await call).task.id) for call in calls}

    async def _socket(self, number: int, places: asyncio.Semaphore, ready: asyncio.Event) -> None:
        async with contextlib.AsyncExitStack() as held:
            async with places:
                connecting = connect_socket(self._spec.sync_url, ping_interval=None, proxy=None, open_timeout=30)
                socket = await held.enter_async_context(connecting)
                await socket.send(json.dumps({"token": self._tokens[number]}))
                assert "caughtUp" in json.loads(await socket.recv())
            ready.set()
            async for text in socket:
                now = time.time()
                frame = json.loads(text)
                if "event" in frame:
                    event = frame["event"]
                    self._take(event["entityId"], datetime.fromisoformat(event["timestamp"]).timestamp(), now)
                else:
                    assert "heartbeat" in frame, frame

    async def _stream(self, number: int, places: asyncio.Semaphore, ready: asyncio.Event) -> None:
        metadata = (("authorization", f"Bearer {self._tokens[number]}"),)
        async with places:
            call = self._stubs[number % len(self._stubs)].Watch(sync_service_pb2.WatchRequest(), metadata=metadata)
            assert (await call.read()).HasField("caught_up")
        ready.set()
        while True:
            response = await call.read()
            now = time.time()
            if response.HasField("event"):
                stamp = response.event.timestamp
                self._take(response.event.entity_id, stamp.seconds + stamp.nanos / 1e9, now)

    def _take(self, task_id: str, changed: float, now: float) -> None:
        self._came[task_id] += 1
        self._latencies.append((now - changed) * 1000)


@contextlib.asynccontextmanager
async def connect(spec: Spec) -> AsyncIterator[Clients]:
    """Connect."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    tokens = await asyncio.to_thread(Path(spec.tokens).read_text)
    async with contextlib.AsyncExitStack() as held:
        task = await held.enter_async_context(grpc.aio.insecure_channel(spec.task))
        # Each with a connection of its own.
        options = (("grpc.use_local_subchannel_pool", 1),)
        channels = [
            await held.enter_async_context(grpc.aio.insecure_channel(spec.sync, options=options))
            for _ in range(_CHANNELS)
        ]
        yield Clients(spec, json.loads(tokens), task, channels)
