"""The changes that callers may make, each as one commit."""

from datetime import UTC, datetime

from google.protobuf.message import Message

from gaggle.common.v1 import error_reason_pb2
from gaggle.task.state.v1 import document_pb2
from gaggle.task.v1 import event_pb2, occurrence_service_pb2, task_pb2
from gaggle.task.v1 import task_service_pb2 as api
from services.runtime.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from services.runtime.ids import new_id
from services.runtime.requests import body_hash
from services.task import domain
from services.task.index import IndexChange
from services.task.store import ENTITY, Changed, Draft, Stored, TaskStore, told
from services.task.validation import yields

_SERVICE = "gaggle.task.v1.TaskService"


def _hash(method: str, request: Message) -> bytes:
    return body_hash(f"/{_SERVICE}/{method}", request) if request.request_id else b""  # type: ignore[attr-defined]


class Writer:
    """Creates, changes and deletes tasks."""

    def __init__(self, store: TaskStore) -> None:
        """`store` commits."""
        self._store = store

    async def create(self, user_id: str, request: api.CreateTaskRequest) -> api.CreateTaskResponse:
        """Create a task.

        Raises AlreadyExistsError, FailedPreconditionError (an erased user), TooLargeError (too many open tasks).
        """
        document = domain.new_document(request, request.task_id or new_id(), datetime.now(UTC))
        # The answer holds no text: a repeated request brings it along.
        answer = task_pb2.Task(id=document.task.id, create_time=document.task.create_time).SerializeToString()

        async def apply(stored: Stored | None, index: IndexChange) -> Draft:
            if stored is not None:
                deleted = stored.document.HasField("delete_time")
                why = "was deleted less than seven days ago" if deleted else "exists already"
                raise AlreadyExistsError(ENTITY, document.task.id, why=why)
            del document.events[:]
            await index.add(document)
            payload = event_pb2.TaskCreatedEvent(**told(user_id, document))
            return Draft(answer, index, [Changed(document, "", payload)])

        digest = _hash("CreateTask", request)
        given = await self._store.change(user_id, document.task.id, request.request_id, digest, apply, new=True)
        first = task_pb2.Task.FromString(given)
        document.task.id = first.id
        document.task.create_time.CopyFrom(first.create_time)
        document.task.update_time.CopyFrom(first.create_time)
        if document.task.HasField("series"):
            document.task.series.id = first.id
        return api.CreateTaskResponse(task=domain.describe(document))

    async def update(self, user_id: str, request: api.UpdateTaskRequest) -> bytes:
        """Change what the request names. Raises ConflictError, STALE_ETAG."""

        async def apply(stored: Stored | None, index: IndexChange) -> Draft | bytes:
            document = _standing(stored, request.task_id, request.etag)
            _check_scope(document.task, request)
            changed = domain.update(document, request)
            _check_due(document.task, request)
            if "recurrence" in changed and (task := document.task).HasField("recurrence"):
                await yields("recurrence.recurrence.rule", task.recurrence.rule, task.due_time, task.time_zone)
            if not changed:
                return api.UpdateTaskResponse(
                    etag=str(document.revision), update_time=document.task.update_time
                ).SerializeToString()
            now = domain.touch(document)
            await index.replace(document)
            if "recurrence" in changed and not document.task.HasField("recurrence"):
                index.wait(document.task.id, waits=False)
            payload = event_pb2.TaskUpdatedEvent(**told(user_id, document), changed=changed)
            answer = api.UpdateTaskResponse(etag=str(document.revision), update_time=now).SerializeToString()
            return Draft(answer, index, [_changed(stored, document, payload)])

        digest = _hash("UpdateTask", request)
        return await self._store.change(user_id, request.task_id, request.request_id, digest, apply)

    async def complete(self, user_id: str, request: api.CompleteTaskRequest) -> bytes:
        """Complete a task; one that recurs waits for its next occurrence from now on."""

        async def apply(stored: Stored | None, index: IndexChange) -> Draft | bytes:
            document = _standing(stored, request.task_id, request.etag)
            task = document.task
            if task.status == task_pb2.TASK_STATUS_COMPLETED:
                return api.CompleteTaskResponse(
                    etag=str(document.revision), complete_time=task.complete_time
                ).SerializeToString()
            now = domain.touch(document)
            task.status = task_pb2.TASK_STATUS_COMPLETED
            task.complete_time.CopyFrom(now)
            await index.complete(document)
            index.wait(task.id, waits=domain.waits_for_next(task))
            payload = event_pb2.TaskCompletedEvent(**told(user_id, document))
            answer = api.CompleteTaskResponse(etag=str(document.revision), complete_time=now).SerializeToString()
            return Draft(answer, index, [_changed(stored, document, payload)])

        digest = _hash("CompleteTask", request)
        return await self._store.change(user_id, request.task_id, request.request_id, digest, apply)

    async def reopen(self, user_id: str, request: api.ReopenTaskRequest) -> bytes:
        """Open a completed task again. Raises TooLargeError (too many open tasks)."""

        async def apply(stored: Stored | None, index: IndexChange) -> Draft | bytes:
            document = _standing(stored, request.task_id, request.etag)
            task = document.task
            if task.status == task_pb2.TASK_STATUS_OPEN:
                return api.ReopenTaskResponse(
                    etag=str(document.revision), update_time=task.update_time
                ).SerializeToString()
            now = domain.touch(document)
            task.status = task_pb2.TASK_STATUS_OPEN
            await index.drop(document)
            task.ClearField("complete_time")
            await index.add(document)
            index.wait(task.id, waits=False)
            payload = event_pb2.TaskReopenedEvent(**told(user_id, document))
            answer = api.ReopenTaskResponse(etag=str(document.revision), update_time=now).SerializeToString()
            return Draft(answer, index, [_changed(stored, document, payload)])

        digest = _hash("ReopenTask", request)
        return await self._store.change(user_id, request.task_id, request.request_id, digest, apply)

    async def delete(self, user_id: str, request: api.DeleteTaskRequest, *, cause: str = "deleted") -> bytes:
        """Take a task away; one that was deleted lately is OK. Raises NotFoundError."""

        async def apply(stored: Stored | None, index: IndexChange) -> Draft | bytes:
            if stored is not None and stored.document.HasField("delete_time"):
                return b""
            document = _standing(stored, request.task_id, request.etag)
            left = domain.tombstone(document, datetime.now(UTC))
            await index.bury(document, left)
            payload = event_pb2.TaskDeletedEvent(task_id=document.task.id, user_id=user_id, cause=cause)
            return Draft(b"", index, [_changed(stored, left, payload)])

        digest = _hash("DeleteTask", request)
        return await self._store.change(user_id, request.task_id, request.request_id, digest, apply)

    async def continue_series(
        self, user_id: str, request: occurrence_service_pb2.ContinueSeriesRequest
    ) -> occurrence_service_pb2.ContinueSeriesResponse:
        """Create a completed task's next occurrence, unless it is there or no longer wanted.

        The completed task names its next one, and both are written in one commit over the ETag just read: whoever
        else tries finds the name, or loses the race and then finds it.
        """

        async def apply(stored: Stored | None, index: IndexChange) -> Draft | bytes:
            if stored is None or stored.document.HasField("delete_time"):
                return b""
            document = stored.document
            task = document.task
            wanted = task.status == task_pb2.TASK_STATUS_COMPLETED and domain.waits_for_next(task)
            if not wanted or not request.HasField("next"):
                index.wait(task.id, waits=False)
                answer = occurrence_service_pb2.ContinueSeriesResponse(next_task_id=task.series.next_task_id)
                return Draft(answer.SerializeToString(), index)
            _check_etag(document, request.etag)
            now = datetime.now(UTC)
            following = domain.next_document(
                document, new_id(), request.next.occurrence, request.next.occurrence_time, now
            )
            task.series.next_task_id = following.task.id
            domain.touch(document)
            await index.add(following)
            await index.replace(document)
            index.wait(task.id, waits=False)
            created = event_pb2.TaskCreatedEvent(**told(user_id, following))
            updated = event_pb2.TaskUpdatedEvent(**told(user_id, document), changed=["next_task_id"])
            answer = occurrence_service_pb2.ContinueSeriesResponse(next_task_id=following.task.id, created=True)
            changes = [Changed(following, "", created), _changed(stored, document, updated)]
            return Draft(answer.SerializeToString(), index, changes)

        given = await self._store.change(user_id, request.task_id, "", b"", apply)
        return occurrence_service_pb2.ContinueSeriesResponse.FromString(given)


def _standing(stored: Stored | None, task_id: str, etag: str) -> document_pb2.TaskDocument:
    """Give a task that may be changed. Raises NotFoundError, FailedPreconditionError (deleted), ConflictError."""
    if stored is None:
        raise NotFoundError(ENTITY, task_id)
    if stored.document.HasField("delete_time"):
        raise FailedPreconditionError("the task was deleted", metadata={"state": "deleted"})
    _check_etag(stored.document, etag)
    return stored.document


def _check_etag(document: document_pb2.TaskDocument, etag: str) -> None:
    if etag and etag != str(document.revision):
        raise ConflictError(
            "the task has changed since that etag",
            reason=error_reason_pb2.ERROR_REASON_STALE_ETAG,
            metadata={"etag": etag, "current": str(document.revision)},
        )


def _check_scope(task: task_pb2.Task, request: api.UpdateTaskRequest) -> None:
    if request.scope == api.EDIT_SCOPE_THIS and not task.HasField("recurrence"):
        raise FailedPreconditionError("the task does not recur", metadata={"state": "not recurring"})


def _check_due(task: task_pb2.Task, request: api.UpdateTaskRequest) -> None:
    """Refuse what needs a due time and has none."""
    if task.HasField("due_time"):
        return
    field = "due.due_time" if request.HasField("due") else "due_time"
    if task.HasField("recurrence"):
        raise InvalidArgumentError({field: "must be set: the task recurs"})
    if task.reminder_offsets:
        raise InvalidArgumentError({field: "must be set: the task has reminder offsets"})


def _changed(stored: Stored | None, document: document_pb2.TaskDocument, payload: object) -> Changed:
    return Changed(document, stored.etag if stored else "", payload)  # type: ignore[arg-type]
