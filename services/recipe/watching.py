"""Streams of how executions stand, wherever their steps run."""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator

from gaggle.recipe.v1 import execution_service_pb2 as api
from services.recipe.executions import ENDED, Executions, describe

_HEARTBEAT_SECONDS = 20.0


class Watcher:
    """Reads heads when something has changed: at once if it was changed by this process, else at the next look."""

    def __init__(self, executions: Executions, poll_seconds: float) -> None:
        """`poll_seconds`: how late a change made by another replica may be seen."""
        self._executions = executions
        self._poll = poll_seconds
        self._waiting: dict[tuple[str, str], set[asyncio.Event]] = defaultdict(set)
        executions.entities.changed = self.changed

    def changed(self, user_id: str, execution_id: str) -> None:
        """Wake the watchers of an execution."""
        for event in self._waiting.get((user_id, execution_id), ()):
            event.set()

    async def watch(
        self, user_id: str, request: api.WatchExecutionRequest
    ) -> AsyncIterator[api.WatchExecutionResponse]:
        """Send how it stands, then each change, until it has ended. Raises NotFoundError."""
        key = (user_id, request.execution_id)
        event = asyncio.Event()
        self._waiting[key].add(event)
        seen, sent_at, first = request.after_revision, 0.0, True
        try:
            while True:
                event.clear()
                head = await self._executions.entities.get(user_id, request.execution_id)
                revision = head.entity.revision
                if first or revision > seen or time.monotonic() - sent_at >= _HEARTBEAT_SECONDS:
                    steps = [step for step in head.steps if not seen or step.revision > seen]
                    yield api.WatchExecutionResponse(execution=describe(head, steps=steps))
                    seen, sent_at, first = max(seen, revision), time.monotonic(), False
                if head.execution.status in ENDED:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._poll):
                        await event.wait()
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]
