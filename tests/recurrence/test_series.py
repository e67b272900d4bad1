"""What follows a completed task that recurs, on the real mesh."""

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc.aio
import pytest

from gaggle.recurrence.v1 import recurrence_service_pb2 as preview_api
from gaggle.recurrence.v1 import recurrence_service_pb2_grpc as preview_grpc
from gaggle.task.v1 import task_pb2
from gaggle.task.v1 import task_service_pb2 as api
from tests.conditions import eventually
from tests.conversation.talking import refused
from tests.mesh_fixture import Mesh
from tests.recurrence.series import WITHIN, begin, done, local_due
from tests.task.tasking import TIMEOUT_SECONDS, Tasker, at, seconds, told

pytestmark = pytest.mark.mesh

_OPEN = task_pb2.TASK_STATUS_OPEN


@pytest.mark.parametrize(
    ("rule", "zone", "due", "expected"),
    [
        pytest.param(
            "FREQ=MONTHLY;BYMONTHDAY=-1",
            "Europe/Berlin",
            "2031-01-31T09:00+01:00",
            ["2031-02-28T09:00+01:00", "2031-03-31T09:00+02:00"],
            id="last day of the month, over a change of the clocks",
        ),
        pytest.param(
            "FREQ=MONTHLY;BYDAY=3MO",
            "America/New_York",
            "2031-01-20T17:00-05:00",
            ["2031-02-17T17:00-05:00", "2031-03-17T17:00-04:00"],
            id="third Monday",
        ),
        pytest.param(
            "FREQ=DAILY",
            "Europe/Berlin",
            "2031-03-29T02:30+01:00",
            ["2031-03-30T03:30+02:00", "2031-03-31T02:30+02:00"],
            id="an hour that is skipped",
        ),
    ],
)
async def test_the_next_occurrence(tasker: Tasker, rule: str, zone: str, due: str, expected: list[str]) -> None:
    """A completed task is followed by one task, open, like it, due when its rule says on the wall clock of its zone."""
    first = task = await begin(
        tasker, rule, due, zone=zone, description="d", tags=["a"], priority=4, reminder_offsets=seconds(60)
    )
    for number, local in enumerate(expected, start=2):
        before, task = task, await done(tasker, task.id)
        assert (local_due(task), task.status, task.etag) == (local, _OPEN, "1")
        assert (task.title, task.description, list(task.tags), task.priority) == ("again", "d", ["a"], 4)
        assert (task.reminder_offsets, task.recurrence) == (seconds(60), first.recurrence)
        assert (task.series.id, task.series.occurrence) == (first.id, number)
        assert (task.series.previous_task_id, task.series.next_task_id) == (before.id, "")
        assert [one.id for one in await tasker.list(status=_OPEN)] == [task.id]


async def test_one_trace_through_it_all(mesh: Mesh, tasker: Tasker, user: str) -> None:
    """The log shows the completion and what followed from it under one trace."""
    first = await begin(tasker, "FREQ=DAILY", "2031-01-01")
    second = await done(tasker, first.id)

    async def logged() -> list[Any]:
        events = [*(await told(mesh, user, first.id))[1:], *await told(mesh, user, second.id)]
        return events if len(events) == 3 else []

    events = await eventually(logged, within=WITHIN, what="three events")
    assert [one.event_type for one in events] == ["task.completed", "task.updated", "task.created"]
    assert len({one.metadata["traceparent"].split("-")[1] for one in events}) == 1


async def test_an_edit_of_this_one_alone(tasker: Tasker) -> None:
    """What was changed for one occurrence alone, its due time too, is as before with the next one."""
    first = await begin(
        tasker, "FREQ=WEEKLY", "2031-01-06T09:00", zone="Europe/Rome", tags=["a"], reminder_offsets=seconds(60)
    )
    await tasker(
        "UpdateTask",
        task_id=first.id,
        scope=api.EDIT_SCOPE_THIS,
        title="just this once",
        priority=task_pb2.TASK_PRIORITY_URGENT,
        tags=api.TagsUpdate(tags=["b"]),
        due=api.DueUpdate(due_time=at("2031-01-08T11:00"), time_zone="Asia/Tokyo"),
        reminder_offsets=api.ReminderOffsetsUpdate(),
    )
    await tasker("UpdateTask", task_id=first.id, description="for all to come")
    changed = await tasker.get(first.id)
    assert (changed.title, changed.due_time) == ("just this once", at("2031-01-08T11:00"))
    second = await done(tasker, first.id)
    assert (second.title, second.priority, list(second.tags)) == ("again", 0, ["a"])
    assert (second.description, second.reminder_offsets) == ("for all to come", seconds(60))
    assert (second.due_time, second.time_zone) == (at("2031-01-13T09:00"), "Europe/Rome")


async def test_an_edit_of_all_to_come(tasker: Tasker) -> None:
    """Without a scope a change reaches those to come, and a new due time moves the series, whose count goes on."""
    first = await begin(tasker, "FREQ=WEEKLY;COUNT=3", "2031-01-06T09:00")
    second = await done(tasker, first.id)
    await tasker("UpdateTask", task_id=second.id, title="renamed", due=api.DueUpdate(due_time=at("2031-01-15T17:00")))
    third = await done(tasker, second.id)
    assert (third.title, third.due_time, third.series.occurrence) == ("renamed", at("2031-01-22T17:00"), 3)
    await tasker("CompleteTask", task_id=third.id)
    await _nothing_follows(tasker, third.id)


async def test_a_new_rule(tasker: Tasker) -> None:
    """A new rule begins at the occurrence that got it; without a rule nothing follows."""
    first = await begin(tasker, "FREQ=WEEKLY;COUNT=2", "2031-01-06T09:00")
    daily = task_pb2.Recurrence(rule="FREQ=DAILY;COUNT=3")
    second = await done(tasker, first.id)
    await tasker("UpdateTask", task_id=second.id, recurrence=api.RecurrenceUpdate(recurrence=daily))
    third = await done(tasker, second.id)
    assert (third.due_time, third.series.occurrence, third.series.id) == (at("2031-01-14T09:00"), 2, first.id)
    await tasker("UpdateTask", task_id=third.id, recurrence=api.RecurrenceUpdate())
    assert not (await tasker.get(third.id)).HasField("series")
    await tasker("CompleteTask", task_id=third.id)
    await _nothing_follows(tasker, third.id)


@pytest.mark.parametrize("rule", ["FREQ=DAILY;COUNT=2", "FREQ=DAILY;UNTIL=20310102"])
async def test_a_series_ends(tasker: Tasker, rule: str) -> None:
    """After the last occurrence, by count or by date, nothing follows."""
    second = await done(tasker, (await begin(tasker, rule, "2031-01-01T09:00")).id)
    await tasker("CompleteTask", task_id=second.id)
    await _nothing_follows(tasker, second.id)


async def test_completed_again(tasker: Tasker) -> None:
    """A task that is reopened and completed again has the one next occurrence that it had, even a deleted one."""
    first = await begin(tasker, "FREQ=DAILY", "2031-01-01T09:00")
    second = await done(tasker, first.id)
    for _ in range(2):
        await tasker("ReopenTask", task_id=first.id)
        await tasker("CompleteTask", task_id=first.id)
        await tasker("DeleteTask", task_id=second.id)
    marker = await done(tasker, (await begin(tasker, "FREQ=DAILY", "2031-01-01T09:00")).id)
    assert [one.id for one in await tasker.list(status=_OPEN)] == [marker.id]


async def test_what_was_missed(tasker: Tasker) -> None:
    """Done ten days late, the next one is the first that lies ahead, or each that was missed, as asked."""
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=10, minutes=5)
    skipping = await begin(tasker, "FREQ=DAILY", start.isoformat())
    each = await begin(tasker, "FREQ=DAILY", start.isoformat(), each=True)
    skipped = await done(tasker, skipping.id)
    assert (skipped.due_time.ToDatetime(UTC), skipped.series.occurrence) == (start + timedelta(days=11), 12)
    second = await done(tasker, each.id)
    assert (second.due_time.ToDatetime(UTC), second.series.occurrence) == (start + timedelta(days=1), 2)
    third = await done(tasker, second.id)
    assert third.due_time.ToDatetime(UTC) == start + timedelta(days=2)


async def _nothing_follows(tasker: Tasker, task_id: str) -> None:
    """A series completed later has its next one, and this one still has none."""
    marker = await done(tasker, (await begin(tasker, "FREQ=DAILY", "2031-01-01T09:00")).id)
    assert (await tasker.get(task_id)).series.next_task_id == ""
    assert [one.id for one in await tasker.list(status=_OPEN)] == [marker.id]
    await tasker("DeleteTask", task_id=marker.id)


class Previewer:
    """Calls PreviewOccurrences."""

    def __init__(self, channel: grpc.aio.Channel, mesh: Mesh, user: str) -> None:
        self._stub: Any = preview_grpc.RecurrenceServiceStub(channel)
        self._metadata = mesh.metadata(user)

    async def __call__(self, rule: str, **fields: Any) -> Any:
        request = preview_api.PreviewOccurrencesRequest(recurrence=task_pb2.Recurrence(rule=rule), **fields)
        return await self._stub.PreviewOccurrences(request, metadata=self._metadata, timeout=TIMEOUT_SECONDS)


async def test_a_preview(mesh: Mesh, user: str) -> None:
    """A preview shows a rule's times, numbered, in UTC and on the wall clock, and whether there are more."""
    async with mesh.channel("recurrence") as channel:
        preview = Previewer(channel, mesh, user)
        zone = {"time_zone": "Europe/Berlin"}
        shown = await preview("FREQ=MONTHLY;BYMONTHDAY=-1;COUNT=4", start_time=at("2031-01-31T08:00"), **zone)
        assert [(one.occurrence, one.local_time) for one in shown.occurrences] == [
            (1, "2031-01-31T09:00:00+01:00"),
            (2, "2031-02-28T09:00:00+01:00"),
            (3, "2031-03-31T09:00:00+02:00"),
            (4, "2031-04-30T09:00:00+02:00"),
        ]
        assert shown.complete
        assert shown.occurrences[2].time == at("2031-03-31T07:00")
        some = await preview("FREQ=DAILY", start_time=at("2031-01-01"), after_time=at("2031-02-01"), max_occurrences=2)
        assert [one.occurrence for one in some.occurrences] == [33, 34]
        assert not some.complete
        many = await preview("FREQ=DAILY", max_occurrences=2**31 - 1)
        assert len(many.occurrences) == 100
        for rule, fields, named in (
            ("FREQ=NEVER", {}, "recurrence.rule"),
            ("", {}, "recurrence.rule"),
            ("FREQ=DAILY", {"time_zone": "Nowhere"}, "time_zone"),
            ("FREQ=DAILY", {"max_occurrences": -1}, "max_occurrences"),
            ("FREQ=DAILY", {"start_time": at("1066-01-01")}, "start_time"),
        ):
            answer = await refused(preview(rule, **fields))
            assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", (named,))


async def test_a_deleted_one_ends_its_series(tasker: Tasker) -> None:
    """Deleting the open occurrence ends the series."""
    first = await begin(tasker, "FREQ=DAILY", "2031-01-01T09:00")
    second = await done(tasker, first.id)
    await tasker("DeleteTask", task_id=second.id)
    marker = await done(tasker, (await begin(tasker, "FREQ=DAILY", "2031-01-01T09:00")).id)
    assert [one.id for one in await tasker.list(status=_OPEN)] == [marker.id]
