"""One client's stream: what it missed, then what comes."""

import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from gaggle.common.v1 import error_reason_pb2
from services.runtime.errors import GaggleError, UnauthenticatedError
from services.runtime.identity import Caller
from services.sync.domain import Entry, Hub, Mailbox
from services.sync.log import Log
from services.sync.metrics import SyncMetrics
from services.sync.validation import check_watch

_BEGIN_SECONDS = 5.0
"""How long a client waits for a replica that has not reached the log yet."""


class Mark(Enum):
    """What a stream says beside events."""

    CAUGHT_UP = "caughtUp"
    HEARTBEAT = "heartbeat"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to send. The client stands at `position` when it has it."""

    position: int
    told: Entry | Mark


class Watcher:
    """Serves one client after another."""

    def __init__(self, hub: Hub, log: Log, metrics: SyncMetrics, *, heartbeat_seconds: float) -> None:
        """`heartbeat_seconds`: a stream that has nothing to say says so after so long, or a little sooner."""
        self.hub = hub
        self.log = log
        self.metrics = metrics
        self.heartbeat_seconds = heartbeat_seconds

    @contextmanager
    def watching(
        self, caller: Caller, after_position: int | None, entity_types: Sequence[str], *, way: str
    ) -> Iterator["Watch"]:
        """Give a client its stream; `way` is "grpc" or "websocket".

        Raises InvalidArgumentError and TooManyRequestsError.
        """
        check_watch(after_position, entity_types)
        with self.hub.subscribed(caller.user_id, entity_types) as mailbox:
            clients = self.metrics.clients.labels(way)
            clients.inc()
            try:
                yield Watch(self, caller, mailbox, after_position, way)
            except GaggleError as error:
                reason = error_reason_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
                self.metrics.ended.labels(way, reason).inc()
                raise
            finally:
                clients.dec()


class Watch:
    """One client's stream."""

    def __init__(
        self, watcher: Watcher, caller: Caller, mailbox: Mailbox, after_position: int | None, way: str
    ) -> None:
        """Made by `Watcher.watching`; `mailbox` gathers already."""
        self._hub = watcher.hub
        self._log = watcher.log
        self._heartbeat_seconds = watcher.heartbeat_seconds
        self._latency = watcher.metrics.latency
        self._delivered = watcher.metrics.delivered.labels(way)
        self._caller = caller
        self._mailbox = mailbox
        self._after = after_position

    @property
    def position(self) -> int:
        """Where the client stands with all that it was sent."""
        return self._mailbox.told

    def renew(self, caller: Caller) -> None:
        """Go on with another token. Raises UnauthenticatedError if it is another user's."""
        if caller.user_id != self._caller.user_id:
            raise UnauthenticatedError("the token is another user's: open another socket with it")
        self._caller = caller

    async def steps(self) -> AsyncIterator[Step]:
        """Give what to send, one after another. Ends by an error alone, as the contract names them."""
        position = await self._hub.begun(_BEGIN_SECONDS)
        if self._after is not None:
            position = self._after
            async for reached, entry in self._missed(position):
                position = reached
                if entry is not None:
                    yield Step(position, entry)
                    self._delivered.inc()
                self._mailbox.told = position
        yield Step(position, Mark.CAUGHT_UP)
        while True:
            self._mailbox.told = position
            entry = await self._mailbox.take(self._patience())
            self._check_expiry()
            if entry is None:
                # Nothing waits, so all that was handed out is told.
                position = max(position, self._hub.position or 0)
                yield Step(position, Mark.HEARTBEAT)
            elif entry.position > position:
                position = entry.position
                self._latency.observe(max(time.time() - _seconds(entry), 0.0))
                yield Step(position, entry)
                self._delivered.inc()

    async def _missed(self, position: int) -> AsyncIterator[tuple[int, Entry | None]]:
        """Give what the log has after a position, up to where the mailbox gathers: each with where that leads to.

        None in an event's place: the client asked for nothing else up to there.
        """
        read = position == self._hub.position
        while not read or self._mailbox.overflowed:
            # What gathered while a long past was read is read as well.
            self._mailbox.empty()
            goal = self._hub.position or 0
            while not read or position < goal:
                page = await self._log.read(self._caller.user_id, position)
                read = True
                for entry in page.entries:
                    if self._mailbox.wants(entry):
                        yield entry.position, entry
                position = max(position, page.position)
                yield position, None
                self._check_expiry()

    def _patience(self) -> float:
        # Clients that came together shall not all be told at once that there is nothing.
        heartbeat = self._heartbeat_seconds * random.uniform(0.75, 1.0)  # noqa: S311 - no secret
        return max(min(heartbeat, self._caller.expires_at - time.time()), 0.0)

    def _check_expiry(self) -> None:
        if self._caller.expires_at <= time.time():
            raise UnauthenticatedError(
                "the token has expired: resume with a new one", reason=error_reason_pb2.ERROR_REASON_EXPIRED_TOKEN
            )


def _seconds(entry: Entry) -> float:
    stamp = entry.event.timestamp
    return float(stamp.seconds + stamp.nanos / 1e9)
