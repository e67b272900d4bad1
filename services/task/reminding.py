"""Tells the reminder service what has become of a task.

It is done after the task's own change has been committed and answered, and as well as it can be: a call that fails, or
is lost with this process, fails no task. The reminder service goes by the task's revision, so that calls may come in
any order, hears the same from `task-events`, and asks the task service for the truth in its sweep.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from google.protobuf.message import Message

from gaggle.reminder.v1 import reminder_pb2, reminder_service_pb2
from gaggle.task.v1 import event_pb2, task_pb2
from services.runtime.call import set_deadline
from services.runtime.errors import GaggleError
from services.runtime.invocation import Peer
from services.runtime.telemetry import TraceContext, current_trace
from services.task.store import Changed

_WORKERS = 8
_MOST_WAITING = 10_000
_STOP_SECONDS = 2.0
_TOLD_CHANGES = frozenset({"title", "due_time", "time_zone", "reminder_offsets"})
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Call:
    """What to tell of one change."""

    user_id: str
    method: str
    request: Message
    trace: TraceContext | None = None


class Reminders:
    """Follows tasks' changes."""

    def __init__(self, reminder: Peer, issue: Callable[[str], str], timeout_seconds: float) -> None:
        """`issue` gives this service's own token for a user."""
        self._reminder = reminder
        self._issue = issue
        self._timeout = timeout_seconds
        self._waiting: asyncio.Queue[Call] = asyncio.Queue(_MOST_WAITING)
        self._workers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to tell."""
        self._workers = [asyncio.create_task(self._work(), context=contextvars.Context()) for _ in range(_WORKERS)]

    async def stop(self) -> None:
        """Tell what is left, within two seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await self._waiting.join()
        for one in self._workers:
            one.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def changed(self, user_id: str, changed: Changed) -> None:
        """Take note of a committed change."""
        call = plan(changed)
        if call is None:
            return
        try:
            self._waiting.put_nowait(Call(user_id, call[0], call[1], current_trace.get()))
        except asyncio.QueueFull:
            _log.warning("reminder_not_told", task=changed.document.task.id, error="too many wait")

    async def _work(self) -> None:
        while True:
            call = await self._waiting.get()
            current_trace.set(call.trace)
            set_deadline(self._timeout)
            try:
                await self._reminder.call(call.method, call.request, self._issue(call.user_id))
            except GaggleError as error:
                _log.warning("reminder_not_told", method=call.method, error=error.message)
            except Exception:  # noqa: BLE001 - the next one is still to be told
                _log.exception("reminder_not_told", method=call.method)
            finally:
                self._waiting.task_done()


def plan(changed: Changed) -> tuple[str, Message] | None:
    """Say which call tells of a change; None if it concerns no reminder."""
    payload, revision = changed.payload, changed.document.revision
    task = changed.document.task
    if isinstance(payload, event_pb2.TaskDeletedEvent | event_pb2.TaskCompletedEvent):
        cancel = reminder_service_pb2.CancelRemindersRequest(
            task_id=task.id, task_revision=revision, task_deleted=isinstance(payload, event_pb2.TaskDeletedEvent)
        )
        return "CancelReminders", cancel
    if isinstance(payload, event_pb2.TaskUpdatedEvent):
        told = bool(_TOLD_CHANGES & set(payload.changed)) and task.status == task_pb2.TASK_STATUS_OPEN
        exactly = "reminder_offsets" in payload.changed
    else:
        told = exactly = bool(task.reminder_offsets)
    return ("RescheduleReminders", _reschedule(task, revision, exactly=exactly)) if told else None


def _reschedule(
    task: task_pb2.Task, revision: int, *, exactly: bool
) -> reminder_service_pb2.RescheduleRemindersRequest:
    """With `exactly`, the task's offsets replace what there was; else what there is moves along."""
    request = reminder_service_pb2.RescheduleRemindersRequest(
        task_id=task.id,
        title=task.title,
        time_zone=task.time_zone,
        past=reminder_service_pb2.PAST_POLICY_SKIP,
        task_revision=revision,
    )
    if task.HasField("due_time"):
        request.due_at.CopyFrom(task.due_time)
    if exactly:
        request.reminders.SetInParent()
        for offset in task.reminder_offsets:
            request.reminders.times.append(reminder_pb2.ReminderTime(before_due=offset))
    return request
