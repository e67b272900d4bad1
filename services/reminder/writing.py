"""The changes that callers may make, each as one commit."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from google.protobuf.message import Message as ProtoMessage

from gaggle.common.v1 import error_reason_pb2
from gaggle.reminder.state.v1 import document_pb2
from gaggle.reminder.v1 import reminder_pb2
from gaggle.reminder.v1 import reminder_service_pb2 as api
from gaggle.task.v1 import task_pb2
from services.reminder import domain, following
from services.reminder.domain import Document, Edit, Past, Stored, Task
from services.reminder.store import ReminderStore
from services.reminder.tasks import SERVICE, Tasks, read
from services.runtime.errors import (
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from services.runtime.identity import Caller
from services.runtime.ids import new_id
from services.runtime.requests import body_hash
from services.runtime.times import find_zone

_SERVICE = "gaggle.reminder.v1.ReminderService"


class Writer:
    """Sets, moves, cancels and puts off reminders."""

    def __init__(self, store: ReminderStore, tasks: Tasks, *, check_tasks: bool) -> None:
        """`check_tasks`: ask the task service what a task is, unless it is the task service that says so."""
        self._store = store
        self._tasks = tasks
        self._check = check_tasks

    async def schedule(self, caller: Caller, request: api.ScheduleRemindersRequest) -> api.ScheduleRemindersResponse:
        """Set reminders. Raises NotFoundError, FailedPreconditionError, TooLargeError, InvalidArgumentError."""
        wanted = [(new_id(), when) for when in request.reminders]
        task, said = await self._task(caller, request)
        past = _past(request.past, default=api.PAST_POLICY_REFUSE)
        from_task = caller.service == SERVICE

        def apply(edit: Edit) -> bytes:
            if task is not None:
                following.align(edit, task)
                if edit.document.task_gone or not read(task).open:
                    raise FailedPreconditionError("the task is done", metadata={"state": "completed"})
                if not edit.document.title:
                    edit.note_task(said)
            elif following.known(edit.document, said.revision) and said.revision < edit.document.task_revision:
                return _answer(_alike(edit, request, from_task=from_task))
            else:
                edit.note_task(said)
            _check_title(edit)
            return _answer(domain.schedule(edit, wanted, request.missed, past, from_task=from_task))

        document, answer = await self._change(caller, "ScheduleReminders", request, apply)
        return api.ScheduleRemindersResponse(reminders=_described(document, answer))

    async def reschedule(
        self, caller: Caller, request: api.RescheduleRemindersRequest
    ) -> api.RescheduleRemindersResponse:
        """Bring reminders in line with what a task has become. Raises as `schedule`."""
        task, said = await self._task(caller, request)
        given = None
        if request.HasField("reminders"):
            given = [(new_id(), when) for when in request.reminders.times]
        policy = request.missed if request.HasField("missed") else None
        past = _past(request.past, default=api.PAST_POLICY_SKIP)
        from_task = caller.service == SERVICE

        def apply(edit: Edit) -> bytes:
            if task is not None:
                following.align(edit, task)
            elif following.known(edit.document, said.revision):
                return _answer(edit.live())
            domain.follow(edit, said, given, policy, past, from_task=from_task)
            if edit.live():
                _check_title(edit)
            return _answer(edit.live())

        document, answer = await self._change(caller, "RescheduleReminders", request, apply)
        return api.RescheduleRemindersResponse(reminders=_described(document, answer))

    async def cancel(self, caller: Caller, request: api.CancelRemindersRequest) -> api.CancelRemindersResponse:
        """Cancel what is to fire. Raises NotFoundError for an id that is not among the task's."""
        from_task = caller.service == SERVICE

        def apply(edit: Edit) -> bytes:
            if from_task and following.known(edit.document, request.task_revision):
                return _answer([])
            wanted = list(edit.document.reminders)
            if request.reminder_ids:
                wanted = [_found(edit, one) for one in request.reminder_ids]
            live = [one for one in wanted if domain.is_live(one)]
            cause = domain.DELETED if request.task_deleted else domain.COMPLETED
            for one in live:
                edit.cancel(one, cause if from_task else domain.CANCELLED)
            if from_task and not request.reminder_ids and edit.document.reminders:
                if request.task_revision > edit.document.task_revision:
                    edit.document.task_revision, edit.changed = request.task_revision, True
                if request.task_deleted:
                    edit.document.task_gone = edit.changed = True
            return _answer(live)

        _, answer = await self._change(caller, "CancelReminders", request, apply)
        return api.CancelRemindersResponse(reminder_ids=document_pb2.Answer.FromString(answer).reminder_ids)

    async def snooze(self, caller: Caller, request: api.SnoozeReminderRequest) -> api.SnoozeReminderResponse:
        """Put a reminder off, and perhaps its task. Raises NotFoundError, FailedPreconditionError, ConflictError."""
        document = await self._store.find(caller.user_id, request.task_id)
        one = None if document is None else _find(document, request.reminder_id)
        if document is None or one is None:
            raise NotFoundError("reminder", request.reminder_id)
        moved: task_pb2.Task | None = None
        if request.snooze_task:
            _check_etag(document, request.etag)
            until = self._until(document, request)
            moved = await self._put_off_task(caller, request, one, until)

        def apply(edit: Edit) -> bytes:
            found = _find(edit.document, request.reminder_id)
            if found is None:
                raise NotFoundError("reminder", request.reminder_id)
            if moved is None:
                _check_etag(edit.document, request.etag)
            at = self._until(edit.document, request)
            if moved is not None:
                following.align(edit, moved)
            edit.snooze(found, at, task_too=moved is not None)
            due_at = edit.document.due_at if moved is not None else None
            return document_pb2.Answer(reminder_ids=[found.reminder.id], due_at=due_at).SerializeToString()

        document, answer = await self._change(caller, "SnoozeReminder", request, apply)
        first = document_pb2.Answer.FromString(answer)
        response = api.SnoozeReminderResponse(reminder=_described(document, answer)[0])
        if first.HasField("due_at"):
            response.due_at.CopyFrom(first.due_at)
        return response

    def _until(self, document: Document, request: api.SnoozeReminderRequest) -> datetime:
        """Give the time to put off to. Raises InvalidArgumentError if it is not in the future."""
        kind = request.WhichOneof("time")
        now = self._store.now()
        if kind == "delay":
            at = now + request.delay.ToTimedelta()
        elif kind == "until":
            at = request.until.ToDatetime(UTC)
        else:
            local = domain.parse_local(request.until_local)
            assert local is not None  # validation.snooze
            at = domain.resolve(local, find_zone(document.time_zone) or ZoneInfo("UTC"))
        if at <= now:
            raise InvalidArgumentError({str(kind): "must be in the future"})
        return at

    async def _put_off_task(
        self, caller: Caller, request: api.SnoozeReminderRequest, one: Stored, until: datetime
    ) -> task_pb2.Task:
        """Move the task's due time by as much as the reminder is moved; gives the task as it then is."""
        task = await self._tasks.find(request.task_id, caller.token)
        if task is None:
            raise NotFoundError("task", request.task_id)
        if not task.HasField("due_time"):
            raise FailedPreconditionError("the task has no due time", metadata={"state": "undue"})
        by: timedelta = until - max(one.reminder.remind_at.ToDatetime(UTC), self._store.now())
        digest = hashlib.blake2b(f"{request.task_id}\0{request.reminder_id}\0{request.request_id}".encode())
        again = f"snooze.{digest.hexdigest()[:40]}" if request.request_id else ""
        try:
            await self._tasks.put_off(task, task.due_time.ToDatetime(UTC) + by, again, caller.token)
        except InvalidArgumentError as error:
            # An earlier attempt of this very call has moved it, by a delay that began then.
            if error.reason != error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED:
                raise
        moved = await self._tasks.find(request.task_id, caller.token)
        if moved is None:
            raise NotFoundError("task", request.task_id)
        return moved

    async def _task(
        self, caller: Caller, request: api.ScheduleRemindersRequest | api.RescheduleRemindersRequest
    ) -> tuple[task_pb2.Task | None, Task]:
        """Give the task, if it was asked for, and what is to be gone by. Raises NotFoundError, UnavailableError."""
        if self._check and caller.service != SERVICE:
            task = await self._tasks.find(request.task_id, caller.token)
            if task is None:
                raise NotFoundError("task", request.task_id)
            return task, read(task)
        due_at = request.due_at.ToDatetime(UTC) if request.HasField("due_at") else None
        return None, Task(request.task_id, request.title, due_at, request.time_zone, request.task_revision)

    async def _change(
        self, caller: Caller, method: str, request: ProtoMessage, apply: Callable[[Edit], bytes]
    ) -> tuple[Document, bytes]:
        request_id: str = request.request_id  # type: ignore[attr-defined]
        digest = body_hash(f"/{_SERVICE}/{method}", request) if request_id else b""
        task_id: str = request.task_id  # type: ignore[attr-defined]
        return await self._store.change(caller.user_id, task_id, apply, request_id=request_id, body_hash=digest)


def _past(policy: "api.PastPolicy.ValueType", *, default: "api.PastPolicy.ValueType") -> Past:
    policy = policy or default
    return Past(refuse=policy == api.PAST_POLICY_REFUSE, fire=policy == api.PAST_POLICY_FIRE)


def _answer(found: list[Stored]) -> bytes:
    return document_pb2.Answer(reminder_ids=[one.reminder.id for one in found]).SerializeToString()


def _described(document: Document, answer: bytes) -> list[reminder_pb2.Reminder]:
    """Shape the reminders of an answer as they are now; what is no longer kept is left out."""
    wanted = document_pb2.Answer.FromString(answer).reminder_ids
    found = (_find(document, one) for one in wanted)
    return [domain.describe(document, one) for one in found if one is not None]


def _alike(edit: Edit, request: api.ScheduleRemindersRequest, *, from_task: bool) -> list[Stored]:
    """Give the reminders that a late request names."""
    wanted = list(request.reminders)
    return [one for one in edit.document.reminders if one.from_task == from_task and one.reminder.when in wanted]


def _find(document: Document, reminder_id: str) -> Stored | None:
    return next((one for one in document.reminders if one.reminder.id == reminder_id), None)


def _found(edit: Edit, reminder_id: str) -> Stored:
    one = edit.find(reminder_id)
    if one is None:
        raise NotFoundError("reminder", reminder_id)
    return one


def _check_title(edit: Edit) -> None:
    if not edit.document.title:
        raise InvalidArgumentError({"title": "must be set"})


def _check_etag(document: Document, etag: str) -> None:
    if etag and etag != str(document.revision):
        raise ConflictError(
            "the reminders of the task have changed",
            reason=error_reason_pb2.ERROR_REASON_STALE_ETAG,
            metadata={"etag": etag, "current": str(document.revision)},
        )
