"""Inboxes in the state store: reads, and commits that survive races.

Every change reads a user's inbox, the pages it concerns, and the row that says whether it was made before; it judges,
and commits all documents, that row and the events in one transaction with the ETags just read. docs/state.md lists
every key.
"""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from gaggle.common.v1 import error_reason_pb2
from gaggle.notification.state.v1 import document_pb2
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from services.notification import domain
from services.notification.domain import Edit, Inbox
from services.notification.index import (
    PARKED_KEY,
    Parked,
    bucket_of,
    due_key,
    entering,
    inbox_key,
    page_key,
    put,
    shard_of,
    taken_key,
)
from services.runtime.call import trace_metadata
from services.runtime.errors import ConflictError, FailedPreconditionError
from services.runtime.events import Change, build_events
from services.runtime.locks import KeyedLocks
from services.runtime.outbox import Number, Outbox
from services.runtime.requests import first_answer, new_row, row_key
from services.runtime.state import CommitFailedError, Item, Put, Remove, StateStore
from services.runtime.times import timestamp
from services.runtime.users import Users

TAKEN_SECONDS = 30 * 24 * 3600
"""How long an event is known that has had its effect; brokers and reconciliation repeat for seven days at most."""

_ATTEMPTS = 12

Clock = Callable[[], datetime]
Apply = Callable[[Edit], "bytes | Awaitable[bytes]"]
"""Changes the document of an Edit of its own, and gives the answer; may be called several times."""

More = Callable[[], Awaitable[Sequence[Put | Remove]]]
"""Plans further writes of the same transaction."""


def utc_now() -> datetime:
    """Give the time, as the machine's clock has it."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Once:
    """What makes that a change is made once."""

    request_id: str = ""
    body_hash: bytes = b""
    event_id: str = ""

    def key(self, user_id: str) -> str:
        """Key of the row; empty: it is made as often as it is asked for."""
        if self.event_id:
            return taken_key(user_id, hashlib.blake2b(self.event_id.encode(), digest_size=20).hexdigest())
        return row_key(user_id, self.request_id) if self.request_id else ""

    def answer(self, item: Item | None) -> bytes | None:
        """Give the first answer; None: it has not been made. Raises InvalidArgumentError, REQUEST_ID_REUSED."""
        if self.event_id:
            return None if item is None else b""
        return first_answer(item, self.body_hash)

    def row(self, key: str, answer: bytes, now: datetime) -> list[Put]:
        """Plan to note that it is made."""
        if self.event_id:
            row = document_pb2.Taken(time=timestamp(now))
            return [Put(key, row.SerializeToString(), create=True, ttl_seconds=TAKEN_SECONDS)]
        return [new_row(key, self.body_hash, answer)] if key else []


_ALWAYS = Once()


class NotificationStore:
    """Reads and changes inboxes."""

    def __init__(self, state: StateStore, outbox: Outbox, now: Clock = utc_now) -> None:
        """All are shared by the whole process."""
        self.state = state
        self.outbox = outbox
        self.users = Users(state)
        self.parked = Parked(state)
        self.now = now
        self._locks = KeyedLocks()

    async def find(self, user_id: str) -> Inbox:
        """Read a user's inbox; an empty one if there is none. Strong."""
        item = await self.state.get(inbox_key(user_id))
        return Inbox() if item is None else Inbox.FromString(item.value)

    async def pages(self, user_id: str, numbers: Sequence[int]) -> dict[int, document_pb2.InboxPage]:
        """Read pages of older notifications; those that are gone are left out."""
        keys = {page_key(user_id, one): one for one in numbers}
        found = await self.state.get_many(list(keys), confirm=list(keys))
        return {keys[key]: document_pb2.InboxPage.FromString(item.value) for key, item in found.items()}

    async def change(
        self,
        user_id: str,
        apply: Apply,
        *,
        once: Once = _ALWAYS,
        pages: Iterable[int] = (),
        traceparent: str | None = None,
        more: More | None = None,
    ) -> tuple[Inbox, bytes]:
        """Change a user's inbox, once for each request or event; gives it and the serialized answer.

        Nothing is written if `apply` leaves all as it is. Raises ConflictError, FailedPreconditionError for an erased
        user, and what `apply` raises.
        """
        key, once_key = inbox_key(user_id), once.key(user_id)
        wanted = {page_key(user_id, one): one for one in pages}
        keys = [key, *([once_key] if once_key else []), *wanted]
        if traceparent is None:
            traceparent = next((value for _, value in trace_metadata()), "")
        async with self._locks.alone(key):
            for attempt in range(_ATTEMPTS):
                found = await self.state.get_many(keys, confirm=[key, *wanted])
                item = found.get(key)
                document = Inbox() if item is None else Inbox.FromString(item.value)
                if (answer := once.answer(found.get(once_key))) is not None:
                    return document, answer
                if document.HasField("erase_time"):
                    raise FailedPreconditionError(
                        "the user has been erased", reason=error_reason_pb2.ERROR_REASON_USER_ERASED
                    )
                read = {
                    number: document_pb2.InboxPage.FromString(found[one].value)
                    for one, number in wanted.items()
                    if one in found
                }
                edit = Edit(document, user_id, self.now(), read, traceparent)
                applied = apply(edit)
                answer = applied if isinstance(applied, bytes) else await applied
                at = edit.wake()
                if not edit.changed and not once_key:
                    return document, answer
                try:
                    await self._save(edit, item, found, once.row(once_key, answer, edit.now), at, more)
                except ConflictError:
                    await asyncio.sleep(random.uniform(0, 0.005 * 2 ** min(attempt, 6)))  # noqa: S311
                    continue
                return document, answer
        raise ConflictError("other writers kept winning; try again")

    async def _save(
        self,
        edit: Edit,
        item: Item | None,
        found: dict[str, Item],
        rows: Sequence[Put],
        wake: datetime | None,
        more: More | None,
    ) -> None:
        user_id, document = edit.user_id, edit.document
        due = "" if wake is None else due_key(bucket_of(max(wake, edit.now)), shard_of(user_id))
        # In one order, so that no two changes wait for each other.
        async with self._locks.alone(*([due] if due else []), *([PARKED_KEY] if edit.parked or more else [])):
            operations: list[Put | Remove] = [*rows]
            for number in sorted(edit.dirty):
                key = page_key(user_id, number)
                operations.append(put(key, edit.pages[number].SerializeToString(), found.get(key)))
            operations += [Remove(page_key(user_id, one)) for one in edit.dropped]
            if edit.changed and item is None:
                document.incarnation = int(edit.now.timestamp())
                operations += await self.users.entering(user_id)
            if wake is not None:
                operations += entering(user_id, wake, due, await self.state.get(due))
            if edit.parked:
                operations += await self.parked.adding(edit.parked)
            if more is not None:
                operations += await more()
            events: list[runtime_pb2.OutboxEvent] = []
            for prefix, telling, traceparent in edit.asides:
                events += build_events(_change(edit, 0, traceparent), [telling], id_prefix=prefix)
            if edit.told:
                document.revision += 1
                events += build_events(_change(edit, document.revision, edit.traceparent), edit.told)
            if not events:
                await self._commit([*operations, *self._document(edit, item)])
                return
            number_of_row = await self.outbox.reserve()
            if edit.told:
                domain.refer(document, _reference(document, number_of_row))
            row = runtime_pb2.OutboxRow(events=events)
            await self.outbox.commit_reserved(number_of_row, row, [*operations, *self._document(edit, item)])

    async def erase(self, user_id: str) -> int:
        """Empty a user's inbox for good; gives how many notifications there were. Repeating it does no harm."""
        key = inbox_key(user_id)
        async with self._locks.alone(key):
            for _ in range(_ATTEMPTS):
                item = await self.state.get(key)
                document = Inbox() if item is None else Inbox.FromString(item.value)
                items = len(document.notifications)
                numbers = [one.page for one in document.pages]
                items += sum(len(one.notifications) for one in (await self.pages(user_id, numbers)).values())
                closed = Inbox(
                    revision=document.revision,
                    incarnation=document.incarnation,
                    last_sequence=document.last_sequence,
                    erase_time=timestamp(self.now()),
                    events=document.events,
                )
                operations = [*(Remove(page_key(user_id, one)) for one in numbers)]
                try:
                    await self._commit([*operations, put(key, closed.SerializeToString(), item)])
                except ConflictError:
                    continue
                return items
        raise ConflictError("other writers kept winning; try again")

    async def unpark_all(self, user_id: str) -> None:
        """Take an erased user's parked deliveries away."""
        first = 0
        while buckets := await self.parked.buckets(first):
            for number, _, there in buckets:
                first = number + 1
                if not any(one.user_id == user_id for one in there.parked):
                    continue
                async with self._locks.alone(PARKED_KEY):
                    item, document = await self.parked.bucket(number)
                    if item is None:
                        continue
                    kept = [one for one in document.parked if one.user_id != user_id]
                    del document.parked[:]
                    document.parked.extend(kept)
                    await self._commit(await self.parked.taking(number, item, document))

    async def _commit(self, operations: Sequence[Put | Remove]) -> None:
        """Commit what nobody is told of. An answer that is lost looks like a lost race: it is then done again."""
        try:
            await self.state.commit(operations)
        except CommitFailedError as failure:
            raise ConflictError("another writer was faster") from failure

    @staticmethod
    def _document(edit: Edit, item: Item | None) -> list[Put]:
        if not edit.changed:
            return []
        return [put(inbox_key(edit.user_id), edit.document.SerializeToString(), item)]


def _change(edit: Edit, revision: int, traceparent: str) -> Change:
    return Change(
        entity_type=domain.ENTITY,
        entity_id=domain.ENTITY_ID,
        user_id=edit.user_id,
        revision=revision,
        incarnation=edit.document.incarnation,
        time=edit.now,
        traceparent=traceparent,
    )


def _reference(document: Inbox, number: Number) -> runtime_pb2.EventReference:
    return runtime_pb2.EventReference(
        revision=document.revision, slot=number.slot, epoch=number.epoch, number=number.number
    )
