"""Who is told what: events of the log handed to the clients of their user, each with a place to gather.

A hub is filled by one reader of the log, in the log's order, and knows how far it has come. A client's mailbox gathers
from the moment it was made; what came before, the client reads from the log itself up to that position. So nothing is
missed in between and nothing comes twice, however long that reading takes.
"""

import asyncio
import contextlib
import json
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from google.protobuf import json_format
from google.rpc import code_pb2

from gaggle.common.v1 import error_reason_pb2, event_pb2
from gaggle.sync.v1 import sync_service_pb2 as api
from services.runtime.errors import GaggleError, TooManyRequestsError, UnavailableError

_RETRY_SECONDS = 0.2


class SlowConsumerError(GaggleError):
    """A client that takes what it watches more slowly than it comes."""

    code = code_pb2.RESOURCE_EXHAUSTED

    def __init__(self, position: int) -> None:
        """`position`: what was sent to it last."""
        super().__init__(
            "this client reads more slowly than events come: resume behind the last position that it was told",
            reason=error_reason_pb2.ERROR_REASON_SLOW_CONSUMER,
            metadata={"position": str(position)},
            retry_after_seconds=_RETRY_SECONDS,
        )


@dataclass(frozen=True)
class Entry:
    """A line of the log. Its two forms on the wire are made once, however many clients they go to."""

    position: int
    event: event_pb2.Event

    @cached_property
    def response(self) -> bytes:
        """A serialized WatchResponse."""
        return api.WatchResponse(position=self.position, event=self.event).SerializeToString()

    @cached_property
    def frame(self) -> str:
        """A ServerFrame in JSON."""
        event = _whole(json_format.MessageToDict(self.event))
        return json.dumps({"position": str(self.position), "event": event})


def _whole(value: Any) -> Any:
    """Write whole numbers of an event's data as such: a Struct's are doubles, and Python prints 1 as 1.0."""
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Mailbox:
    """What waits for one client, at most `limit` events."""

    def __init__(self, limit: int, entity_types: Collection[str]) -> None:
        """`entity_types`: what the client asked for; empty: all."""
        self._limit = limit
        self._entity_types = frozenset(entity_types)
        self._waiting: deque[Entry] = deque()
        self._wake = asyncio.Event()
        self._failure: GaggleError | None = None
        self.told = 0
        """The last position that the client was sent."""

        self.overflowed = False
        """More came than it holds, and all of it was let go."""

    def wants(self, entry: Entry) -> bool:
        """Tell whether the client asked for events of this kind."""
        return not self._entity_types or entry.event.entity_type in self._entity_types

    def put(self, entry: Entry) -> None:
        """Add what the client asked for."""
        if self.overflowed or not self.wants(entry):
            return
        if len(self._waiting) >= self._limit:
            # Nobody is helped by a part of it: the client resumes where it stands.
            self.overflowed = True
            self._waiting.clear()
        else:
            self._waiting.append(entry)
        self._wake.set()

    def empty(self) -> None:
        """Begin anew."""
        self._waiting.clear()
        self.overflowed = False

    def fail(self, error: GaggleError) -> None:
        """End the client's stream, after what waits for it."""
        self._failure = self._failure or error
        self._wake.set()

    async def take(self, timeout_seconds: float) -> Entry | None:
        """Wait for the next one; None if none came in time.

        Raises SlowConsumerError, or what ends the stream once nothing waits any more.
        """
        if not self._waiting and not self.overflowed and self._failure is None:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds):
                    await self._wake.wait()
        if self.overflowed:
            raise SlowConsumerError(self.told)
        if self._waiting:
            return self._waiting.popleft()
        if self._failure is not None:
            raise self._failure
        return None


class Hub:
    """The clients of this process, by user, and the position up to which they were handed everything."""

    def __init__(self, *, max_clients: int, max_clients_per_user: int, pending_events: int) -> None:
        """Limits as in `SyncSettings`."""
        self._max_clients = max_clients
        self._max_per_user = max_clients_per_user
        self._pending = pending_events
        self._mailboxes: defaultdict[str, set[Mailbox]] = defaultdict(set)
        self._count = 0
        self._position: int | None = None
        self._known = asyncio.Event()
        self._closed: GaggleError | None = None

    @property
    def position(self) -> int | None:
        """How far the log was handed out; None before its reader has begun."""
        return self._position

    @property
    def clients(self) -> int:
        """How many there are."""
        return self._count

    async def begun(self, timeout_seconds: float) -> int:
        """Wait for the reader of the log to begin; gives the position. Raises UnavailableError."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._known.wait()
        except TimeoutError:
            raise UnavailableError("the log") from None
        assert self._position is not None
        return self._position

    @contextlib.contextmanager
    def subscribed(self, user_id: str, entity_types: Collection[str]) -> Iterator[Mailbox]:
        """Give a mailbox that gathers the user's events from now on. Raises TooManyRequestsError."""
        if self._closed is not None:
            raise self._closed
        own = self._mailboxes.get(user_id, ())
        if len(own) >= self._max_per_user:
            raise TooManyRequestsError(self._max_per_user, retry_after_seconds=1.0)
        if self._count >= self._max_clients:
            raise TooManyRequestsError(self._max_clients, retry_after_seconds=1.0)
        mailbox = Mailbox(self._pending, entity_types)
        self._mailboxes[user_id].add(mailbox)
        self._count += 1
        try:
            yield mailbox
        finally:
            self._count -= 1
            self._mailboxes[user_id].discard(mailbox)
            if not self._mailboxes[user_id]:
                del self._mailboxes[user_id]

    def of(self, user_id: str) -> Collection[Mailbox]:
        """Give a user's mailboxes."""
        return tuple(self._mailboxes.get(user_id, ()))

    def take(self, entries: Iterable[Entry], position: int) -> None:
        """Hand events of the log to their users' clients; all up to `position` is handed out then."""
        for entry in entries:
            for mailbox in self._mailboxes.get(entry.event.user_id, ()):
                mailbox.put(entry)
        self._position = position
        self._known.set()

    def reset(self, error: GaggleError) -> None:
        """Forget the position, since the log is another one, and end every stream."""
        self._position = None
        self._known.clear()
        self._end_all(error)

    def close(self, error: GaggleError) -> None:
        """End every stream, and take none any more."""
        self._closed = error
        self._end_all(error)

    def _end_all(self, error: GaggleError) -> None:
        for mailboxes in self._mailboxes.values():
            for mailbox in mailboxes:
                mailbox.fail(error)
