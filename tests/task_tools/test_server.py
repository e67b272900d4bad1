"""`gaggle mcp` on a real mesh, asked by the official client over standard streams."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import grpc.aio
import pytest

from gaggle.reminder.v1 import reminder_service_pb2, reminder_service_pb2_grpc
from gaggle.task.v1 import task_pb2
from tests.mesh_fixture import Mesh
from tests.task.tasking import Tasker
from tests.task_tools.asking import Open

pytestmark = pytest.mark.mesh

_BERLIN = ZoneInfo("Europe/Berlin")


def _tomorrow(hour: int) -> datetime:
    day = datetime.now(_BERLIN).date() + timedelta(days=1)
    return datetime(day.year, day.month, day.day, hour, tzinfo=_BERLIN)


async def _reminders(channel: grpc.aio.Channel, mesh: Mesh, user: str, task_id: str) -> list[Any]:
    stub: Any = reminder_service_pb2_grpc.ReminderServiceStub(channel)
    request = reminder_service_pb2.ListRemindersRequest(task_id=task_id)
    return list((await stub.ListReminders(request, metadata=mesh.metadata(user), timeout=20)).reminders)


async def test_a_tasks_life(
    tools: Open, tasker: Tasker, reminder_channel: grpc.aio.Channel, mesh: Mesh, user: str
) -> None:
    """Any MCP client adds, lists, changes, is reminded of, completes and deletes the user's tasks, named by title."""
    async with tools() as ask:
        names = {one.name for one in (await ask.client.list_tools()).tools}
        assert names == {"add_task", "list_tasks", "complete_task", "update_task", "delete_task", "set_reminder"}
        assert (await ask("list_tasks")).text == "There are no tasks."
        added = await ask("add_task", title="Water the plants", due="tomorrow 9am", priority="high", tags=["home"])
        assert not added.is_error, added.text
        (task,) = await tasker.list()
        assert added.data["task"]["id"] == task.id
        assert (task.title, task.time_zone, list(task.tags)) == ("Water the plants", "Europe/Berlin", ["home"])
        assert task.priority == task_pb2.TASK_PRIORITY_HIGH
        assert task.due_time.ToDatetime(UTC) == _tomorrow(9)
        assert "09:00" in added.text

        await ask("add_task", title="Water bill", repeat="monthly", due="tomorrow 10am")
        listed = await ask("list_tasks", text="water")
        assert [one["title"] for one in listed.data["tasks"]] == ["Water the plants", "Water bill"]
        doubtful = await ask("complete_task", task="water")
        assert doubtful.is_error
        assert task.id in doubtful.text
        assert (await ask("update_task", task="water the plants", title="Water them", due="tomorrow 18:00")).data
        changed = await tasker.get(task.id)
        assert (changed.title, changed.due_time.ToDatetime(UTC)) == ("Water them", _tomorrow(18))
        assert changed.priority == task_pb2.TASK_PRIORITY_HIGH

        reminded = await ask("set_reminder", task=task.id, when="30 minutes before")
        assert "17:30" in reminded.text, reminded.text
        (reminder,) = await _reminders(reminder_channel, mesh, user, task.id)
        assert reminder.remind_at.ToDatetime(UTC) == _tomorrow(18) - timedelta(minutes=30)
        await ask("set_reminder", task=task.id, when="tomorrow 8am")
        found = await _reminders(reminder_channel, mesh, user, task.id)
        assert _tomorrow(8) in {one.remind_at.ToDatetime(UTC) for one in found}

        assert (await ask("complete_task", task="Water them")).data["task"]["status"] == "TASK_STATUS_COMPLETED"
        assert (await ask("list_tasks", status="completed")).data["tasks"][0]["id"] == task.id
        assert not (await ask("delete_task", task="Water bill")).is_error
        assert (await ask("list_tasks")).text == "There are no tasks."
        assert [one.id for one in await tasker.list()] == [task.id]


async def test_a_call_made_twice_has_one_effect(tools: Open, tasker: Tasker) -> None:
    """A call that says its id may be repeated, though "in two hours" is another time by then."""
    async with tools() as ask:
        meta = {"gaggle/call-id": uuid.uuid4().hex}
        first = await ask("add_task", title="Once", due="in 2 hours", meta=meta)
        second = await ask("add_task", title="Once", due="in 3 hours", meta=meta)
        assert first.data["task"]["id"] == second.data["task"]["id"]
        assert not second.is_error
        (task,) = await tasker.list()
        remind = {"gaggle/call-id": uuid.uuid4().hex}
        for when in ("in 1 hour", "in 61 minutes"):
            assert not (await ask("set_reminder", task="Once", when=when, meta=remind)).is_error
        done = {"gaggle/call-id": uuid.uuid4().hex}
        assert not (await ask("complete_task", task="Once", meta=done)).is_error
        assert not (await ask("complete_task", task="Once", meta=done)).is_error
        assert (await tasker.get(task.id)).etag == "2"


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no-title": ("add_task", {"title": ""}, "title"),
    "no-time": ("add_task", {"title": "x", "due": "someday"}, "tomorrow 9am"),
    "no-zone": ("add_task", {"title": "x", "due": "tomorrow", "time_zone": "Mars/Olympus"}, "Mars/Olympus"),
    "no-priority": ("add_task", {"title": "x", "priority": "extreme"}, "priority"),
    "no-rule": ("add_task", {"title": "x", "due": "tomorrow", "repeat": "fortnightly"}, "recurrence.rule"),
    "no-span": ("add_task", {"title": "x", "due": "tomorrow", "remind_before": ["a bit"]}, "10m"),
    "reminder-of-nothing-due": ("add_task", {"title": "x", "remind_before": ["10m"]}, "due_time"),
    "limit": ("list_tasks", {"limit": 0}, "limit"),
    "missing": ("complete_task", {"task": "nothing of the kind"}, "There is no task"),
    "missing-id": ("delete_task", {"task": "0199-no-such"}, "There is no task"),
    "unnamed": ("delete_task", {"task": "  "}, "Say which"),
    "past": ("set_reminder", {"task": "Standing", "when": "2001-01-01 09:00"}, "gone by"),
    "not-due": ("set_reminder", {"task": "Standing", "when": "10 minutes before"}, "due"),
}


async def test_what_is_refused(tools: Open, tasker: Tasker) -> None:
    """What can't be read or done is told to the model in words that help, and has no effect."""
    standing = await tasker.create("Standing")
    async with tools() as ask:
        for case, (tool, arguments, told) in REFUSED.items():
            answer = await ask(tool, **arguments)
            assert answer.is_error, case
            assert told in answer.text, (case, answer.text)
    assert [one.id for one in await tasker.list()] == [standing.id]
    assert (await tasker.get(standing.id)).etag == "1"


async def test_whose_tasks_they_are(tools: Open, tasker: Tasker, mesh: Mesh, user: str) -> None:
    """Another user's task can't be seen by id or title; a token that is not good is told as such."""
    task = await tasker.create("Secret")
    async with tools(token=mesh.token(f"{user}-stranger")) as ask:
        for named in (task.id, "Secret"):
            answer = await ask("complete_task", task=named)
            assert (answer.is_error, answer.text) == (True, f'There is no task "{named}".')
    async with tools(token="no.good.token") as ask:
        answer = await ask("list_tasks")
        assert answer.is_error
        assert "UNAUTHENTICATED" in answer.text or "token" in answer.text
    assert (await tasker.get(task.id)).etag == "1"


async def test_acting_for_who_calls(tools: Open, tasker: Tasker, mesh: Mesh, user: str) -> None:
    """With --on-behalf each call brings its user's token, by any sidecar of the mesh; without one nobody is served."""
    await tasker.create("Mine")
    sidecar = mesh.service("extension").replicas[0].sidecar_grpc
    way = ("--sidecar", sidecar, "--app-id-suffix", mesh.description.app_id_suffix)
    async with tools("--on-behalf", *way, token="", zone="") as ask:
        meta = {"gaggle/token": mesh.token(user)}
        assert [one["title"] for one in (await ask("list_tasks", meta=meta)).data["tasks"]] == ["Mine"]
        other = {"gaggle/token": mesh.token(f"{user}-stranger")}
        assert (await ask("list_tasks", meta=other)).text == "There are no tasks."
        nobody = await ask("list_tasks")
        assert nobody.is_error
        assert "no token" in nobody.text
