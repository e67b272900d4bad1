"""A user's calls of the reminder service, and what is told of reminders."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from gaggle.reminder.v1 import reminder_pb2, reminder_service_pb2_grpc
from gaggle.reminder.v1 import reminder_service_pb2 as api
from tests.conditions import eventually
from tests.mesh_fixture import Mesh
from tests.task.tasking import Tasker

TIMEOUT_SECONDS = 20.0
Metadata = tuple[tuple[str, str], ...]


class Reminding:
    """One user's way to the service: `await reminding("GetReminder", ...)`. `tasker` is the same user's."""

    def __init__(self, mesh: Mesh, channel: grpc.aio.Channel, tasks: grpc.aio.Channel, user: str) -> None:
        """Channels to the reminder service and to the task service."""
        self.mesh = mesh
        self.user = user
        self.tasker = Tasker(tasks, mesh.metadata(user))
        self._stub: Any = reminder_service_pb2_grpc.ReminderServiceStub(channel)

    async def __call__(self, method: str, **fields: Any) -> Any:
        """Make a unary call; `fields` are the request's."""
        request = getattr(api, f"{method}Request")(**fields)
        metadata = self.mesh.metadata(self.user)
        return await getattr(self._stub, method)(request, metadata=metadata, timeout=TIMEOUT_SECONDS)

    async def task(self, due_at: datetime | None = None, *offsets: float, **fields: Any) -> str:
        """Create a task, with reminders so many seconds before it is due; gives its id."""
        if due_at is not None:
            fields["due_time"] = moment(due_at)
            fields["reminder_offsets"] = [span(one) for one in offsets]
        return str((await self.tasker.create(**fields)).id)

    async def schedule(self, task_id: str, *when: reminder_pb2.ReminderTime, **fields: Any) -> Any:
        """Set reminders and give them."""
        return (await self("ScheduleReminders", task_id=task_id, reminders=when, **fields)).reminders

    async def all(self, task_id: str) -> "list[Any]":
        """Read a task's reminders, whatever their state, by time."""
        states = [one for one in reminder_pb2.ReminderState.values() if one]
        return list((await self("ListReminders", task_id=task_id, states=states)).reminders)

    async def until(self, task_id: str, count: int, *states: int, within: float = 20.0) -> "list[Any]":
        """Wait until so many of a task's reminders are in one of these states; gives them."""

        async def there() -> list[Any]:
            found = [one for one in await self.all(task_id) if one.state in states]
            return found if len(found) == count else []

        return await eventually(there, within=within, what=f"{count} reminders of {task_id} in {states}")

    async def told(self, task_id: str, count: int, *types: str, within: float = 30.0) -> "list[dict[str, Any]]":
        """Wait until the log has so many events of these types of a task's reminders; gives them in order."""

        async def logged() -> list[dict[str, Any]]:
            found = [one for one in await told(self.mesh, self.user, task_id) if not types or one["type"] in types]
            return found if len(found) >= count else []

        found = await eventually(logged, within=within, what=f"{count} events {types} of {task_id}")
        assert len(found) == count, found
        return found


async def told(mesh: Mesh, user: str, task_id: str) -> list[dict[str, Any]]:
    """What the log has of a task's reminders, in order: type, revision, part, trace, and the payload's fields."""
    async with mesh.channel("audit") as channel:
        stub: Any = audit_service_pb2_grpc.AuditServiceStub(channel)
        request = audit_service_pb2.ListEventsRequest(
            filter=audit_service_pb2.EventFilter(entity_type="reminder", entity_id=task_id), page_size=500
        )
        answer = await stub.ListEvents(request, metadata=mesh.metadata(user), timeout=TIMEOUT_SECONDS)
    events = sorted((one.event for one in answer.entries), key=lambda one: (one.revision, one.part))
    return [
        {
            "type": one.event_type,
            "revision": one.revision,
            "part": one.part,
            "trace": one.metadata.get("traceparent", "")[3:35],
            **MessageToDict(one.data),
        }
        for one in events
    ]


def now() -> datetime:
    """Give the time."""
    return datetime.now(UTC)


def ahead(seconds: float) -> datetime:
    """Give the time in so many seconds."""
    return now() + timedelta(seconds=seconds)


def moment(at: datetime) -> Timestamp:
    """Write a time."""
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp


def span(seconds: float) -> Duration:
    """Write a duration."""
    written = Duration()
    written.FromTimedelta(timedelta(seconds=seconds))
    return written


def before(seconds: float) -> reminder_pb2.ReminderTime:
    """So long before the task is due."""
    return reminder_pb2.ReminderTime(before_due=span(seconds))


def at(when: datetime) -> reminder_pb2.ReminderTime:
    """Remind at this moment."""
    return reminder_pb2.ReminderTime(at=moment(when))


def local(text: str) -> reminder_pb2.ReminderTime:
    """At this time of a wall clock."""
    return reminder_pb2.ReminderTime(at_local=text)


def states(found: Iterable[Any]) -> list[str]:
    """Name the states."""
    return [reminder_pb2.ReminderState.Name(one.state).removeprefix("REMINDER_STATE_") for one in found]
