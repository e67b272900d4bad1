"""State is the truth: what the scheduler lost, forgot or never heard is made good, once."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from gaggle.reminder.state.v1 import document_pb2
from gaggle.reminder.v1 import reminder_pb2
from gaggle.reminder.v1 import reminder_service_pb2 as api
from services.reminder.index import due_key, shard_of
from services.reminder.sweeping import Findings
from services.runtime.errors import UnavailableError
from tests.reminder.assembled import START, USER, Assembled, assembled
from tests.reminder.reminding import at, before, span


@pytest.fixture
async def service() -> AsyncIterator[Assembled]:
    """The service in one process."""
    async with assembled() as one:
        yield one


async def test_nothing_to_do(service: Assembled) -> None:
    """A reminder that fires by its job leaves the sweep nothing, before and after."""
    await service.task("t", START + timedelta(minutes=5), 60)
    assert await service.sweep.once() == Findings()
    service.clock.go(minutes=4)
    await service.deliver(twice=True)
    service.clock.go(seconds=10)
    assert await service.sweep.once() == Findings()
    assert await service.fired(1) == ["t"]
    counted = service.metrics
    assert counted.scheduled._value.get() == counted.fired.labels("job")._value.get() == 1
    assert counted.lateness._sum.get() == 0
    assert counted.overdue._value.get() == 0


async def test_overdue(service: Assembled) -> None:
    """One whose job is lost fires late, once, and its job does nothing when it comes after all."""
    await service.task("t", START + timedelta(minutes=5), 60)
    jobs = dict(service.scheduler.jobs)
    service.scheduler.jobs.clear()
    service.clock.go(minutes=4, seconds=5)
    assert await service.sweep.once() == Findings(overdue=1)
    assert service.metrics.lateness._sum.get() == 5
    service.scheduler.jobs.update(jobs)
    await service.deliver(twice=True)
    assert await service.sweep.once() == Findings()
    assert await service.fired(1) == ["t"]
    assert await service.states("t") == ["FIRED"]


async def test_wiped(service: Assembled) -> None:
    """When the scheduler's data are gone, every job within the horizon is there again after one sweep."""
    for number in range(5):
        await service.task(f"t{number}", START + timedelta(minutes=5 + number), 60)
    await service.task("later", START + timedelta(days=3), 60)
    assert await service.sweep.once() == Findings()
    jobs = service.scheduler.reminders()
    assert len(jobs) == 6
    service.scheduler.jobs.clear()
    assert await service.sweep.once() == Findings(missing=5)
    assert service.scheduler.reminders().items() < jobs.items()
    # The sixth gets its job when its time comes near.
    service.clock.go(days=2, hours=23, minutes=55)
    found = await service.sweep.once()
    assert found == Findings(missing=1, overdue=5)
    assert len(service.scheduler.reminders()) == 6


async def test_never_made(service: Assembled) -> None:
    """A process that dies between a commit and its job leaves a reminder that the next one gives its job."""
    await service.following.align(USER, service.tasks.put("t", START + timedelta(minutes=5), 60))
    service.make()
    assert service.scheduler.reminders() == {}
    assert await service.sweep.once() == Findings(missing=1)
    assert len(service.scheduler.reminders()) == 1


async def test_scheduler_away(service: Assembled) -> None:
    """While the scheduler is away reminders are set, and the sweep fires what comes due."""
    service.scheduler.away = True
    await service.following.align(USER, service.tasks.put("t", START + timedelta(minutes=1), 0))
    assert await service.sweep.once() == Findings()
    service.clock.go(minutes=1, seconds=4)
    assert await service.sweep.once() == Findings(overdue=1)
    assert await service.fired(1) == ["t"]


async def test_task_gone(service: Assembled) -> None:
    """The round finds reminders whose task was deleted, done or moved without a word, and their jobs go."""
    due = START + timedelta(days=5)
    for task_id in ("gone", "done", "moved", "same"):
        await service.task(task_id, due, 3600)
    del service.tasks.tasks["gone"]
    service.tasks.put("done", due, 3600, done=True)
    service.tasks.put("moved", due + timedelta(days=1), 3600)
    # Three tasks a sweep, thirty-two of the 256 documents of users a sweep.
    total = Findings()
    for _ in range(20):
        found = await service.sweep.once()
        assert found is not None
        total.orphaned += found.orphaned
        total.diverged += found.diverged
    await service.settle()
    assert (total.orphaned, total.diverged) == (1, 2)
    assert await service.states("gone") == ["CANCELLED"]
    assert await service.states("done") == ["CANCELLED"]
    jobs = service.scheduler.reminders()
    assert sorted(name.split("-")[1] for name in jobs) == ["moved", "same"]
    assert jobs[next(name for name in jobs if "moved" in name)] == due + timedelta(hours=23)


async def test_orphaned_job(service: Assembled) -> None:
    """A job that could not be deleted with its reminder goes when its time comes near."""
    await service.task("t", START + timedelta(minutes=5), 60)
    service.scheduler.away = True
    await service.following.align(USER, service.tasks.put("t", START + timedelta(minutes=5), 60, done=True))
    service.make()
    service.scheduler.away = False
    assert await service.sweep.once() == Findings(orphaned=1)
    assert service.scheduler.reminders() == {}
    assert not [key for key in service.state.items if key.startswith("due:")]


async def test_down_over_the_due_time(service: Assembled) -> None:
    """After a week away what came due fires late, or is MISSED where its policy says so; all buckets are passed."""
    await service.task("t", START + timedelta(minutes=5), 60)
    await service.sweep.once()
    service.tasks.put("u", None)
    soon = at(START + timedelta(minutes=6))
    await service.schedule("u", soon, missed=reminder_pb2.MissedPolicy(skip_after=span(3600)))
    service.scheduler.jobs.clear()
    service.clock.go(days=7)
    service.make("two")
    assert await service.sweep.once() == Findings(overdue=1, orphaned=1)
    assert await service.states("t") == ["FIRED"]
    assert await service.states("u") == ["MISSED"]
    assert not [key for key in service.state.items if key.startswith("due:")]
    assert await service.fired(1) == ["t"]


async def test_clock_set_forward_and_back(service: Assembled) -> None:
    """A clock that jumps skips no reminder and doubles none."""
    await service.task("near", START + timedelta(minutes=30), 0)
    await service.task("far", START + timedelta(hours=3), 0)
    await service.sweep.once()
    # An hour ahead: the scheduler's timer goes on as before, the sweep sees what is due.
    service.clock.go(hours=1)
    assert await service.sweep.once() == Findings(overdue=1)
    # Back again, to before it fired: it does not fire a second time, and the far one is not early.
    service.clock.go(hours=-1)
    await service.task("new", START + timedelta(minutes=2), 0)
    service.clock.go(minutes=31)
    await service.deliver(twice=True)
    assert await service.sweep.once() == Findings()
    (data,) = [data for name, (_, data) in service.scheduler.jobs.items() if "far" in name]
    assert isinstance(data, document_pb2.JobData)
    with pytest.raises(UnavailableError, match="too early"):
        await service.firing.fire(data.user_id, data.task_id, data.reminder_id, data.occurrence, by="job")
    service.clock.go(hours=3)
    await service.deliver()
    assert sorted(await service.fired(3)) == ["far", "near", "new"]


async def test_lease(service: Assembled) -> None:
    """Two processes do not sweep at once; the second takes over when the first is gone, and doubts its jobs."""
    await service.task("t", START + timedelta(minutes=5), 60)
    assert await service.sweep.once() is not None
    service.make("two")
    assert await service.sweep.once() is None
    service.scheduler.jobs.clear()
    service.clock.go(seconds=61)
    assert await service.sweep.once() == Findings(missing=1)


async def test_task_service_away(service: Assembled) -> None:
    """While the task service is away a reminder waits for it, half a minute, and then fires unchecked."""
    await service.task("t", START + timedelta(minutes=1), 0)
    service.tasks.away = True
    service.clock.go(minutes=1, seconds=1)
    with pytest.raises(UnavailableError):
        await service.deliver()
    assert await service.sweep.once() == Findings()
    service.clock.go(seconds=10)
    assert await service.sweep.once() == Findings(left=1)
    assert service.metrics.overdue._value.get() == 1
    service.clock.go(seconds=20)
    await service.deliver()
    assert await service.fired(1) == ["t"]
    assert b'"task_unchecked":true' in next(payload for _, payload in service.broker.published if b"r.due" in payload)


async def test_changed_without_a_word(service: Assembled) -> None:
    """When a job fires for a task that has been moved since, nothing is told but the new time."""
    await service.task("t", START + timedelta(minutes=1), 0)
    service.tasks.put("t", START + timedelta(minutes=9), 0)
    service.clock.go(minutes=1, seconds=1)
    await service.deliver()
    await service.settle()
    assert await service.states("t") == ["SCHEDULED"]
    service.clock.go(minutes=8)
    await service.deliver()
    assert await service.fired(1) == ["t"]


async def test_many_in_one_bucket(service: Assembled) -> None:
    """More reminders of five minutes than a document holds spill into chunks; each fires once, and all of it goes."""
    count = 300
    due = START + timedelta(minutes=5)
    # All in one of the sixteen documents.
    shards: dict[str, list[str]] = {}
    for number in range(count * 20):
        shards.setdefault(service_key(f"t{number}"), []).append(f"t{number}")
    tasks = max(shards.values(), key=len)[:count]
    for task_id in tasks:
        await service.task(task_id, due, 0)
    assert any(key.endswith(":c0") for key in service.state.items)
    service.scheduler.jobs.clear()
    assert (await service.sweep.once() or Findings()).missing == count
    service.scheduler.jobs.clear()
    service.clock.go(minutes=5, seconds=5)
    assert (await service.sweep.once() or Findings()).overdue == count
    assert sorted(await service.fired(count)) == sorted(tasks)
    service.clock.go(minutes=15)
    assert await service.sweep.once() == Findings()
    assert not [key for key in service.state.items if key.startswith("due:")]


async def test_bounded_per_task(service: Assembled) -> None:
    """Of one task at most sixteen reminders are to fire."""
    service.tasks.put("t", START + timedelta(days=1))
    times = [before(60 * number) for number in range(10)]
    await service.schedule("t", *times)
    with pytest.raises(Exception, match="the limit is 16"):
        await service.schedule("t", *[before(3600 + 60 * number) for number in range(10)])
    assert len(await service.states("t")) == 10


async def test_late_news_of_a_task(service: Assembled) -> None:
    """What came due while a task's event was under way fires late; what had gone by when it was made does not."""
    task = service.tasks.put("t", START + timedelta(minutes=20), 60, 3600)
    service.clock.go(minutes=30)
    await service.following.align(USER, task, since=START)
    await service.settle()
    assert sorted(await service.states("t")) == ["MISSED", "SCHEDULED"]
    await service.deliver()
    assert await service.fired(1) == ["t"]


async def test_an_older_word_changes_nothing(service: Assembled) -> None:
    """Calls and events of a task may come in any order; the newest revision holds."""
    older = service.tasks.put("t", START + timedelta(hours=2), 60)
    newer = service.tasks.put("t", START + timedelta(hours=3), 60)
    await service.following.align(USER, newer)
    await service.following.align(USER, older)
    await service.settle()
    assert list(service.scheduler.reminders().values()) == [START + timedelta(hours=2, minutes=59)]


async def test_refused_past_leaves_nothing(service: Assembled) -> None:
    """If one of several is refused, none is set."""
    service.tasks.put("t", START + timedelta(days=1))
    with pytest.raises(Exception, match=r"reminders\[1\]"):
        await service.schedule("t", before(60), at(START - timedelta(minutes=2)), past=api.PAST_POLICY_REFUSE)
    assert await service.store.find(USER, "t") is None


def service_key(task_id: str) -> str:
    """Give the document that a task's reminders are entered in."""
    return due_key(0, shard_of(USER, task_id))
