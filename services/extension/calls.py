"""Calls by their ids: one that is running is joined, one that was answered is answered again.

The ledger lies in memory, at the replica that holds the connection, where every repetition arrives too. It spares a
tool a second run when a caller's stream broke; it does not outlive the process. If that is killed in the middle of a
call nobody knows what the tool did, and the server is told the id so that it can know its own.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

from gaggle.common.v1 import error_reason_pb2
from gaggle.extension.v1 import extension_service_pb2 as api
from services.extension.errors import CallCancelledError
from services.runtime.errors import InvalidArgumentError, TooLargeError

Tell = Callable[[api.CallToolResponse], None]
Work = Callable[[Tell], Awaitable[api.CallToolResponse]]

_QUEUED = 256
_KEPT_EVENTS = 64
_DECIDED = (CallCancelledError, TooLargeError)
"""Ways to end that a repetition must not undo by running the tool again."""


class _Call:
    """One run of a tool, and those who listen."""

    def __init__(self, call_id: str, digest: bytes, work: Work) -> None:
        self.digest = digest
        self.listeners: set[asyncio.Queue[api.CallToolResponse | None]] = set()
        self.cancelled = False
        self.expire: asyncio.TimerHandle | None = None
        self._call_id = call_id
        self._told: deque[api.CallToolResponse] = deque(maxlen=_KEPT_EVENTS)
        self._started: api.CallToolResponse | None = None
        self.task = asyncio.create_task(self._run(work))

    async def _run(self, work: Work) -> api.CallToolResponse:
        try:
            return await work(self._tell)
        except asyncio.CancelledError:
            if not self.cancelled:
                raise
            raise CallCancelledError(self._call_id) from None
        finally:
            for queue in self.listeners:
                _put(queue, None)

    def _tell(self, response: api.CallToolResponse) -> None:
        if response.HasField("started"):
            self._started = response
        else:
            self._told.append(response)
        for queue in self.listeners:
            _put(queue, response)

    @property
    def came_to_nothing(self) -> bool:
        """It has ended, and a repetition may run the tool again."""
        if not self.task.done():
            return False
        return self.task.cancelled() or not isinstance(self.task.exception(), (type(None), *_DECIDED))

    async def listen(self) -> AsyncIterator[api.CallToolResponse]:
        """Give what has been told, what is told from now on, and the outcome; raises what the work raised."""
        queue: asyncio.Queue[api.CallToolResponse | None] = asyncio.Queue(_QUEUED)
        self.listeners.add(queue)
        try:
            for response in ((self._started,) if self._started else ()) + tuple(self._told):
                yield response
            while not self.task.done() and (one := await queue.get()) is not None:
                yield one
            while not queue.empty() and (one := queue.get_nowait()) is not None:
                yield one
            # Not the task itself: who stops listening must not end it.
            yield await asyncio.shield(self.task)
        finally:
            self.listeners.discard(queue)

    def cancel(self) -> bool:
        """End it; tells whether it was running."""
        if self.task.done():
            return False
        self.cancelled = True
        self.task.cancel()
        return True


class CallLedger:
    """The calls of one replica."""

    def __init__(self, *, grace_seconds: float, answer_seconds: float, answers_bytes: int) -> None:
        """How long a call goes on without a caller, how long an answer is kept, and how much all of them may take."""
        self._grace = grace_seconds
        self._answer_seconds = answer_seconds
        self._answers_bytes = answers_bytes
        self._calls: dict[tuple[str, str], _Call] = {}
        self._answers: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._size = 0

    async def run(self, user_id: str, call_id: str, digest: bytes, work: Work) -> AsyncIterator[api.CallToolResponse]:
        """Run a call, or join the one of this id. Raises what `work` raises, and REQUEST_ID_REUSED."""
        if not call_id:
            async for response in _unnamed(digest, work):
                yield response
            return
        key = (user_id, call_id)
        call = self._calls.get(key)
        if call is None or call.came_to_nothing:
            call = self._calls[key] = new = _Call(call_id, digest, work)
            call.task.add_done_callback(lambda _: self._ended(key, new))
        elif call.digest != digest:
            raise InvalidArgumentError(
                {"call_id": "was used with another call; take a fresh one"},
                reason=error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED,
            )
        if call.expire is not None and not call.task.done():
            call.expire.cancel()
            call.expire = None
        try:
            async with aclosing(call.listen()) as responses:  # type: ignore[type-var]
                async for response in responses:
                    yield response
        finally:
            if not call.listeners and not call.task.done() and call.expire is None:
                call.expire = asyncio.get_running_loop().call_later(self._grace, call.task.cancel)

    def cancel(self, user_id: str, call_id: str) -> bool:
        """End a running call; tells whether there was one."""
        call = self._calls.get((user_id, call_id))
        return call is not None and call.cancel()

    async def close(self) -> None:
        """End all that runs."""
        tasks = [one.task for one in self._calls.values() if not one.task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: tuple[str, str], call: _Call) -> None:
        if call.expire is not None:
            call.expire.cancel()
        error = None if call.task.cancelled() else call.task.exception()
        if self._calls.get(key) is not call:
            return
        if call.came_to_nothing or not self._answer_seconds:
            del self._calls[key]
            return
        size = call.task.result().ByteSize() if error is None else 0
        self._answers[key] = size
        self._size += size
        call.expire = asyncio.get_running_loop().call_later(self._answer_seconds, self._forget, key)
        while self._size > self._answers_bytes:
            self._forget(next(iter(self._answers)))

    def _forget(self, key: tuple[str, str]) -> None:
        self._size -= self._answers.pop(key, 0)
        call = self._calls.pop(key, None)
        if call is not None and call.expire is not None:
            call.expire.cancel()


async def _unnamed(digest: bytes, work: Work) -> AsyncIterator[api.CallToolResponse]:
    call = _Call("", digest, work)
    try:
        async with aclosing(call.listen()) as responses:  # type: ignore[type-var]
            async for response in responses:
                yield response
    finally:
        if not call.task.done():
            call.task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await call.task


def _put(queue: asyncio.Queue[Any], item: Any) -> None:
    # A slow listener misses progress and log lines, never the end.
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(item)
