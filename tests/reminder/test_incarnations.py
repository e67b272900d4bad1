"""A deleted task's id, taken again by another task."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests.reminder.assembled import START, USER, Assembled, assembled


@pytest.fixture
async def service() -> AsyncIterator[Assembled]:
    """The service in one process."""
    async with assembled() as one:
        yield one


async def test_reminders_follow_the_new_task(service: Assembled) -> None:
    """Revisions of a task that takes a deleted one's id count from the beginning, and its changes are all followed."""
    for minutes in (5, 10, 15):
        await service.task("mine", START + timedelta(minutes=minutes), 60)
    await service.following.deleted(USER, "mine", 4)
    await service.settle()
    assert not service.scheduler.reminders()

    del service.tasks.tasks["mine"]
    await service.task("mine", START + timedelta(minutes=20), 60)
    assert list(service.scheduler.reminders().values()) == [START + timedelta(minutes=19)]
    # Revision 2, which the former task had too.
    await service.task("mine", START + timedelta(minutes=30), 60)
    assert list(service.scheduler.reminders().values()) == [START + timedelta(minutes=29)]
    # What comes late of a revision that has been followed still changes nothing.
    task = service.tasks.tasks["mine"]
    task.etag = "1"
    task.due_time.FromDatetime(START + timedelta(minutes=40))
    await service.following.align(USER, task)
    await service.settle()
    assert list(service.scheduler.reminders().values()) == [START + timedelta(minutes=29)]
    service.clock.go(minutes=29)
    service.tasks.put("mine", START + timedelta(minutes=30), 60)
    await service.deliver()
    assert await service.fired(1) == ["mine"]
