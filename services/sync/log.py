"""The audit log, as this process reads it: everybody's events by one stream, a user's past by pages.

Replicas of this service do not share events out among themselves as consumers of a topic do: each reads all of the log,
and has a position that means the same to every other one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from google.rpc import code_pb2

from gaggle.audit.v1 import log_service_pb2 as api
from gaggle.common.v1 import error_reason_pb2
from services.runtime import topics
from services.runtime.errors import FailedPreconditionError, GaggleError, InvalidArgumentError
from services.runtime.invocation import Peer
from services.sync.domain import Entry, Hub

_ACTS_FOR_ITSELF = "sync"
_SILENCE_SECONDS = 45.0
"""The log says every 20 seconds that it has nothing to say; a connection that does not has died unnoticed."""

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 2.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a user's events."""

    entries: list[Entry]
    position: int
    """All up to here was told."""


class Log(Protocol):
    """Where events come from."""

    def follow(self, after: int | None) -> AsyncIterator[tuple[list[Entry], int]]:
        """Give everybody's events after a position, or those to come, and where that leads to."""
        ...

    async def read(self, user_id: str, after: int) -> Page:
        """Give a user's events after a position."""
        ...


class AuditLog:
    """The log of the audit service. Every method raises GaggleError: UnavailableError if it can't be reached."""

    def __init__(self, peer: Peer, issue: Callable[[str], str], *, concurrency: int) -> None:
        """`issue` gives this service's token for a user; at most `concurrency` pages are read at once."""
        self._peer = peer
        self._issue = issue
        self._places = asyncio.Semaphore(concurrency)

    async def follow(self, after: int | None) -> AsyncIterator[tuple[list[Entry], int]]:
        """See Log."""
        request = api.FollowLogRequest(after_position=after)
        stream = self._peer.stream("FollowLog", request, self._issue(_ACTS_FOR_ITSELF))
        async with contextlib.aclosing(stream) as responses:  # type: ignore[type-var]
            while True:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    response = await anext(responses, None)
                if response is None:
                    return
                yield _entries(response.entries), response.position

    async def read(self, user_id: str, after: int) -> Page:
        """See Log. Raises InvalidArgumentError if the log does not reach that far."""
        request = api.ReadLogRequest(after_position=after)
        async with self._places:
            try:
                response = await self._peer.ask("ReadLog", request, self._issue(user_id))
            except GaggleError as error:
                raise beyond_the_end() if error.code == code_pb2.INVALID_ARGUMENT else error from error
        return Page(_entries(response.entries), response.position)


def beyond_the_end() -> InvalidArgumentError:
    """Say that a position is not one of this log."""
    what = "is beyond the end of the log: read everything again, and watch without it"
    return InvalidArgumentError({"after_position": what})


class Feed:
    """Fills the hub from the log, for as long as the process lives."""

    def __init__(self, log: Log, hub: Hub) -> None:
        """One of each a process."""
        self._source = log
        self._hub = hub

    async def run(self) -> None:
        """Follow the log until cancelled; after a break, go on where the hub stands."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                async with contextlib.aclosing(self._source.follow(self._hub.position)) as batches:  # type: ignore[type-var]
                    async for entries, position in batches:
                        self._take(entries, position)
                        pause = _FIRST_PAUSE_SECONDS
            except (GaggleError, TimeoutError) as error:
                if isinstance(error, GaggleError) and error.code == code_pb2.INVALID_ARGUMENT:
                    # The log was restored from before: positions that clients hold mean nothing any more.
                    _log.error("log_is_another", position=self._hub.position, error=str(error))
                    self._hub.reset(beyond_the_end())
                else:
                    _log.warning("log_away", position=self._hub.position, error=str(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _take(self, entries: list[Entry], position: int) -> None:
        self._hub.take(entries, position)
        for entry in entries:
            if entry.event.event_type == topics.USER_ERASED:
                erased = FailedPreconditionError(
                    "the user has been erased", reason=error_reason_pb2.ERROR_REASON_USER_ERASED
                )
                for mailbox in self._hub.of(entry.event.user_id):
                    mailbox.fail(erased)


def _entries(found: Iterable[Any]) -> list[Entry]:
    return [Entry(one.position, one.event) for one in found]
