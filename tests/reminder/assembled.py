"""The reminder service in one process, on a clock, a scheduler and a task service of the test's own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf import any_pb2
from google.protobuf.message import Message

from gaggle.reminder.v1 import reminder_pb2
from gaggle.reminder.v1 import reminder_service_pb2 as api
from gaggle.task.v1 import task_pb2
from services.reminder.arming import Arming
from services.reminder.firing import Firing
from services.reminder.following import Following
from services.reminder.index import UserIndex
from services.reminder.metrics import ReminderMetrics
from services.reminder.settings import ReminderSettings
from services.reminder.store import ReminderStore
from services.reminder.sweeping import Sweep
from services.reminder.writing import Writer
from services.runtime.errors import UnavailableError
from services.runtime.identity import Caller
from services.runtime.jobs import JobEvent
from services.runtime.telemetry import Metrics
from tests.runtime.memory import MemoryBroker, MemoryState, make_outbox, settled

START = datetime(2026, 3, 2, 12, 0, 7, tzinfo=UTC)
USER = "ann"


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> datetime:
        return self.time

    def go(self, **by: float) -> None:
        """Let time pass, or set the clock back."""
        self.time += timedelta(**by)


class Scheduler:
    """Jobs that nobody delivers but the test."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[datetime, Message]] = {}
        self.away = False

    async def schedule(self, name: str, due: datetime, data: Message) -> bool:
        if self.away:
            raise UnavailableError("scheduler")
        if name in self.jobs:
            return False
        self.jobs[name] = (due, data)
        return True

    async def delete(self, name: str) -> None:
        if self.away:
            raise UnavailableError("scheduler")
        self.jobs.pop(name, None)

    def reminders(self) -> dict[str, datetime]:
        """The jobs that are for a reminder."""
        return {name: due for name, (due, _) in self.jobs.items() if name.startswith("reminder-")}


class TaskService:
    """Tasks as the test says they are."""

    def __init__(self) -> None:
        self.tasks: dict[str, task_pb2.Task] = {}
        self.away = False

    async def find(self, task_id: str, token: str) -> task_pb2.Task | None:
        del token
        if self.away:
            raise UnavailableError("task")
        return self.tasks.get(task_id)

    def put(self, task_id: str, due_at: datetime | None, *offsets: float, done: bool = False) -> task_pb2.Task:
        """Create or change a task."""
        before = self.tasks.get(task_id)
        task = task_pb2.Task(id=task_id, title=f"task {task_id}", time_zone="UTC")
        task.etag = str(int(before.etag) + 1 if before else 1)
        task.status = task_pb2.TASK_STATUS_COMPLETED if done else task_pb2.TASK_STATUS_OPEN
        if due_at is not None:
            task.due_time.FromDatetime(due_at)
        for offset in offsets:
            task.reminder_offsets.add().FromTimedelta(timedelta(seconds=offset))
        self.tasks[task_id] = task
        return task


@dataclass
class Assembled:
    """The parts, and what a test does with them."""

    state: MemoryState = field(default_factory=MemoryState)
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    scheduler: Scheduler = field(default_factory=Scheduler)
    tasks: TaskService = field(default_factory=TaskService)
    clock: Clock = field(default_factory=Clock)
    settings: ReminderSettings = field(
        default_factory=lambda: ReminderSettings.model_validate(
            {"app_id": "reminder", "port": 1, "sidecar_port": 1, "app_api_token": "t", "round_tasks": 3}
        )
    )

    def __post_init__(self) -> None:
        self.outbox = make_outbox(self.state, self.broker)
        self.metrics = ReminderMetrics(Metrics().registry)
        self.make()

    def make(self, holder: str = "one") -> None:
        """Make the parts that keep something in memory, as a process that starts does."""
        self.store = ReminderStore(self.state, self.outbox, UserIndex(self.state), self.clock)  # type: ignore[arg-type]
        self.arming = Arming(self.scheduler, self.metrics)  # type: ignore[arg-type]
        self.store.committed = self.arming.committed
        tasks: Any = self.tasks
        self.firing = Firing(self.store, tasks, lambda _user: "token", self.settings, self.metrics)
        self.following = Following(self.store)
        self.writer = Writer(self.store, tasks, check_tasks=True)
        parts = (self.store, self.firing, self.following, self.arming, tasks, lambda _user: "token")
        self.sweep = Sweep(*parts, self.settings, self.metrics, holder=holder)

    async def settle(self) -> None:
        """See that the line of jobs is worked through, by the caller's own hands."""
        while not self.arming._queue.empty():
            order = self.arming._queue.get_nowait()
            await self.arming._done(order)

    async def task(self, task_id: str, due_at: datetime | None, *offsets: float) -> None:
        """Have a task, its reminders and their jobs."""
        await self.following.align(USER, self.tasks.put(task_id, due_at, *offsets))
        await self.settle()

    async def schedule(self, task_id: str, *when: reminder_pb2.ReminderTime, **fields: Any) -> list[Any]:
        """Set reminders as a user does."""
        caller = Caller(USER, frozenset(), "", "gaggle", 0, 0, "token")
        request = api.ScheduleRemindersRequest(task_id=task_id, reminders=when, **fields)
        response = await self.writer.schedule(caller, request)
        await self.settle()
        return list(response.reminders)

    async def deliver(self, *, twice: bool = False) -> None:
        """Deliver every job whose time has come."""
        for name, (due, data) in list(self.scheduler.jobs.items()):
            if due <= self.clock.time:
                packed = any_pb2.Any()
                packed.Pack(data)
                for _ in range(2 if twice else 1):
                    await self.firing.on_job(JobEvent(name, packed))
                self.scheduler.jobs.pop(name, None)

    async def fired(self, count: int) -> list[str]:
        """Wait until the broker has so many reminder.due, and no more; gives the tasks they are of."""
        await settled(lambda: len(self._due()) >= count)
        await self.outbox.stop()
        await self.outbox.start()
        assert len(self._due()) == count
        return self._due()

    def _due(self) -> list[str]:
        found = [payload.decode() for _, payload in self.broker.published if b'"reminder.due"' in payload]
        return [text.split('"entity_id":"')[1].split('"')[0] for text in found]

    async def states(self, task_id: str) -> list[str]:
        """The states of a task's reminders, in the order in which they were set."""
        document = await self.store.find(USER, task_id)
        assert document is not None
        names = (reminder_pb2.ReminderState.Name(one.reminder.state) for one in document.reminders)
        return [name.removeprefix("REMINDER_STATE_") for name in names]


@asynccontextmanager
async def assembled() -> AsyncIterator[Assembled]:
    """Make one, with its outbox at work."""
    one = Assembled()
    await one.outbox.start()
    try:
        yield one
    finally:
        await one.outbox.stop(0.1)
