"""Series of tasks, as their tests make and follow them."""

from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

from gaggle.task.v1 import task_pb2
from tests.conditions import eventually
from tests.task.tasking import Tasker, at

WITHIN = 30.0


async def begin(
    tasker: Tasker, rule: str, due: str, *, title: str = "again", zone: str = "UTC", each: bool = False, **fields: Any
) -> Any:
    """Create the first task of a series; `due` in ISO 8601."""
    catch_up = task_pb2.CATCH_UP_EACH if each else task_pb2.CATCH_UP_SKIP_MISSED
    recurrence = task_pb2.Recurrence(rule=rule, catch_up=catch_up)
    return await tasker.create(title, due_time=at(due), time_zone=zone, recurrence=recurrence, **fields)


async def following(tasker: Tasker, task_id: str) -> Any:
    """Wait for the task that follows one."""

    async def there() -> str:
        return str((await tasker.get(task_id)).series.next_task_id)

    return await tasker.get(await eventually(there, within=WITHIN, what=f"a task after {task_id}"))


async def done(tasker: Tasker, task_id: str) -> Any:
    """Complete a task and wait for the one that follows."""
    await tasker("CompleteTask", task_id=task_id)
    return await following(tasker, task_id)


def local_due(task: Any) -> str:
    """When a task is due, on the wall clock of its zone, with the offset."""
    due = task.due_time.ToDatetime(UTC).astimezone(ZoneInfo(task.time_zone))
    return str(due.isoformat(timespec="minutes"))
