"""Tasks: created, read, listed, changed, completed, reopened and deleted, on the real mesh."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf import json_format

from gaggle.task.v1 import task_pb2
from gaggle.task.v1 import task_service_pb2 as api
from tests.conditions import eventually
from tests.conversation.talking import refused
from tests.mesh_fixture import Mesh
from tests.task.tasking import Tasker, at, seconds, told

pytestmark = pytest.mark.mesh

_WITHIN = 30.0
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_FULL: dict[str, Any] = {
    "title": "Süßes kaufen",
    "description": "für Ann\nund Bob",
    "priority": task_pb2.TASK_PRIORITY_HIGH,
    "tags": ["home", "Einkauf"],
    "due_time": at("2031-05-01T07:30:00.123456"),
    "time_zone": "Europe/Berlin",
    "reminder_offsets": seconds(0, 3600),
    "recurrence": task_pb2.Recurrence(rule="FREQ=WEEKLY;BYDAY=TH", catch_up=task_pb2.CATCH_UP_EACH),
    "origin": task_pb2.Origin(conversation_id="c-1", message_id="m-1"),
}


async def test_a_new_task_is_there_at_once(tasker: Tasker) -> None:
    """What was created is read back as it was answered, with an id of the server, revision 1, open."""
    before = datetime.now(UTC)
    created = await tasker.create(**_FULL)
    assert _UUID7.fullmatch(created.id)
    for name, value in _FULL.items():
        assert getattr(created, name) == value, name
    assert (created.etag, created.status) == ("1", task_pb2.TASK_STATUS_OPEN)
    assert (created.series.id, created.series.occurrence) == (created.id, 1)
    assert created.series.occurrence_time == created.series.start_time == created.due_time
    assert created.create_time == created.update_time
    assert abs(created.create_time.ToDatetime(UTC) - before) < timedelta(minutes=1)
    assert await tasker.get(created.id) == created
    plain = await tasker.create("plain", task_id="Mine_1.x-y")
    assert (plain.id, plain.time_zone, plain.HasField("series")) == ("Mine_1.x-y", "UTC", False)


async def test_a_repeated_request_has_one_effect(tasker: Tasker) -> None:
    """Each mutation, repeated with its request_id, gives its first answer and has no second effect."""
    fields = {name: value for name, value in _FULL.items() if name != "recurrence"}
    first = await tasker("CreateTask", request_id="r-1", **fields)
    assert await tasker("CreateTask", request_id="r-1", **fields) == first
    other = await refused(tasker("CreateTask", request_id="r-1", title="another"))
    assert (other.code, other.reason, other.fields) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED", ("request_id",))
    task_id = first.task.id
    for number, (method, more) in enumerate(
        [
            ("UpdateTask", {"title": "renamed"}),
            ("CompleteTask", {"etag": "2"}),
            ("ReopenTask", {}),
            ("DeleteTask", {}),
        ]
    ):
        answer = await tasker(method, request_id=f"r-{method}", task_id=task_id, **more)
        assert await tasker(method, request_id=f"r-{method}", task_id=task_id, **more) == answer
        if method != "DeleteTask":
            assert answer.etag == (await tasker.get(task_id)).etag == str(number + 2)
    assert await tasker.list() == []


async def test_a_task_lives(mesh: Mesh, tasker: Tasker, user: str) -> None:
    """A task is changed, completed, reopened and deleted; its life is in the audit log, one event a revision."""
    task = await tasker.create("before", tags=["a"], due_time=at("2031-01-01"), reminder_offsets=seconds(60))
    due = api.DueUpdate(due_time=at("2031-01-02"), time_zone="Asia/Tokyo")
    updated = await tasker("UpdateTask", task_id=task.id, title="after", tags=api.TagsUpdate(), due=due)
    now = await tasker.get(task.id)
    assert (now.title, list(now.tags), now.due_time, now.time_zone) == ("after", [], at("2031-01-02"), "Asia/Tokyo")
    assert (now.etag, now.update_time, now.reminder_offsets) == ("2", updated.update_time, seconds(60))
    same = await tasker("UpdateTask", task_id=task.id, title="after")
    assert same.etag == "2"
    completed = await tasker("CompleteTask", task_id=task.id)
    assert await tasker("CompleteTask", task_id=task.id) == completed
    now = await tasker.get(task.id)
    assert (now.status, now.complete_time, now.etag) == (
        task_pb2.TASK_STATUS_COMPLETED,
        completed.complete_time,
        completed.etag,
    )
    reopened = await tasker("ReopenTask", task_id=task.id)
    assert (await tasker("ReopenTask", task_id=task.id)).etag == reopened.etag == "4"
    assert not (await tasker.get(task.id)).HasField("complete_time")
    await tasker("DeleteTask", task_id=task.id)
    await tasker("DeleteTask", task_id=task.id)
    assert (await refused(tasker.get(task.id))).code == "NOT_FOUND"

    async def logged() -> bool:
        return len(await told(mesh, user, task.id)) == 5

    await eventually(logged, within=_WITHIN, what="five events")
    events = await told(mesh, user, task.id)
    kinds = ["task.created", "task.updated", "task.completed", "task.reopened", "task.deleted"]
    assert [(one.event_type, one.revision) for one in events] == [(kind, n) for n, kind in enumerate(kinds, start=1)]
    created, changed = (json_format.MessageToDict(one.data) for one in events[:2])
    assert (created["task_id"], created["user_id"], created["title"]) == (task.id, user, "before")
    assert created["task"]["due_time"] == "2031-01-01T00:00:00Z"
    assert created["task"]["reminder_offsets"] == ["60s"]
    assert changed["changed"] == ["title", "tags", "due_time", "time_zone"]
    assert events[4].data["cause"] == "deleted"


async def test_events_do_not_tell_the_description(mesh: Mesh, tasker: Tasker, user: str) -> None:
    """A task's description stays with its owner: the log does not have it."""
    task = await tasker.create("t", description="a secret")

    async def logged() -> Any:
        return await told(mesh, user, task.id)

    (event,) = await eventually(logged, within=_WITHIN, what="the event")
    assert "secret" not in str(event)


async def test_two_writers_one_etag(tasker: Tasker) -> None:
    """Of two updates with one etag one wins; the other is ABORTED with the etag that is current now."""
    task = await tasker.create()
    calls = [tasker("UpdateTask", task_id=task.id, etag="1", title=f"t{n}") for n in range(2)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(isinstance(one, BaseException) for one in answers) == [False, True]
    for method in ("UpdateTask", "CompleteTask", "ReopenTask", "DeleteTask"):
        stale = await refused(tasker(method, task_id=task.id, etag="1"))
        assert (stale.code, stale.reason, stale.facts) == ("ABORTED", "STALE_ETAG", {"etag": "1", "current": "2"})


async def test_many_at_once(tasker: Tasker) -> None:
    """A hundred changes at once to one user's tasks all happen, and the lists show it."""
    tasks = await asyncio.gather(*(tasker.create(f"t{number}") for number in range(50)))
    assert len({one.id for one in tasks}) == len(await tasker.list()) == 50
    await asyncio.gather(
        *(tasker("CompleteTask", task_id=one.id) for one in tasks[:25]),
        *(tasker("UpdateTask", task_id=one.id, priority=task_pb2.TASK_PRIORITY_LOW) for one in tasks[25:]),
    )
    opened = await tasker.list(status=task_pb2.TASK_STATUS_OPEN, priorities=[task_pb2.TASK_PRIORITY_LOW])
    assert {one.id for one in opened} == {one.id for one in tasks[25:]}
    completed = await tasker.list(status=task_pb2.TASK_STATUS_COMPLETED)
    assert {one.id for one in completed} == {one.id for one in tasks[:25]}
    ends = [one.complete_time.ToNanoseconds() for one in completed]
    assert ends == sorted(ends, reverse=True)


async def test_lists_across_buckets(tasker: Tasker, stranger: Tasker) -> None:
    """With 270 tasks, in two documents of the index, filters and orders still see them all, and no one else's."""
    start = datetime(2031, 1, 1, tzinfo=UTC)
    for first in range(0, 270, 30):
        numbers = range(first, first + 30)
        stamps = [at((start + timedelta(days=(number * 7) % 270)).isoformat()) for number in numbers]
        tags = [["even"] if number % 2 == 0 else [] for number in numbers]
        await asyncio.gather(
            *(
                tasker.create(f"task number {number}", task_id=f"t{number}", due_time=due, tags=tag)
                for number, due, tag in zip(numbers, stamps, tags, strict=True)
            )
        )
    by_due = await tasker.list(order_by=api.TASK_ORDER_DUE_TIME, page_size=40)
    assert [one.id for one in by_due] == [f"t{n}" for n in sorted(range(270), key=lambda n: (n * 7) % 270)]
    window = {"due_from": at("2031-01-11"), "due_before": at("2031-01-21")}
    assert len(await tasker.list(**window)) == 10
    assert len(await tasker.list(tags=["even"], page_size=200)) == 135
    found = {one.id for one in await tasker.list(text="NUMBER 26 task")}
    assert found == {f"t{number}" for number in range(270) if "26" in str(number)}
    page = await tasker("ListTasks", page_size=2**31 - 1)
    assert len(page.tasks) == 200
    assert await stranger.list() == []


async def test_the_service_answers_through_another_sidecar(mesh: Mesh, user: str) -> None:
    """The task service answers by any sidecar of the mesh."""
    async with mesh.sidecar("audit") as channel:
        by_way = Tasker(channel, mesh.metadata(user, app_id=mesh.service("task").app_id))
        task = await by_way.create("from afar")
        assert [one.id for one in await by_way.list()] == [task.id]
