"""Tasks, their lists and their index against a model that is a dictionary."""

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from unittest.mock import patch

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import Phase, assume, settings, strategies
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from gaggle.owner.v1 import owner_service_pb2 as owner_api
from gaggle.task.v1 import task_pb2
from gaggle.task.v1 import task_service_pb2 as api
from services.runtime.errors import TooLargeError
from services.task.index import Indexes
from services.task.owning import Owner
from services.task.reading import Reader
from services.task.store import TaskStore
from services.task.writing import Writer
from tests.runtime.memory import MemoryBroker, MemoryState, make_outbox, settled

USER = "an:ev|il us%er"
MOST_OPEN = 9
T = TypeVar("T")
_ORDERS = api.TaskOrder.values()
_DAY = datetime(2026, 3, 28, tzinfo=UTC)
_days = strategies.one_of(strategies.none(), strategies.integers(0, 4))
_titles = strategies.sampled_from(["Milch kaufen", "Straße kehren", "STRASSE", "call Ann", "x"])
_tags = strategies.lists(strategies.sampled_from(["home", "work", "Home"]), unique=True, max_size=3)
_priorities = strategies.sampled_from(task_pb2.TaskPriority.values())


def _stamp(day: int | None) -> Timestamp | None:
    if day is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(_DAY + timedelta(days=day))
    return stamp


class Lists(RuleBasedStateMachine):
    """Creates, changes, completions, reopenings and deletions in any order."""

    tasks: Bundle[str] = Bundle("tasks")

    @initialize()
    def begin(self) -> None:
        # Small numbers, so that a few tasks cross every border.
        self.patches = [
            patch.multiple("services.task.index", BUCKET_ENTRIES=3),
            patch.multiple("services.task.reading", MAX_EXAMINED=4, MAX_BUCKETS=2, _AT_ONCE=2),
        ]
        for one in self.patches:
            one.start()
        self.loop = asyncio.new_event_loop()
        self.state = MemoryState()
        self.broker = MemoryBroker()
        self.outbox = make_outbox(self.state, self.broker)
        self.run(self.outbox.start())
        indexes = Indexes(self.state, MOST_OPEN)  # type: ignore[arg-type]
        self.store = TaskStore(self.state, self.outbox, indexes)  # type: ignore[arg-type]
        self.writer = Writer(self.store)
        self.reader = Reader(self.store, indexes)
        self.owner = Owner(self.store, indexes, self.writer)
        self.model: dict[str, task_pb2.Task] = {}
        self.deleted: set[str] = set()
        self.count = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return

        async def end() -> None:
            await settled(lambda: self.outbox._queued == 0)
            await self.outbox.stop()

        self.run(end())
        revisions = sum(int(task.etag) for task in self.model.values())
        told = len(self.broker.published)
        assert told >= revisions + 2 * len(self.deleted)
        self.loop.close()
        for one in self.patches:
            one.stop()

    @rule(target=tasks, title=_titles, day=_days, tags=_tags, priority=_priorities)
    def create(self, title: str, day: int | None, tags: list[str], priority: Any) -> Any:
        self.count += 1
        request = api.CreateTaskRequest(
            task_id=f"t{self.count}", title=title, due_time=_stamp(day), tags=tags, priority=priority
        )
        if self.open_count() == MOST_OPEN:
            try:
                self.run(self.writer.create(USER, request))
            except TooLargeError:
                return multiple()
            raise AssertionError("more open tasks than allowed")
        created = self.run(self.writer.create(USER, request)).task
        self.model[created.id] = created
        return created.id

    def open_count(self) -> int:
        return sum(task.status == task_pb2.TASK_STATUS_OPEN for task in self.model.values())

    def again(self, task_id: str) -> None:
        """Take over what the change made of a task; GetTask is held to the model by the etag alone."""
        before = self.model[task_id]
        document = self.run(self.store.get(USER, task_id))
        self.model[task_id] = document.task
        self.model[task_id].etag = str(document.revision)
        assert document.revision - int(before.etag) in (0, 1)

    @rule(task_id=tasks, title=_titles, day=_days, priority=_priorities)
    def update(self, task_id: str, title: str, day: int | None, priority: Any) -> None:
        request = api.UpdateTaskRequest(task_id=task_id, title=title, priority=priority)
        request.due.CopyFrom(api.DueUpdate(due_time=_stamp(day)))
        self.run(self.writer.update(USER, request))
        self.again(task_id)
        task = self.model[task_id]
        assert (task.title, task.priority, task.HasField("due_time")) == (title, priority, day is not None)

    @rule(task_id=tasks)
    def complete(self, task_id: str) -> None:
        self.run(self.writer.complete(USER, api.CompleteTaskRequest(task_id=task_id)))
        self.again(task_id)
        assert self.model[task_id].status == task_pb2.TASK_STATUS_COMPLETED

    @rule(task_id=tasks)
    def reopen(self, task_id: str) -> None:
        assume(self.model[task_id].status == task_pb2.TASK_STATUS_OPEN or self.open_count() < MOST_OPEN)
        self.run(self.writer.reopen(USER, api.ReopenTaskRequest(task_id=task_id)))
        self.again(task_id)
        assert self.model[task_id].status == task_pb2.TASK_STATUS_OPEN

    @rule(target=tasks, task_id=consumes(tasks))
    def delete(self, task_id: str) -> Any:
        self.run(self.writer.delete(USER, api.DeleteTaskRequest(task_id=task_id)))
        self.deleted.add(task_id)
        del self.model[task_id]
        return multiple()

    @rule(
        status=strategies.sampled_from(task_pb2.TaskStatus.values()),
        order=strategies.sampled_from(_ORDERS),
        due_from=_days,
        due_before=_days,
        priorities=strategies.lists(_priorities, max_size=2),
        tags=_tags,
        text=strategies.sampled_from(["", "strasse", "KAUF milch", "home", "nothing of it"]),
        size=strategies.integers(1, 4),
    )
    def listed(self, size: int, **filters: Any) -> None:
        request = api.ListTasksRequest(
            page_size=size,
            status=filters["status"],
            order_by=filters["order"],
            due_from=_stamp(filters["due_from"]),
            due_before=_stamp(filters["due_before"]),
            priorities=filters["priorities"],
            tags=filters["tags"],
            text=filters["text"],
        )
        assert self.read(request) == [one.id for one in self.expected(request)]

    def read(self, request: api.ListTasksRequest) -> list[str]:
        """Read a list to its end."""
        found: list[str] = []
        while True:
            response = self.run(self.reader.tasks(USER, request))
            assert len(response.tasks) <= request.page_size
            found += [one.id for one in response.tasks]
            request.page_token = response.next_page_token
            if not request.page_token:
                return found

    def expected(self, request: api.ListTasksRequest) -> list[task_pb2.Task]:
        """Say what the contract makes of a list."""

        def takes(task: task_pb2.Task) -> bool:
            due = task.due_time.seconds if task.HasField("due_time") else None
            if request.HasField("due_from") and (due is None or due < request.due_from.seconds):
                return False
            if request.HasField("due_before") and (due is None or due >= request.due_before.seconds):
                return False
            text = f"{task.title} {' '.join(task.tags)}".casefold()
            return (
                (not request.status or task.status == request.status)
                and (not request.priorities or task.priority in request.priorities)
                and all(tag in task.tags for tag in request.tags)
                and all(word in text for word in request.text.casefold().split())
            )

        found = [task for task in self.model.values() if takes(task)]
        opened = [task for task in found if task.status == task_pb2.TASK_STATUS_OPEN]
        completed = [task for task in found if task.status == task_pb2.TASK_STATUS_COMPLETED]

        def due(task: task_pb2.Task) -> float:
            return task.due_time.ToNanoseconds() if task.HasField("due_time") else float("inf")

        opened.sort(key=lambda task: -task.create_time.ToNanoseconds())
        if request.order_by == api.TASK_ORDER_DUE_TIME:
            opened.sort(key=due)
        elif request.order_by == api.TASK_ORDER_PRIORITY:
            opened.sort(key=lambda task: (-task.priority, due(task)))
        elif request.order_by == api.TASK_ORDER_UPDATE_TIME:
            opened.sort(key=lambda task: -task.update_time.ToNanoseconds())
        completed.sort(key=lambda task: -task.complete_time.ToNanoseconds())
        return opened + completed

    @invariant()
    def revisions_are_all_there(self) -> None:
        if not hasattr(self, "model"):
            return
        found: dict[str, tuple[int, bool]] = {}
        request = owner_api.ListRevisionsRequest(user_id=USER, page_size=2)
        while True:
            response = self.run(self.owner.revisions(request))
            found |= {one.entity_id: (one.revision, one.deleted) for one in response.revisions}
            request.page_token = response.next_page_token
            if not request.page_token:
                break
        expected = {task.id: (int(task.etag), False) for task in self.model.values()}
        assert {key: value for key, value in found.items() if not value[1]} == expected
        assert {key for key, value in found.items() if value[1]} == self.deleted


class TestLists(Lists.TestCase):  # type: ignore[misc, valid-type]
    """Whatever is done in whatever order, each list, read page by page, is what a plain dictionary would give."""

    # No shrinking: it takes minutes here, and the steps of a failure can be read as they are.
    settings = settings(max_examples=100, stateful_step_count=30, deadline=None, phases=[Phase.reuse, Phase.generate])
