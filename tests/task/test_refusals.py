"""What the task service refuses, and the exact answer each gets."""

from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.owner.v1 import owner_service_pb2, owner_service_pb2_grpc
from gaggle.task.v1 import occurrence_service_pb2, occurrence_service_pb2_grpc, task_pb2
from gaggle.task.v1 import task_service_pb2 as api
from tests.conversation.talking import refused
from tests.mesh_fixture import Mesh
from tests.task.tasking import Tasker, at, seconds

pytestmark = pytest.mark.mesh

_DUE: dict[str, Any] = {"due_time": at("2031-01-01")}


def _recurring(rule: str, **fields: Any) -> dict[str, Any]:
    return {**_DUE, "recurrence": task_pb2.Recurrence(rule=rule), **fields}


def _rule(rule: str) -> api.RecurrenceUpdate:
    return api.RecurrenceUpdate(recurrence=task_pb2.Recurrence(rule=rule))


# Method, fields, the field that is named. Where the task's id is not given it is that of a task with a due time.
INVALID: dict[str, tuple[str, dict[str, Any], str]] = {
    "id": ("CreateTask", {"task_id": "a b"}, "task_id"),
    "id-colon": ("GetTask", {"task_id": "a:b"}, "task_id"),
    "no-id": ("CompleteTask", {"task_id": ""}, "task_id"),
    "request-id": ("CreateTask", {"request_id": "ü"}, "request_id"),
    "no-title": ("CreateTask", {"title": " "}, "title"),
    "title": ("CreateTask", {"title": "ü" * 513}, "title"),
    "title-update": ("UpdateTask", {"title": ""}, "title"),
    "description": ("CreateTask", {"description": "x" * 16385}, "description"),
    "priority": ("CreateTask", {"priority": 9}, "priority"),
    "tags": ("CreateTask", {"tags": [f"t{n}" for n in range(21)]}, "tags"),
    "tag-twice": ("CreateTask", {"tags": ["a", "a"]}, "tags[1]"),
    "tag-empty": ("UpdateTask", {"tags": api.TagsUpdate(tags=[""])}, "tags.tags[0]"),
    "tag-long": ("CreateTask", {"tags": ["x" * 65]}, "tags[0]"),
    "zone": ("CreateTask", {"time_zone": "Mars/Olympus"}, "time_zone"),
    "zone-path": ("CreateTask", {"time_zone": "../../etc/passwd"}, "time_zone"),
    "zone-update": ("UpdateTask", {"due": api.DueUpdate(time_zone="CEST-2")}, "due.time_zone"),
    "due": ("CreateTask", {"due_time": Timestamp(seconds=2**40)}, "due_time"),
    "due-nanos": ("CreateTask", {"due_time": Timestamp(seconds=1, nanos=-5)}, "due_time"),
    "due-early": ("UpdateTask", {"due": api.DueUpdate(due_time=at("1800-01-01"))}, "due.due_time"),
    "offsets-no-due": ("CreateTask", {"reminder_offsets": seconds(60)}, "reminder_offsets"),
    "offsets-many": ("CreateTask", {**_DUE, "reminder_offsets": seconds(*range(11))}, "reminder_offsets"),
    "offset-negative": ("CreateTask", {**_DUE, "reminder_offsets": seconds(-1)}, "reminder_offsets[0]"),
    "offset-long": ("CreateTask", {**_DUE, "reminder_offsets": seconds(367 * 86400)}, "reminder_offsets[0]"),
    "offset-twice": ("CreateTask", {**_DUE, "reminder_offsets": seconds(1, 1)}, "reminder_offsets[1]"),
    "offset-nanos": ("CreateTask", {**_DUE, "reminder_offsets": [Duration(nanos=1)]}, "reminder_offsets[0]"),
    "offset-keeps-due": (
        "UpdateTask",
        {"due": api.DueUpdate(), "reminder_offsets": api.ReminderOffsetsUpdate(reminder_offsets=seconds(1))},
        "due.due_time",
    ),
    "recurring-no-due": ("CreateTask", {"recurrence": task_pb2.Recurrence(rule="FREQ=DAILY")}, "due_time"),
    "rule-none": ("CreateTask", _recurring(""), "recurrence.rule"),
    "rule": ("CreateTask", _recurring("FREQ=FORTNIGHTLY"), "recurrence.rule"),
    "rule-never": ("CreateTask", _recurring("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30"), "recurrence.rule"),
    "rule-update": ("UpdateTask", {"recurrence": _rule("FREQ=DAILY;COUNT=0")}, "recurrence.recurrence.rule"),
    "rule-update-never": (
        "UpdateTask",
        {"recurrence": _rule("FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30")},
        "recurrence.recurrence.rule",
    ),
    "rule-and-this": ("UpdateTask", {"recurrence": _rule("FREQ=DAILY"), "scope": 2}, "recurrence"),
    "catch-up": (
        "CreateTask",
        {**_DUE, "recurrence": task_pb2.Recurrence(rule="FREQ=DAILY", catch_up=7)},  # type: ignore[arg-type]
        "recurrence.catch_up",
    ),
    "scope": ("UpdateTask", {"scope": 9}, "scope"),
    "origin": ("CreateTask", {"origin": task_pb2.Origin()}, "origin.conversation_id"),
    "page-size": ("ListTasks", {"page_size": -1}, "page_size"),
    "page-token": ("ListTasks", {"page_token": "nonsense"}, "page_token"),
    "status": ("ListTasks", {"status": 9}, "status"),
    "order": ("ListTasks", {"order_by": 9}, "order_by"),
    "text": ("ListTasks", {"text": "x" * 257}, "text"),
    "words": ("ListTasks", {"text": "a " * 17}, "text"),
    "due-from": ("ListTasks", {"due_from": Timestamp(seconds=-(2**40))}, "due_from"),
}


@pytest.mark.parametrize("case", INVALID)
async def test_what_is_wrong_is_named(tasker: Tasker, case: str) -> None:
    """A missing or wrong field is INVALID_ARGUMENT, BadRequest names it, and nothing is stored."""
    method, fields, field = INVALID[case]
    task = await tasker.create("real", due_time=at("2031-06-01"))
    if method == "CreateTask":
        fields = {"title": "t", **fields}
    elif method != "ListTasks":
        fields = {"task_id": task.id, **fields}
    answer = await refused(tasker(method, **fields))
    assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", (field,))
    assert await tasker.list() == [task]


async def test_a_token_of_another_list(tasker: Tasker, stranger: Tasker) -> None:
    """A page token is good for the list that it came from: not with another filter, nor for another user."""
    for number in range(3):
        await tasker.create(f"t{number}")
    token = (await tasker("ListTasks", page_size=1)).next_page_token
    assert len((await tasker("ListTasks", page_size=2, page_token=token)).tasks) == 2
    for caller, fields in ((tasker, {"text": "t"}), (stranger, {})):
        answer = await refused(caller("ListTasks", page_token=token, **fields))
        assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN")


@pytest.mark.parametrize("method", ["GetTask", "UpdateTask", "CompleteTask", "ReopenTask", "DeleteTask"])
async def test_another_users_task(tasker: Tasker, stranger: Tasker, method: str) -> None:
    """Another user's id answers as one that is not there does."""
    task = await tasker.create()
    theirs = await refused(stranger(method, task_id=task.id))
    missing = await refused(stranger(method, task_id="missing"))
    assert (theirs.code, theirs.reason, theirs.facts["id"]) == ("NOT_FOUND", "NOT_FOUND", task.id)
    assert theirs.message.replace(task.id, "missing") == missing.message
    assert (await tasker.get(task.id)) == task


async def test_a_deleted_task(tasker: Tasker) -> None:
    """A deleted task can't be changed, and its id can't be given again for seven days."""
    await tasker.create(task_id="mine")
    taken = await refused(tasker.create(task_id="mine"))
    assert (taken.code, taken.facts) == ("ALREADY_EXISTS", {"type": "task", "id": "mine"})
    await tasker("DeleteTask", task_id="mine")
    for method in ("UpdateTask", "CompleteTask", "ReopenTask"):
        answer = await refused(tasker(method, task_id="mine"))
        assert (answer.code, answer.reason, answer.facts) == (
            "FAILED_PRECONDITION",
            "WRONG_STATE",
            {"state": "deleted"},
        )
    again = await refused(tasker.create(task_id="mine"))
    assert again.code == "ALREADY_EXISTS"
    assert "deleted" in again.message


async def test_what_only_services_may_call(mesh: Mesh, user: str, channel: grpc.aio.Channel) -> None:
    """What the mesh's own services use is closed to users, admins too."""
    metadata = mesh.metadata(user, roles=["admin"])
    owner: Any = owner_service_pb2_grpc.EntityOwnerServiceStub(channel)
    series: Any = occurrence_service_pb2_grpc.OccurrenceServiceStub(channel)
    for call in (
        owner.ListUsers(owner_service_pb2.ListUsersRequest(), metadata=metadata),
        owner.ListRevisions(owner_service_pb2.ListRevisionsRequest(user_id=user), metadata=metadata),
        owner.RepublishEvents(owner_service_pb2.RepublishEventsRequest(user_id=user), metadata=metadata),
        series.ListWaiting(occurrence_service_pb2.ListWaitingRequest(), metadata=metadata),
        series.ContinueSeries(occurrence_service_pb2.ContinueSeriesRequest(task_id="x"), metadata=metadata),
    ):
        answer = await refused(call)
        assert (answer.code, answer.reason) == ("PERMISSION_DENIED", "SERVICE_NOT_ALLOWED")
    nobody: Any = Tasker(channel, ())
    assert (await refused(nobody("ListTasks"))).code == "UNAUTHENTICATED"
