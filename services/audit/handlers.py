"""What becomes of events as the sidecar delivers them."""

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import structlog

from services.audit.domain import DeadLetter, LoggedEvent, UnreadableEventError, dead_letter, read_event
from services.audit.store import AuditStore, RefusedError
from services.runtime import topics
from services.runtime.callbacks import Outcome, TopicEvent
from services.runtime.errors import GaggleError

# Escaping for the binding can triple the bytes, and a call takes 16 MiB.
_BATCH_BYTES = 3 * 1024 * 1024
_BATCH_EVENTS = 500

_Waiting = tuple[LoggedEvent, int, asyncio.Future[str]]

_log = structlog.get_logger()


class LogWriter:
    """Logs events of all topics, those that wait together in one statement: a group commit.

    While one statement runs, whatever arrives is gathered for the next, so that the log's lock is taken once for many.
    """

    def __init__(self, store: AuditStore, logged: Callable[[int], None]) -> None:
        """`logged` is told the log's newest position after each batch."""
        self._store = store
        self._logged = logged
        self._waiting: list[_Waiting] = []
        self._flushing: asyncio.Task[None] | None = None

    async def write(self, events: Sequence[tuple[LoggedEvent, int]]) -> list[str]:
        """Log events, given with their sizes in bytes; give for each why the database refused it, empty if it did not.

        Raises UnavailableError or DeadlineError: some may be logged, and writing them again does no harm.
        """
        if not events:
            return []
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in events]
        self._waiting += [(event, size, answer) for (event, size), answer in zip(events, answers, strict=True)]
        if self._flushing is None or self._flushing.done():
            # In a context of its own: the batch belongs to several deliveries, and no single one's deadline.
            self._flushing = asyncio.create_task(self._flush(), context=contextvars.Context())
        # Each is waited for, that none is left with an exception that nobody took.
        results = await asyncio.gather(*answers, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [str(result) for result in results]

    async def _flush(self) -> None:
        while self._waiting:
            batch: list[_Waiting] = []
            room = _BATCH_BYTES
            for entry in self._waiting[:_BATCH_EVENTS]:
                room -= entry[1]
                if batch and room < 0:
                    break
                batch.append(entry)
            del self._waiting[: len(batch)]
            await self._append(batch)

    async def _append(self, batch: list[_Waiting]) -> None:
        try:
            _, head = await self._store.append([event for event, _, _ in batch])
        except RefusedError as error:
            if len(batch) == 1:
                _answer(batch, str(error))
            else:
                # One of them is at fault; the others must not suffer for it.
                middle = len(batch) // 2
                await self._append(batch[:middle])
                await self._append(batch[middle:])
        except Exception as error:  # noqa: BLE001 - whoever waits gets it, whatever it is
            for _, _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
        else:
            _answer(batch, "")
            self._logged(head)


def _answer(batch: list[_Waiting], text: str) -> None:
    for _, _, answer in batch:
        if not answer.done():
            answer.set_result(text)


class TopicLog:
    """Takes the events of every topic into the log, and what is none into the dead letters."""

    def __init__(self, writer: LogWriter, store: AuditStore) -> None:
        """Both stand on the same read model."""
        self._writer = writer
        self._store = store

    async def take(self, events: Sequence[TopicEvent]) -> Sequence[Outcome]:
        """Take events as their topics bring them. Unreadable ones are kept apart and count as taken."""
        return await self._take([(event, event.topic) for event in events])

    async def take_late(self, events: Sequence[TopicEvent]) -> Sequence[Outcome]:
        """Take what was delivered in vain before, by way of the dead-letter topic."""
        return await self._take([(event, _original_topic(event)) for event in events])

    async def _take(self, events: Sequence[tuple[TopicEvent, str]]) -> Sequence[Outcome]:
        received = datetime.now(UTC)
        readable: list[tuple[TopicEvent, LoggedEvent]] = []
        letters: list[DeadLetter] = []
        for event, topic in events:
            try:
                if topic not in topics.ALL_TOPICS:
                    raise UnreadableEventError("does not say which topic it came by")  # noqa: TRY301 - one exit
                readable.append((event, read_event(topic, event.id, event.data, received)))
            except UnreadableEventError as error:
                letters.append(dead_letter(topic, event.id, event.data, str(error)))
        try:
            refusals = await self._writer.write([(logged, len(event.data)) for event, logged in readable])
            letters += [
                dead_letter(logged.topic, event.id, event.data, refusal)
                for (event, logged), refusal in zip(readable, refusals, strict=True)
                if refusal
            ]
            if letters:
                _log.warning("events_unreadable", count=len(letters), topic=letters[0].topic, error=letters[0].error)
                await self._store.add_dead_letters(letters)
        except GaggleError as error:
            _log.warning("log_unavailable", events=len(events), error=error.message)
            return [Outcome.RETRY] * len(events)
        return [Outcome.SUCCESS] * len(events)


def _original_topic(event: TopicEvent) -> str:
    named = event.extensions.get("topic")
    if isinstance(named, str) and named in topics.ALL_TOPICS:
        return named
    try:
        told = read_event(event.topic, event.id or "-", event.data, datetime.now(UTC)).event_type
    except UnreadableEventError:
        return event.topic
    if told in topics.ALL_TOPICS:
        return told
    kind = told.partition(".")[0]
    return {"task": topics.TASK_EVENTS, "reminder": topics.REMINDERS, "notification": topics.NOTIFICATIONS}.get(
        kind, event.topic
    )
