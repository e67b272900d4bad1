"""Watchers: history from a sequence, then what comes.

A watcher reads state; hints only wake it. Hints of this process are direct, those of other replicas come by a topic
that every process has a consumer of its own for. One that is lost costs `watch_poll_seconds` and nothing else.
"""

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence

import structlog

from gaggle.conversation.state.v1 import document_pb2
from gaggle.conversation.v1 import conversation_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as api
from services.conversation import domain
from services.conversation.store import ConversationStore, head_key
from services.conversation.validation import MAX_RESPONSE_BYTES
from services.runtime.callbacks import Outcome, TopicEvent
from services.runtime.errors import NotFoundError, StateMissingError, UnavailableError
from services.runtime.ids import new_id
from services.runtime.sidecar import Sidecar

_BATCH_MESSAGES = 200
_HEARTBEAT_SECONDS = 20.0
_HINT_SECONDS = 0.01
_ANNOUNCE_SECONDS = 5.0
_log = structlog.get_logger()


class Hints:
    """Wakes the watchers of a conversation, here and in other replicas.

    A process that has watchers says so on the topic; only while one has lately said so do the others send hints. A mesh
    in which nobody watches from elsewhere pays nothing for it.
    """

    def __init__(self, sidecar: Sidecar, pubsub: str, topic: str) -> None:
        """Hints travel on `topic` of the fan-out component."""
        self._sidecar = sidecar
        self._pubsub = pubsub
        self._topic = topic
        self._process = new_id()
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._unsent: set[str] = set()
        self._news = asyncio.Event()
        self._watched_until = 0.0

    def changed(self, user_id: str, conversation_id: str, _sequence: int) -> None:
        """Tell of a commit."""
        key = head_key(user_id, conversation_id)
        self._wake(key)
        if time.monotonic() < self._watched_until:
            self._unsent.add(key)
            self._news.set()

    def _wake(self, key: str) -> None:
        for event in self._waiting.get(key, ()):
            event.set()

    @contextlib.contextmanager
    def listening(self, user_id: str, conversation_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever the conversation may have changed."""
        key = head_key(user_id, conversation_id)
        event = asyncio.Event()
        if not self._waiting:
            self._news.set()
        self._waiting[key].add(event)
        try:
            yield event
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]

    async def send(self) -> None:
        """Send what has gathered in ten milliseconds, and that this process watches; run in the background."""
        announced_at = float("-inf")
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ANNOUNCE_SECONDS):
                    await self._news.wait()
                    await asyncio.sleep(_HINT_SECONDS)
            self._news.clear()
            keys, self._unsent = self._unsent, set()
            watching = bool(self._waiting) and time.monotonic() - announced_at >= _ANNOUNCE_SECONDS / 2
            if not keys and not watching:
                continue
            hint = {"process": self._process, "watching": watching, "changed": sorted(keys)}
            with contextlib.suppress(UnavailableError):
                await self._sidecar.publish(self._pubsub, self._topic, json.dumps(hint).encode())
                announced_at = time.monotonic() if watching else announced_at

    async def receive(self, events: Sequence[TopicEvent]) -> list[Outcome]:
        """Take the hints of all replicas, this one's own included."""
        for event in events:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                hint = json.loads(event.data)
                if hint["process"] == self._process:
                    continue
                if hint["watching"]:
                    self._watched_until = time.monotonic() + 3 * _ANNOUNCE_SECONDS
                for key in hint["changed"]:
                    self._wake(key)
        return [Outcome.SUCCESS] * len(events)


class Watcher:
    """Serves one Watch call after another."""

    def __init__(self, store: ConversationStore, hints: Hints, poll_seconds: float) -> None:
        """`poll_seconds`: how long a lost hint may go unnoticed."""
        self._store = store
        self._hints = hints
        self._poll = poll_seconds

    async def watch(self, user_id: str, request: api.WatchRequest) -> AsyncIterator[api.WatchResponse | bytes]:
        """Send messages, truncations and the end. Raises NotFoundError."""
        with self._hints.listening(user_id, request.conversation_id) as wake:
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
