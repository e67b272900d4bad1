"""Processes that are killed, and data that are lost: each due reminder fires and is told once, late if need be."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest

from gaggle.reminder.v1 import reminder_pb2
from tests.conditions import eventually
from tests.mesh_fixture import Mesh
from tests.reminder.reminding import Reminding, ahead, at, moment, now

pytestmark = [pytest.mark.mesh, pytest.mark.slow, pytest.mark.xdist_group("reminder-faults")]

_FIRED = reminder_pb2.REMINDER_STATE_FIRED
_PER_TASK = 8
_TASKS = int(os.environ.get("GAGGLE_REMINDER_TASKS", "6"))
"""Eight reminders each; 125 make a thousand."""

_DUE_SECONDS = 6.0 if _TASKS <= 12 else _TASKS * _PER_TASK * 0.06
"""Within which they come due: a thousand in a minute."""

_AHEAD_SECONDS = 2.0 if _TASKS <= 12 else 20.0
"""Until the first of them: as long as it may take to set them all."""

_ALL_SECONDS = 60.0 + _DUE_SECONDS
"""A restart, a sweep every ten seconds, and a busy machine."""


@pytest.fixture(scope="module")
def own(private_mesh: Callable[..., Mesh]) -> Mesh:
    """Two replicas of the reminder service, whose processes may be killed."""
    return private_mesh(only=["reminder", "task", "audit"], replicas={"reminder": 2})


@pytest.fixture
async def user_of_own(own: Mesh, user: str) -> AsyncIterator[Reminding]:
    """The test's user, on the mesh that may be hurt."""
    async with own.channel("reminder") as reminders, own.channel("task") as tasks:
        yield Reminding(own, reminders, tasks, user)


async def _due(reminding: Reminding, first: float, seconds: float) -> list[str]:
    """Set reminders due from `first` seconds on, over so many seconds; gives their tasks."""
    begin, step = ahead(first), seconds / (_TASKS * _PER_TASK)
    tasks = []
    for number in range(_TASKS):
        tasks.append(task_id := await reminding.task())
        times = [begin + timedelta(seconds=step * (number + _TASKS * one)) for one in range(_PER_TASK)]
        await reminding.schedule(task_id, *map(at, times))
    return tasks


async def _fired(reminding: Reminding, tasks: list[str]) -> int:
    found = await asyncio.gather(*(reminding.all(task_id) for task_id in tasks))
    return sum(one.state == _FIRED for reminders in found for one in reminders)


async def _each_once(reminding: Reminding, tasks: list[str]) -> None:
    """Each reminder has fired, and the log has one reminder.due of it."""

    async def all_fired() -> bool:
        return await _fired(reminding, tasks) == _TASKS * _PER_TASK

    await eventually(all_fired, within=_ALL_SECONDS, what="all reminders fired")
    for task_id in tasks:
        told = await reminding.told(task_id, _PER_TASK, "reminder.due", within=_ALL_SECONDS)
        assert len({(one["reminder_id"], one["occurrence"]) for one in told}) == _PER_TASK


KILLED = {
    "scheduler": ["scheduler"],
    "service": ["reminder"],
    "sidecar": ["reminder-2.daprd"],
    "pair": ["reminder-2", "reminder-2.daprd"],
}


@pytest.mark.parametrize("processes", KILLED.values(), ids=KILLED.keys())
async def test_kill(own: Mesh, user_of_own: Reminding, processes: list[str]) -> None:
    """Kill -9 while reminders come due: each fires, late perhaps, once."""
    tasks = await _due(user_of_own, _AHEAD_SECONDS, _DUE_SECONDS)

    async def some() -> bool:
        return await _fired(user_of_own, tasks) >= len(tasks) * _PER_TASK // 6

    await eventually(some, within=_ALL_SECONDS, what="some reminders fired")
    dead = {process: own.kill(process) for process in processes}
    for process, pid in dead.items():
        await own.back(process, pid)
    await _each_once(user_of_own, tasks)


async def test_scheduler_wiped(own: Mesh, user_of_own: Reminding) -> None:
    """The scheduler's data lost with all its jobs: reminders are rebuilt from state, and fire once."""
    tasks = await _due(user_of_own, 20.0, 6.0)
    assert await _fired(user_of_own, tasks) == 0
    data = own.data.path / "scheduler"
    assert any(data.iterdir())
    # Moved away under it, so that what starts again finds nothing.
    shutil.move(data, data.with_name("scheduler-lost"))
    data.mkdir()
    await own.killed("scheduler")
    await _each_once(user_of_own, tasks)
    shutil.rmtree(data.with_name("scheduler-lost"))


async def test_death_between_job_and_publish(own: Mesh, user_of_own: Reminding) -> None:
    """The job has had its effect and the broker has not been told when both processes die: it is told, once."""
    tasks = await _due(user_of_own, 3.0, 1.0)
    own.signal("redis", signal.SIGSTOP)
    try:

        async def committed() -> bool:
            return await _fired(user_of_own, tasks) == _TASKS * _PER_TASK

        await eventually(committed, within=_ALL_SECONDS, what="all reminders fired in state")
        dead = {process: own.kill(process) for process in ("reminder", "reminder-2")}
    finally:
        own.signal("redis", signal.SIGCONT)
    for process, pid in dead.items():
        await own.back(process, pid)
    await _each_once(user_of_own, tasks)


async def test_task_service_away(own: Mesh, user_of_own: Reminding) -> None:
    """While the task service is stalled reminders wait for it, and then fire once, checked."""
    tasks = await _due(user_of_own, 3.0, 1.0)
    own.signal("task", signal.SIGSTOP)
    try:
        last = ahead(4.0)

        async def all_overdue() -> bool:
            return now() > last

        await eventually(all_overdue, within=10, what="the time of the last one")
        assert await _fired(user_of_own, tasks) == 0
    finally:
        own.signal("task", signal.SIGCONT)
    await _each_once(user_of_own, tasks)


async def test_reminder_service_away(own: Mesh, user_of_own: Reminding) -> None:
    """Tasks are created, moved and completed while no reminder service answers; it catches up with all of it, once."""
    for replica in ("reminder", "reminder-2"):
        own.signal(replica, signal.SIGSTOP)
    try:
        kept = await user_of_own.task(ahead(12.0), 0.0)
        moved = await user_of_own.task(ahead(600.0), 0.0)
        await user_of_own.tasker("UpdateTask", task_id=moved, due={"due_time": moment(ahead(12.0))})
        done = await user_of_own.task(ahead(12.0), 0.0)
        await user_of_own.tasker("CompleteTask", task_id=done)
    finally:
        for replica in ("reminder", "reminder-2"):
            own.signal(replica, signal.SIGCONT)
    for task_id in (kept, moved):
        (fired,) = await user_of_own.until(task_id, 1, _FIRED, within=_ALL_SECONDS)
        assert len(await user_of_own.told(task_id, 1, "reminder.due", within=_ALL_SECONDS)) == 1, fired
    assert [one for one in await user_of_own.all(done) if one.state == _FIRED] == []
