"""A caller's own task id, taken again once its tombstone is gone."""

import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest

from gaggle.task.v1 import task_service_pb2 as api
from services.runtime.errors import AlreadyExistsError
from services.runtime.state import Put, Remove
from services.task.index import TOMBSTONE_SECONDS, Indexes
from services.task.reading import Reader
from services.task.store import TaskStore, task_key
from services.task.writing import Writer
from tests.runtime.memory import MemoryBroker, MemoryState, make_outbox, settled

_USER = "ann"
_KEY = task_key(_USER, "mine")


class _EightDaysLater(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + timedelta(days=8)


class _Tasks:
    """The service's parts on a store in memory, which keeps how long a task is to be kept."""

    def __init__(self) -> None:
        self.state = MemoryState()
        self.broker = MemoryBroker()
        self.outbox = make_outbox(self.state, self.broker)
        self.ttl_seconds = 0
        self.state.before_commit = self._note
        indexes = Indexes(self.state, 100)  # type: ignore[arg-type]
        self.store = TaskStore(self.state, self.outbox, indexes)  # type: ignore[arg-type]
        self.writer = Writer(self.store)
        self.reader = Reader(self.store, indexes)

    def _note(self, operations: Sequence[Put | Remove]) -> None:
        for one in operations:
            if isinstance(one, Put) and one.key == _KEY:
                self.ttl_seconds = one.ttl_seconds

    def run_out(self) -> None:
        """Take the tombstone away, as the store does when its time is over."""
        assert self.ttl_seconds == TOMBSTONE_SECONDS
        del self.state.items[_KEY]

    async def listed(self) -> list[str]:
        """The titles of the user's tasks."""
        return [one.title for one in (await self.reader.tasks(_USER, api.ListTasksRequest())).tasks]

    async def told(self, count: int) -> list[dict[str, Any]]:
        """What was published, once it is so much."""
        await settled(lambda: len(self.broker.published) >= count)
        assert len(self.broker.published) == count
        return [json.loads(payload) for _, payload in self.broker.published]


@pytest.fixture
async def tasks() -> AsyncIterator[_Tasks]:
    """The parts, at work."""
    one = _Tasks()
    await one.outbox.start()
    yield one
    await one.outbox.stop(0.1)


async def test_an_id_taken_again(tasks: _Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """After seven days an id may be another task's, whose events have an incarnation and ids of their own."""
    create = api.CreateTaskRequest(task_id="mine", title="first")
    await tasks.writer.create(_USER, create)
    await tasks.writer.complete(_USER, api.CompleteTaskRequest(task_id="mine"))
    await tasks.writer.delete(_USER, api.DeleteTaskRequest(task_id="mine"))
    with pytest.raises(AlreadyExistsError):
        await tasks.writer.create(_USER, create)
    tasks.run_out()
    monkeypatch.setattr("services.task.writing.datetime", _EightDaysLater)
    again = await tasks.writer.create(_USER, api.CreateTaskRequest(task_id="mine", title="second"))
    assert (again.task.id, again.task.etag) == ("mine", "1")
    assert again.task.create_time.ToDatetime(UTC) > datetime.now(UTC) + timedelta(days=7)
    assert await tasks.listed() == ["second"]
    await tasks.writer.complete(_USER, api.CompleteTaskRequest(task_id="mine"))
    await tasks.writer.delete(_USER, api.DeleteTaskRequest(task_id="mine"))
    assert await tasks.listed() == []

    events = await tasks.told(6)
    assert [one["event_type"] for one in events] == ["task.created", "task.completed", "task.deleted"] * 2
    assert [one["revision"] for one in events] == ["1", "2", "3"] * 2
    first, second = ({one["incarnation"] for one in half} for half in (events[:3], events[3:]))
    assert len(first) == len(second) == 1
    assert min(second) - max(first) >= timedelta(days=7).total_seconds()
    assert len({one["event_id"] for one in events}) == 6
