"""Watchers: history from a sequence, then what comes.

A watcher reads state; hints only wake it. One that is lost costs `watch_poll_seconds` and nothing else.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from gaggle.conversation.state.v1 import document_pb2
from gaggle.conversation.v1 import conversation_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as api
from services.conversation import domain
from services.conversation.store import ConversationStore, head_key
from services.conversation.validation import MAX_RESPONSE_BYTES
from services.runtime.errors import NotFoundError, StateMissingError, UnavailableError
from services.runtime.hints import Hints

_BATCH_MESSAGES = 200
_HEARTBEAT_SECONDS = 20.0


class Watcher:
    """Serves one Watch call after another."""

    def __init__(self, store: ConversationStore, hints: Hints, poll_seconds: float) -> None:
        """`poll_seconds`: how long a lost hint may go unnoticed."""
        self._store = store
        self._hints = hints
        self._poll = poll_seconds

    async def watch(self, user_id: str, request: api.WatchRequest) -> AsyncIterator[api.WatchResponse | bytes]:
        """Send messages, truncations and the end. Raises NotFoundError."""
        with self._hints.listening(head_key(user_id, request.conversation_id)) as wake:
            head = await self._store.head(user_id, request.conversation_id)
            start = request.from_sequence if request.HasField("from_sequence") else head.next_sequence
            told = _Told(max(int(start), 1), {(one.first, one.last) for one in domain.holes(head)})
            async for response in self._follow(user_id, head, told):
                yield response
            yield _caught_up(told)
            loop = asyncio.get_running_loop()
            beat = loop.time() + _HEARTBEAT_SECONDS
            revision = head.revision
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._poll):
                        await wake.wait()
                wake.clear()
                try:
                    head = await self._store.head(user_id, request.conversation_id)
                except NotFoundError:
                    yield api.WatchResponse(deleted=api.WatchDeleted())
                    return
                except UnavailableError:
                    continue  # The stream outlives a sidecar's restart; the next poll goes on where it stands.
                if head.revision != revision:
                    async for response in self._follow(user_id, head, told):
                        yield response
                    revision = head.revision
                if loop.time() >= beat:
                    beat = loop.time() + _HEARTBEAT_SECONDS
                    yield _caught_up(told)

    async def _follow(
        self, user_id: str, head: document_pb2.Head, told: "_Told"
    ) -> AsyncIterator[api.WatchResponse | bytes]:
        """Catch up with a head, or a newer one if a change since it was read took away what that names."""
        while True:
            try:
                async for response in self._catch_up(user_id, head, told):
                    yield response
            except StateMissingError:
                newer = await self._store.head(user_id, head.conversation.id)
                if newer.revision == head.revision:
                    raise
                head = newer
            else:
                return

    async def _catch_up(
        self, user_id: str, head: document_pb2.Head, told: "_Told"
    ) -> AsyncIterator[api.WatchResponse | bytes]:
        for one in domain.holes(head):
            # Only what was sent before has to be taken back; the rest shows as a gap below.
            if (one.first, one.last) not in told.holes and one.first < told.next:
                told.holes.add((one.first, one.last))
                taken = conversation_pb2.SequenceRange(first=one.first, last=min(one.last, told.next - 1))
                yield api.WatchResponse(truncated=taken)
        while told.next < head.next_sequence:
            found = await self._store.after(
                user_id, head, after=told.next - 1, limit=_BATCH_MESSAGES, max_bytes=MAX_RESPONSE_BYTES
            )
            run: list[bytes] = []
            for slot in found:
                if slot.sequence > told.next:
                    if run:
                        yield _messages(run)
                        run = []
                    yield _gap(told.next, slot.sequence - 1)
                assert slot.framed is not None
                run.append(slot.framed)
                told.next = slot.sequence + 1
            if run:
                yield _messages(run)
            if not found:
                yield _gap(told.next, head.next_sequence - 1)
                told.next = int(head.next_sequence)


class _Told:
    """Where a stream stands: the next sequence to send, and the holes told of."""

    __slots__ = ("holes", "next")

    def __init__(self, start: int, holes: set[tuple[int, int]]) -> None:
        self.next = start
        self.holes = holes


def _messages(run: list[bytes]) -> bytes:
    """Write a WatchResponse whose messages are the bytes as they lie: field 1, length, body."""
    body = b"".join(run)
    return domain.frame(body)


def _gap(first: int, last: int) -> api.WatchResponse:
    return api.WatchResponse(truncated=conversation_pb2.SequenceRange(first=first, last=last))


def _caught_up(told: _Told) -> api.WatchResponse:
    return api.WatchResponse(caught_up=api.WatchCaughtUp(last_sequence=told.next - 1))
