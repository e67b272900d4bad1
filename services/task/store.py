"""Tasks in the state store: keys, reads, and commits that survive races.

Every change reads task and request row, judges, and commits tasks, index, request row and events in one transaction
with the ETags just read. docs/state.md lists every key.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

from google.protobuf import json_format

from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from gaggle.task.state.v1 import document_pb2
from gaggle.task.v1 import event_pb2
from services.runtime import topics
from services.runtime.call import trace_metadata
from services.runtime.errors import ConflictError, NotFoundError
from services.runtime.events import Change, Telling, build_events
from services.runtime.keys import user_part
from services.runtime.locks import KeyedLocks
from services.runtime.outbox import Outbox
from services.runtime.requests import first_answer, new_row, row_key
from services.runtime.state import CommitFailedError, Item, Put, Remove, StateStore
from services.task import domain
from services.task.index import TOMBSTONE_SECONDS, IndexChange, Indexes, index_key

ENTITY = "task"
_ATTEMPTS = 12

Payload: TypeAlias = (
    event_pb2.TaskCreatedEvent
    | event_pb2.TaskUpdatedEvent
    | event_pb2.TaskCompletedEvent
    | event_pb2.TaskReopenedEvent
    | event_pb2.TaskDeletedEvent
)
_EVENT_TYPES: Mapping[type[Payload], str] = {
    event_pb2.TaskCreatedEvent: "task.created",
    event_pb2.TaskUpdatedEvent: "task.updated",
    event_pb2.TaskCompletedEvent: "task.completed",
    event_pb2.TaskReopenedEvent: "task.reopened",
    event_pb2.TaskDeletedEvent: "task.deleted",
}


def task_key(user_id: str, task_id: str) -> str:
    """Key of a task."""
    return f"task:{user_part(user_id)}:{task_id}"


@dataclass(frozen=True, slots=True)
class Stored:
    """A task as it was read, tombstones included."""

    document: document_pb2.TaskDocument
    etag: str


@dataclass(slots=True)
class Changed:
    """A task as it will be."""

    document: document_pb2.TaskDocument
    etag: str
    """As it was read; empty: it is new."""

    payload: Payload


@dataclass(slots=True)
class Draft:
    """A change in the making: what will be committed together."""

    answer: bytes
    index: IndexChange
    tasks: list[Changed] = field(default_factory=list)


Apply: TypeAlias = Callable[[Stored | None, IndexChange], Awaitable[Draft | bytes]]


class TaskStore:
    """Reads and changes tasks."""

    def __init__(self, state: StateStore, outbox: Outbox, indexes: Indexes) -> None:
        """All three are shared by the whole process."""
        self.state = state
        self.outbox = outbox
        self.indexes = indexes
        self.changed: Callable[[str, Changed], None] = lambda _user, _changed: None
        """Called after each commit, with the user, for each task that it changed."""
        self._locks = KeyedLocks()

    async def find(self, user_id: str, task_id: str) -> Stored | None:
        """Read a task, a tombstone too; None if there is none. Strong."""
        return _stored(await self.state.get(task_key(user_id, task_id)))

    async def get(self, user_id: str, task_id: str) -> document_pb2.TaskDocument:
        """Read a task that is there. Raises NotFoundError. Strong."""
        stored = await self.find(user_id, task_id)
        if stored is None or stored.document.HasField("delete_time"):
            raise NotFoundError(ENTITY, task_id)
        return stored.document

    async def load(self, user_id: str, task_ids: Sequence[str]) -> list[document_pb2.TaskDocument]:
        """Read several, in this order, tombstones too; those that are not there are left out. Strong."""
        keys = [task_key(user_id, one) for one in task_ids]
        found = await self.state.get_many(keys, confirm=keys)
        return [document_pb2.TaskDocument.FromString(found[key].value) for key in keys if key in found]

    async def change(
        self, user_id: str, task_id: str, request_id: str, body_hash: bytes, apply: Apply, *, new: bool = False
    ) -> bytes:
        """Change a task and its place in the index, once for each request_id; give the serialized answer.

        `apply` gets the task, None if there is none, and gives a Draft, or an answer if there is nothing to do. It may
        be called several times. `new`: the task is not expected to be there. Raises ConflictError, and what `apply`
        raises.
        """
        key = task_key(user_id, task_id)
        index = index_key(user_id)
        request_key = row_key(user_id, request_id) if request_id else ""
        keys = [key, index, *([request_key] if request_id else [])]
        # A new task that a broken bulk read hides is found out by the commit.
        confirm = [index] if new else [index, key]
        # One user's changes meet in the index: in this process they follow each other.
        async with self._locks.alone(index):
            for attempt in range(_ATTEMPTS):
                found = await self.state.get_many(keys, confirm=confirm)
                if (answer := first_answer(found.get(request_key), body_hash)) is not None:
                    return answer
                draft = await apply(_stored(found.get(key)), self.indexes.change(user_id, found.get(index)))
                if isinstance(draft, bytes):
                    return draft
                operations = draft.index.operations()
                if not draft.tasks and not operations:
                    return draft.answer
                if request_id:
                    operations.append(new_row(request_key, body_hash, draft.answer))
                try:
                    if draft.tasks:
                        await self._commit(user_id, draft.tasks, operations)
                    else:
                        await self._commit_index(operations)
                except ConflictError:
                    await _pause(attempt)
                    continue
                return draft.answer
        raise ConflictError("other writers kept winning; try again")

    async def close(self, user_id: str) -> None:
        """Let a user, who is being erased, create nothing any more."""
        async with self._locks.alone(index_key(user_id)):
            for attempt in range(_ATTEMPTS):
                index = self.indexes.change(user_id, await self.state.get(index_key(user_id)))
                index.close()
                if not (operations := index.operations()):
                    return
                try:
                    await self._commit_index(operations)
                except ConflictError:
                    await _pause(attempt)
                    continue
                return
        raise ConflictError("other writers kept winning; try again")

    async def _commit(self, user_id: str, changes: Sequence[Changed], operations: list[Put | Remove]) -> None:
        number = await self.outbox.reserve()
        events: list[runtime_pb2.OutboxEvent] = []
        now = datetime.now(UTC)
        for one in changes:
            document = one.document
            reference = runtime_pb2.EventReference(
                revision=document.revision, slot=number.slot, epoch=number.epoch, number=number.number
            )
            domain.refer(document, reference)
            ttl = TOMBSTONE_SECONDS if document.HasField("delete_time") else 0
            key = task_key(user_id, document.task.id)
            operations.append(
                Put(key, document.SerializeToString(), etag=one.etag, create=not one.etag, ttl_seconds=ttl)
            )
            events += build_events(_change(user_id, document, now), [_telling(one.payload)])
        await self.outbox.commit_reserved(number, runtime_pb2.OutboxRow(events=events), operations)
        for one in changes:
            self.changed(user_id, one)

    async def _commit_index(self, operations: Sequence[Put | Remove]) -> None:
        """Commit what changes no task and so has nothing to tell. Raises ConflictError: read, and do it again."""
        try:
            await self.state.commit(operations)
        except CommitFailedError as error:
            # It may have happened: then there is nothing left to do when it is read again.
            raise ConflictError("another writer was faster") from error


def told(user_id: str, document: document_pb2.TaskDocument) -> dict[str, Any]:
    """Give the fields that the payloads about a task share: of the task all but its description."""
    task = domain.describe(document)
    task.ClearField("description")
    return {"task_id": task.id, "user_id": user_id, "title": task.title, "task": task}


def _telling(payload: Payload) -> Telling:
    data = json_format.MessageToDict(payload, preserving_proto_field_name=True)
    return Telling(topics.TASK_EVENTS, _EVENT_TYPES[type(payload)], data)


def _change(user_id: str, document: document_pb2.TaskDocument, now: datetime) -> Change:
    return Change(
        entity_type=ENTITY,
        entity_id=document.task.id,
        user_id=user_id,
        revision=document.revision,
        incarnation=document.incarnation,
        time=now,
        traceparent=next((value for _, value in trace_metadata()), ""),
    )


def _stored(item: Item | None) -> Stored | None:
    return None if item is None else Stored(document_pb2.TaskDocument.FromString(item.value), item.etag)


async def _pause(attempt: int) -> None:
    """Wait a moment, longer each time and never twice the same, so that rivals part."""
    await asyncio.sleep(random.uniform(0, 0.005 * 2 ** min(attempt, 6)))  # noqa: S311 - not a secret
