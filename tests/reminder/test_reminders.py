"""Reminders on the real mesh: set, moved, put off, cancelled, fired."""

from datetime import timedelta

import pytest

from gaggle.reminder.v1 import reminder_pb2
from gaggle.reminder.v1 import reminder_service_pb2 as api
from tests.conditions import eventually
from tests.reminder.reminding import Reminding, ahead, at, before, moment, now, span, states
from tests.task.tasking import told as task_told

pytestmark = pytest.mark.mesh

_SCHEDULED = reminder_pb2.REMINDER_STATE_SCHEDULED
_FIRED = reminder_pb2.REMINDER_STATE_FIRED
_CANCELLED = reminder_pb2.REMINDER_STATE_CANCELLED
_DAY = 86_400


async def test_a_tasks_reminder_fires_once_and_tells_what_of(reminding: Reminding) -> None:
    """A task's offset becomes one reminder.due, with the task in it, in the trace of the call that made the task."""
    due = ahead(12)
    task_id = await reminding.task(due, 10, title="Water the plants", time_zone="Europe/Berlin")
    (fired,) = await reminding.until(task_id, 1, _FIRED)
    scheduled, told = await reminding.told(task_id, 2)
    assert (scheduled["type"], told["type"]) == ("reminder.scheduled", "reminder.due")
    assert told["task_id"] == task_id
    assert told["user_id"] == reminding.user
    assert told["title"] == "Water the plants"
    assert told["time_zone"] == "Europe/Berlin"
    assert told["occurrence"] == 1
    assert told["reminder_id"] == fired.id
    assert told["due_at"] == fired.due_at.ToJsonString()
    assert told["remind_at"] == moment(due - timedelta(seconds=10)).ToJsonString()
    (created,) = await task_told(reminding.mesh, reminding.user, task_id)
    assert told["trace"] == scheduled["trace"] == created.metadata["traceparent"][3:35]
    assert "task_unchecked" not in told
    late = fired.fire_time.ToDatetime() - fired.remind_at.ToDatetime()
    assert timedelta(0) <= late < timedelta(seconds=3)


async def test_reminders_follow_their_task(reminding: Reminding) -> None:
    """They move with the due time, end when the task is done, come again when it is reopened, and go with it."""
    due = ahead(3 * _DAY)
    task_id = await reminding.task(due, _DAY, 3600)
    first = await reminding.until(task_id, 2, _SCHEDULED)
    assert [one.occurrence for one in first] == [1, 1]

    later = due + timedelta(days=1)
    await reminding.tasker("UpdateTask", task_id=task_id, due={"due_time": moment(later)})

    async def moved() -> bool:
        found = await reminding.all(task_id)
        return [one.remind_at for one in found] == [
            moment(later - timedelta(days=1)),
            moment(later - timedelta(hours=1)),
        ]

    await eventually(moved, within=20, what="reminders moved")
    await reminding.tasker("CompleteTask", task_id=task_id)
    await reminding.until(task_id, 2, _CANCELLED)
    await reminding.tasker("ReopenTask", task_id=task_id)
    again = await reminding.until(task_id, 2, _SCHEDULED)
    assert {one.id for one in again} == {one.id for one in first}
    assert [one.occurrence for one in again] == [3, 3]
    await reminding.tasker("UpdateTask", task_id=task_id, reminder_offsets={"reminder_offsets": [span(3600)]})
    await reminding.until(task_id, 1, _SCHEDULED)
    await reminding.tasker("DeleteTask", task_id=task_id)
    await reminding.until(task_id, 2, _CANCELLED)


async def test_a_users_own_reminders_stand_beside_the_tasks(reminding: Reminding) -> None:
    """What a user sets here is not taken away by a change of the task's offsets; the same one is not set twice."""
    due = ahead(3 * _DAY)
    task_id = await reminding.task(due, 3600)
    own = at(ahead(2 * _DAY))
    (one,) = await reminding.schedule(task_id, own)
    (again,) = await reminding.schedule(task_id, own)
    assert (one.id, one.occurrence, one.etag) == (again.id, again.occurrence, again.etag)
    assert one.title == "a task"
    await reminding.until(task_id, 2, _SCHEDULED)
    await reminding.tasker("UpdateTask", task_id=task_id, reminder_offsets={"reminder_offsets": []})
    (left,) = await reminding.until(task_id, 1, _SCHEDULED)
    assert left.id == one.id


async def test_snooze(reminding: Reminding) -> None:
    """One that has fired is put off and fires again, as its next occurrence."""
    task_id = await reminding.task(ahead(1), 0)
    (fired,) = await reminding.until(task_id, 1, _FIRED)
    answer = await reminding("SnoozeReminder", task_id=task_id, reminder_id=fired.id, delay=span(2), request_id="s1")
    assert states([answer.reminder]) == ["SNOOZED"]
    repeated = await reminding("SnoozeReminder", task_id=task_id, reminder_id=fired.id, delay=span(2), request_id="s1")
    assert repeated.reminder.occurrence == answer.reminder.occurrence == 2
    due = await reminding.told(task_id, 2, "reminder.due")
    assert [one["occurrence"] for one in due] == [1, 2]
    (snoozed,) = await reminding.told(task_id, 1, "reminder.snoozed")
    assert snoozed["snoozed_from"] == fired.remind_at.ToJsonString()


async def test_snooze_with_the_task(reminding: Reminding) -> None:
    """The task's due time moves by as much, and its other reminders with it."""
    due = ahead(3600)
    task_id = await reminding.task(due, 1800, 60)
    first, other = await reminding.until(task_id, 2, _SCHEDULED)
    until = first.remind_at.ToDatetime() + timedelta(hours=2)
    answer = await reminding(
        "SnoozeReminder", task_id=task_id, reminder_id=first.id, until=moment(until), snooze_task=True, request_id="s"
    )
    later = due + timedelta(hours=2)
    assert answer.due_at == moment(later)
    assert (await reminding.tasker.get(task_id)).due_time == moment(later)
    found = {one.id: one for one in await reminding.all(task_id)}
    assert found[first.id].remind_at == moment(until)
    assert found[other.id].remind_at == moment(later - timedelta(seconds=60))


async def test_past(reminding: Reminding) -> None:
    """A time gone by is refused, fires at once or is left out, as asked."""
    task_id = await reminding.task(ahead(3600))
    gone = at(ahead(-600))
    (fired,) = await reminding.schedule(task_id, gone, past=api.PAST_POLICY_FIRE)
    (one,) = await reminding.until(task_id, 1, _FIRED)
    assert one.id == fired.id
    (skipped,) = await reminding.schedule(task_id, at(ahead(-700)), past=api.PAST_POLICY_SKIP)
    assert states([skipped]) == ["MISSED"]
    await reminding.told(task_id, 1, "reminder.due")


async def test_cancel(reminding: Reminding) -> None:
    """What is cancelled does not fire, stays cancelled when its task moves, and is told once."""
    task_id = await reminding.task(ahead(3600), 60)
    (one,) = await reminding.until(task_id, 1, _SCHEDULED)
    soon = await reminding.schedule(task_id, at(ahead(3)))
    answer = await reminding("CancelReminders", task_id=task_id)
    assert set(answer.reminder_ids) == {one.id, soon[0].id}
    assert not (await reminding("CancelReminders", task_id=task_id)).reminder_ids
    await reminding.tasker("UpdateTask", task_id=task_id, due={"due_time": moment(ahead(7200))}, title="moved")

    async def told_of_move() -> bool:
        return {found.title for found in await reminding.all(task_id)} == {"moved"}

    await eventually(told_of_move, within=20, what="the new title")
    assert states(await reminding.all(task_id)) == ["CANCELLED", "CANCELLED"]
    causes = await reminding.told(task_id, 2, "reminder.cancelled")
    assert [cause["cause"] for cause in causes] == ["cancelled", "cancelled"]


async def test_list_pages(reminding: Reminding) -> None:
    """Pages bring each task's reminders once, newest task first, and only those that are to fire."""
    tasks = [await reminding.task(ahead(_DAY), 60, 3600) for _ in range(5)]
    for task_id in tasks:
        await reminding.until(task_id, 2, _SCHEDULED)
    await reminding("CancelReminders", task_id=tasks[1])
    seen: list[tuple[str, str]] = []
    token = ""
    while True:
        page = await reminding("ListReminders", page_size=3, page_token=token)
        seen += [(one.task_id, one.id) for one in page.reminders]
        token = page.next_page_token
        if not token:
            break
    assert len(seen) == len(set(seen)) == 8
    order = list(dict.fromkeys(task_id for task_id, _ in seen))
    assert set(order) == set(tasks) - {tasks[1]}


async def test_before_due_moves_by_wall_clock(reminding: Reminding) -> None:
    """A calendar offset is reckoned in the task's zone."""
    due = now().replace(microsecond=0) + timedelta(days=10)
    task_id = await reminding.task(due, time_zone="America/New_York")
    offset = reminder_pb2.CalendarOffset(days=2, time_of_day="09:00")
    one, _ = await reminding.schedule(task_id, reminder_pb2.ReminderTime(calendar_before_due=offset), before(60))
    assert one.time_zone == "America/New_York"
    assert one.remind_at.ToDatetime().minute == 0
