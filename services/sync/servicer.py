"""The sync service's method."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from gaggle.sync.v1 import sync_service_pb2 as api
from gaggle.sync.v1 import sync_service_pb2_grpc as api_grpc
from services.runtime.access import USER, Access
from services.runtime.identity import current_caller
from services.sync.domain import Entry
from services.sync.watching import Mark, Step, Watcher

SYNC_ACCESS: dict[str, Access] = {"Watch": USER}


class SyncServicer(api_grpc.SyncServiceServicer):
    """Serves gaggle.sync.v1.SyncService."""

    def __init__(self, watcher: Watcher, *, send_timeout_seconds: float) -> None:
        """`send_timeout_seconds`: how long a client may leave a message unread, once its connection is full."""
        self._watcher = watcher
        self._send_timeout = send_timeout_seconds

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002
        """See the contract."""
        after = request.after_position if request.HasField("after_position") else None
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        with self._watcher.watching(current_caller(), after, request.entity_types, way="grpc") as watch:
            async with aclosing(watch.steps()) as steps:  # type: ignore[type-var]
                async for step in steps:
                    # A client that does not read can't be told why either: its stream is cut.
                    cut = loop.call_later(self._send_timeout, task.cancel)
                    yield _response(step)
                    cut.cancel()


def _response(step: Step) -> api.WatchResponse | bytes:
    if isinstance(step.told, Entry):
        return step.told.response
    if step.told is Mark.CAUGHT_UP:
        return api.WatchResponse(position=step.position, caught_up=api.WatchCaughtUp())
    return api.WatchResponse(position=step.position, heartbeat=api.WatchHeartbeat())
