"""How a series goes on, on a state store in memory: who waits, races, and what ends."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from gaggle.task.v1 import occurrence_service_pb2 as series_api
from gaggle.task.v1 import task_pb2
from gaggle.task.v1 import task_service_pb2 as api
from services.runtime.errors import ConflictError, FailedPreconditionError
from services.task.index import Indexes
from services.task.owning import Owner
from services.task.reading import Reader
from services.task.store import TaskStore
from services.task.writing import Writer
from tests.runtime.memory import MemoryBroker, MemoryState, make_outbox
from tests.task.tasking import at

_USER = "ann"
_DAILY = task_pb2.Recurrence(rule="FREQ=DAILY")
_SECOND = series_api.NextOccurrence(occurrence=2, occurrence_time=at("2031-01-02"))


class Replica:
    """A task service's inside, with an outbox of its own."""

    def __init__(self, state: MemoryState, holder: str) -> None:
        self.outbox = make_outbox(state, MemoryBroker(), holder=holder)
        self.indexes = Indexes(state, 100)  # type: ignore[arg-type]
        self.store = TaskStore(state, self.outbox, self.indexes)  # type: ignore[arg-type]
        self.writer = Writer(self.store)

    async def go_on(self, task_id: str, *, etag: str = "2", ends: bool = False) -> series_api.ContinueSeriesResponse:
        """Continue a series with its second occurrence, or end it."""
        following = None if ends else _SECOND
        request = series_api.ContinueSeriesRequest(task_id=task_id, etag=etag, next=following)
        return await self.writer.continue_series(_USER, request)

    async def waiting(self) -> list[str]:
        """Who waits for a next occurrence."""
        return list((await self.indexes.read(_USER)).waiting)

    async def tasks(self) -> list[task_pb2.Task]:
        """All tasks."""
        return list((await Reader(self.store, self.indexes).tasks(_USER, api.ListTasksRequest())).tasks)

    async def completed(self) -> str:
        """Create a recurring task and complete it."""
        request = api.CreateTaskRequest(title="t", due_time=at("2031-01-01"), recurrence=_DAILY)
        task_id = (await self.writer.create(_USER, request)).task.id
        await self.writer.complete(_USER, api.CompleteTaskRequest(task_id=task_id))
        assert task_id in await self.waiting()
        return task_id


@pytest.fixture
async def replicas() -> AsyncIterator[list[Replica]]:
    """Three on one store."""
    state = MemoryState()
    made = [Replica(state, str(number)) for number in range(3)]
    for one in made:
        await one.outbox.start()
    yield made
    for one in made:
        await one.outbox.stop()


async def test_many_at_once(replicas: list[Replica]) -> None:
    """However many replicas continue a series at once, one creates the next task and all name it."""
    for _ in range(20):
        task_id = await replicas[0].completed()
        answers = await asyncio.gather(*(one.go_on(task_id) for one in replicas * 3))
        assert sorted(one.created for one in answers) == [False] * 8 + [True]
        (name,) = {one.next_task_id for one in answers}
        following = await replicas[0].store.get(_USER, name)
        assert following.task.series.previous_task_id == task_id
        assert await replicas[0].waiting() == []
    assert len(await replicas[0].tasks()) == 40


async def test_what_ended_waits_no_longer(replicas: list[Replica]) -> None:
    """A series that has come to its end is asked about once."""
    one = replicas[0]
    task_id = await one.completed()
    assert await one.go_on(task_id, ends=True) == series_api.ContinueSeriesResponse()
    assert await one.waiting() == []
    assert await one.go_on(task_id, ends=True) == series_api.ContinueSeriesResponse()


async def test_who_no_longer_waits(replicas: list[Replica]) -> None:
    """A task that is open again, deleted, or recurs no longer, gets no next occurrence."""
    one = replicas[0]
    reopened, deleted, changed = [await one.completed() for _ in range(3)]
    await one.writer.reopen(_USER, api.ReopenTaskRequest(task_id=reopened))
    await one.writer.delete(_USER, api.DeleteTaskRequest(task_id=deleted))
    no_more = api.UpdateTaskRequest(task_id=changed, recurrence=api.RecurrenceUpdate())
    await one.writer.update(_USER, no_more)
    assert await one.waiting() == []
    for task_id in (reopened, deleted, changed):
        assert await one.go_on(task_id, etag="3") == series_api.ContinueSeriesResponse()
    assert {task.id for task in await one.tasks()} == {reopened, changed}


async def test_computed_from_what_has_changed(replicas: list[Replica]) -> None:
    """A time computed from a task as it was is refused: it has to be computed again."""
    task_id = await replicas[0].completed()
    due = api.DueUpdate(due_time=at("2031-02-01"))
    await replicas[1].writer.update(_USER, api.UpdateTaskRequest(task_id=task_id, due=due))
    with pytest.raises(ConflictError):
        await replicas[0].go_on(task_id)
    assert (await replicas[0].go_on(task_id, etag="3")).created


async def test_nothing_follows_for_an_erased_user(replicas: list[Replica]) -> None:
    """Once a user is closed no next occurrence is created; all that there was is deleted, and counted."""
    one = replicas[0]
    task_id = await one.completed()
    await one.store.close(_USER)
    await one.store.close(_USER)
    with pytest.raises(FailedPreconditionError):
        await one.go_on(task_id)
    assert await Owner(one.store, one.indexes, one.writer).empty(_USER) == 1
    assert await one.tasks() == []
    assert await Owner(one.store, one.indexes, one.writer).empty(_USER) == 0


async def test_the_answer_to_a_lost_commit(replicas: list[Replica]) -> None:
    """A create whose commit's answer was lost is found again by its request_id: one task."""
    one = replicas[0]
    state = one.store.state
    request = api.CreateTaskRequest(title="t", request_id="r", due_time=at("2031-01-01"))
    lost = iter([True])

    def lose(operations: object) -> None:
        if "req:" in str(operations) and next(lost, False):
            raise ConnectionError

    state.after_commit = lose  # type: ignore[attr-defined]
    with pytest.raises(ConnectionError):
        await one.writer.create(_USER, request)
    again = await one.writer.create(_USER, request)
    assert [task.id for task in await one.tasks()] == [again.task.id]
    assert again.task.create_time.ToDatetime(UTC) > datetime.now(UTC) - timedelta(minutes=1)
