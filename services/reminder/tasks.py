"""The task service, as reminders ask it; and what its events say."""

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration

from gaggle.reminder.v1 import reminder_pb2
from gaggle.task.v1 import task_pb2, task_service_pb2
from services.reminder.domain import Task
from services.runtime.errors import NotFoundError
from services.runtime.invocation import Peer

SERVICE = "task"
"""The service that says what a task is; every other caller is told by it."""


class Tasks:
    """Reads and puts off tasks, for the user of a token."""

    def __init__(self, peer: Peer) -> None:
        """`peer` is the task service."""
        self._peer = peer

    async def find(self, task_id: str, token: str) -> task_pb2.Task | None:
        """Read a task; None if there is none. Raises UnavailableError or DeadlineError."""
        try:
            response = await self._peer.call("GetTask", task_service_pb2.GetTaskRequest(task_id=task_id), token)
        except NotFoundError:
            return None
        found: task_pb2.Task = response.task
        return found

    async def put_off(self, task: task_pb2.Task, due_at: datetime, request_id: str, token: str) -> None:
        """Change when a task is due, of a recurring one this occurrence alone.

        Raises as the task service does: ConflictError, FailedPreconditionError, NotFoundError, InvalidArgumentError
        (REQUEST_ID_REUSED), UnavailableError, DeadlineError.
        """
        request = task_service_pb2.UpdateTaskRequest(request_id=request_id, task_id=task.id)
        request.due.due_time.FromDatetime(due_at)
        if task.HasField("recurrence"):
            request.scope = task_service_pb2.EDIT_SCOPE_THIS
        await self._peer.call("UpdateTask", request, token)


def read(task: task_pb2.Task) -> Task:
    """Take of a task what its reminders go by."""
    return Task(
        id=task.id,
        title=task.title,
        due_at=task.due_time.ToDatetime(UTC) if task.HasField("due_time") else None,
        time_zone=task.time_zone,
        revision=int(task.etag or 0),
        open=task.status != task_pb2.TASK_STATUS_COMPLETED,
    )


def times(task: task_pb2.Task) -> list[reminder_pb2.ReminderTime]:
    """Give when a task wants to be reminded of."""
    return [reminder_pb2.ReminderTime(before_due=_normal(offset)) for offset in task.reminder_offsets]


def _normal(offset: Duration) -> Duration:
    """Write a duration one way, so that equal ones are equal."""
    normal = Duration()
    normal.FromNanoseconds(offset.ToNanoseconds())
    return normal
