"""Reminders in the state store: reads, and commits that survive races.

Every change reads a task's document and the request row, judges, and commits document, index entries, request row and
events in one transaction with the ETag just read. Jobs are made and deleted once that is done; what is lost there, the
sweep makes good. docs/state.md lists every key.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

from gaggle.reminder.state.v1 import document_pb2
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from services.reminder import domain
from services.reminder.domain import Document, Edit, Job
from services.reminder.index import DueIndex, UserIndex, document_key, index_key
from services.runtime.call import trace_metadata
from services.runtime.errors import ConflictError
from services.runtime.events import Change, build_events
from services.runtime.locks import KeyedLocks
from services.runtime.outbox import Number, Outbox
from services.runtime.requests import first_answer, new_row, row_key
from services.runtime.state import CommitFailedError, Item, Put, Remove, StateStore

_ATTEMPTS = 12

Clock = Callable[[], datetime]
Apply = Callable[[Edit], "bytes | Awaitable[bytes]"]
"""Changes the document of an Edit of its own, and gives the answer; may be called several times."""


def utc_now() -> datetime:
    """Give the time, as the machine's clock has it."""
    return datetime.now(UTC)


class ReminderStore:
    """Reads and changes the reminders of tasks."""

    def __init__(self, state: StateStore, outbox: Outbox, index: UserIndex, now: Clock = utc_now) -> None:
        """All are shared by the whole process."""
        self.state = state
        self.outbox = outbox
        self.index = index
        self.now = now
        self.committed: Callable[[str, Edit], None] = lambda _user, _edit: None
        """Called after each commit with the user and what was changed: makes and deletes jobs."""
        self._locks = KeyedLocks()

    async def find(self, user_id: str, task_id: str) -> Document | None:
        """Read a task's reminders; None if there are none. Strong."""
        item = await self.state.get(document_key(user_id, task_id))
        return None if item is None else Document.FromString(item.value)

    async def find_many(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Document]:
        """Read the reminders of several tasks, each given as user and task; those without are left out."""
        keys = {document_key(*one): one for one in wanted}
        found = await self.state.get_many(list(keys), confirm=list(keys))
        return {keys[key]: Document.FromString(item.value) for key, item in found.items()}

    async def change(
        self,
        user_id: str,
        task_id: str,
        apply: Apply,
        *,
        request_id: str = "",
        body_hash: bytes = b"",
        traceparent: str | None = None,
    ) -> tuple[Document, bytes]:
        """Change a task's reminders, once for each request_id; gives them and the serialized answer.

        Nothing is written if `apply` leaves all as it is. Raises ConflictError, FailedPreconditionError for a new task
        of an erased user, and what `apply` raises.
        """
        key = document_key(user_id, task_id)
        request_key = row_key(user_id, request_id) if request_id else ""
        keys = [key, request_key] if request_id else [key]
        if traceparent is None:
            traceparent = next((value for _, value in trace_metadata()), "")
        async with self._locks.alone(key):
            for attempt in range(_ATTEMPTS):
                found = await self._read(keys)
                item = found.get(key)
                document = Document(task_id=task_id) if item is None else Document.FromString(item.value)
                if (answer := first_answer(found.get(request_key), body_hash)) is not None:
                    return document, answer
                edit = Edit(document, self.now(), user_id, traceparent)
                applied = apply(edit)
                answer = applied if isinstance(applied, bytes) else await applied
                if not edit.changed or (item is None and not document.reminders):
                    return document, answer
                edit.finish()
                row = [new_row(request_key, body_hash, answer)] if request_id else []
                try:
                    await self._save(edit, item, row)
                except ConflictError:
                    await asyncio.sleep(random.uniform(0, 0.005 * 2 ** min(attempt, 6)))  # noqa: S311
                    continue
                self.committed(user_id, edit)
                return document, answer
        raise ConflictError("other writers kept winning; try again")

    async def remove(self, user_id: str, task_id: str) -> bool:
        """Take a task's reminders away, with an event for each that was to fire; False if there were none."""
        key = document_key(user_id, task_id)
        async with self._locks.alone(key):
            for _ in range(_ATTEMPTS):
                item = await self.state.get(key)
                if item is None:
                    return False
                edit = Edit(Document.FromString(item.value), self.now(), user_id)
                edit.cancel_all(domain.ERASED)
                edit.document.revision += 1
                gone = [Remove(key, etag=item.etag)]
                try:
                    if edit.told:
                        events = build_events(self._change(edit), edit.told)
                        await self.outbox.commit(gone, runtime_pb2.OutboxRow(events=events))
                    else:
                        await self._commit(gone)
                except ConflictError:
                    continue
                self.committed(user_id, edit)
                return True
        raise ConflictError("other writers kept winning; try again")

    async def _read(self, keys: Sequence[str]) -> dict[str, Item]:
        if len(keys) == 1:
            item = await self.state.get(keys[0])
            return {} if item is None else {keys[0]: item}
        return await self.state.get_many(keys, confirm=keys[:1])

    async def _save(self, edit: Edit, item: Item | None, more: Sequence[Put]) -> None:
        document, user_id = edit.document, edit.user_id
        jobs = list(edit.set.values())
        due_keys = DueIndex.keys(user_id, jobs, edit.now)
        # In one order, so that no two changes wait for each other.
        wanted = [*due_keys, *([index_key(user_id)] if item is None else [])]
        async with self._locks.alone(*wanted):
            operations: list[Put | Remove] = [*more]
            if item is None:
                document.incarnation = int(edit.now.timestamp())
                document.index_bucket, entered = await self.index.adding(user_id, document.task_id)
                operations += entered
            if due_keys:
                operations += DueIndex.adding(user_id, jobs, edit.now, await self.state.get_many(due_keys))
            if not edit.told:
                await self._commit([*operations, self._document(edit, item)])
                return
            number = await self.outbox.reserve()
            domain.refer(document, _reference(document, number))
            row = runtime_pb2.OutboxRow(events=build_events(self._change(edit), edit.told))
            await self.outbox.commit_reserved(number, row, [*operations, self._document(edit, item)])

    async def _commit(self, operations: Sequence[Put | Remove]) -> None:
        """Commit what nobody is told of. An answer that is lost looks like a lost race: it is then done again."""
        try:
            await self.state.commit(operations)
        except CommitFailedError as failure:
            raise ConflictError("another writer was faster") from failure

    @staticmethod
    def _document(edit: Edit, item: Item | None) -> Put:
        return Put(
            document_key(edit.user_id, edit.document.task_id),
            edit.document.SerializeToString(),
            etag=item.etag if item else "",
            create=item is None,
            ttl_seconds=0 if edit.live() else int(domain.KEPT.total_seconds()),
        )

    @staticmethod
    def _change(edit: Edit) -> Change:
        return Change(
            entity_type="reminder",
            entity_id=edit.document.task_id,
            user_id=edit.user_id,
            revision=edit.document.revision,
            incarnation=edit.document.incarnation,
            time=edit.now,
            traceparent=edit.traceparent,
        )


def _reference(document: Document, number: Number) -> runtime_pb2.EventReference:
    return runtime_pb2.EventReference(
        revision=document.revision, slot=number.slot, epoch=number.epoch, number=number.number
    )


def job_data(user_id: str, job: Job) -> document_pb2.JobData:
    """Write what a job brings."""
    return document_pb2.JobData(
        user_id=user_id, task_id=job.task_id, reminder_id=job.reminder_id, occurrence=job.occurrence
    )
