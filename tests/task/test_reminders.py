"""Reminders follow their tasks."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gaggle.reminder.v1 import reminder_service_pb2, reminder_service_pb2_grpc
from gaggle.task.v1 import task_pb2
from gaggle.task.v1 import task_service_pb2 as api
from tests.conditions import eventually
from tests.mesh_fixture import Mesh
from tests.task.tasking import TIMEOUT_SECONDS, Tasker, at, seconds

pytestmark = pytest.mark.mesh

_WITHIN = 30.0


class Reminders:
    """What a user is to be reminded of."""

    def __init__(self, stub: Any, metadata: tuple[tuple[str, str], ...]) -> None:
        self._stub = stub
        self._metadata = metadata

    async def of(self, task_id: str) -> list[str]:
        """When a task's reminders that are to fire do so, ascending."""
        request = reminder_service_pb2.ListRemindersRequest(task_id=task_id)
        answer = await self._stub.ListReminders(request, metadata=self._metadata, timeout=TIMEOUT_SECONDS)
        return sorted(one.remind_at.ToJsonString() for one in answer.reminders)

    async def become(self, task_id: str, *times: str) -> None:
        """Wait until a task's reminders are these."""

        async def are() -> bool:
            return await self.of(task_id) == list(times)

        await eventually(are, within=_WITHIN, what=f"reminders at {times}")


@pytest.fixture
async def reminders(mesh: Mesh, user: str) -> AsyncIterator[Reminders]:
    """The test's user's."""
    async with mesh.channel("reminder") as channel:
        yield Reminders(reminder_service_pb2_grpc.ReminderServiceStub(channel), mesh.metadata(user))


async def test_reminders_follow_their_task(tasker: Tasker, reminders: Reminders) -> None:
    """They are set with a task, move with its due time, go when it is done or deleted, and come back with it."""
    task = await tasker.create("t", due_time=at("2031-01-02"), reminder_offsets=seconds(0, 3600))
    early, late = "2031-01-01T23:00:00Z", "2031-01-02T00:00:00Z"
    await reminders.become(task.id, early, late)
    await tasker("UpdateTask", task_id=task.id, due=api.DueUpdate(due_time=at("2031-01-03T00:00")))
    await reminders.become(task.id, "2031-01-02T23:00:00Z", "2031-01-03T00:00:00Z")
    offsets = api.ReminderOffsetsUpdate(reminder_offsets=seconds(60))
    await tasker("UpdateTask", task_id=task.id, reminder_offsets=offsets)
    await reminders.become(task.id, "2031-01-02T23:59:00Z")
    await tasker("CompleteTask", task_id=task.id)
    await reminders.become(task.id)
    await tasker("ReopenTask", task_id=task.id)
    await reminders.become(task.id, "2031-01-02T23:59:00Z")
    await tasker("DeleteTask", task_id=task.id)
    await reminders.become(task.id)


async def test_the_next_occurrence_is_reminded_of(tasker: Tasker, reminders: Reminders) -> None:
    """The next occurrence of a task has its reminders, and the completed one none."""
    recurrence = task_pb2.Recurrence(rule="FREQ=DAILY")
    first = await tasker.create("t", due_time=at("2031-01-02"), reminder_offsets=seconds(3600), recurrence=recurrence)
    await reminders.become(first.id, "2031-01-01T23:00:00Z")
    await tasker("CompleteTask", task_id=first.id)

    async def followed() -> str:
        return str((await tasker.get(first.id)).series.next_task_id)

    second = await eventually(followed, within=_WITHIN, what="the next one")
    await reminders.become(second, "2031-01-02T23:00:00Z")
    await reminders.become(first.id)
