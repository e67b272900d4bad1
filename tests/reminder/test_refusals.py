"""What the reminder service refuses, and the exact answer each gets."""

import re
import uuid
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.owner.v1 import owner_service_pb2, owner_service_pb2_grpc
from gaggle.reminder.v1 import reminder_pb2
from gaggle.reminder.v1 import reminder_service_pb2 as api
from services.runtime.dapr import appcallback_pb2
from tests.conversation.talking import refused
from tests.mesh_fixture import Mesh
from tests.reminder.reminding import Reminding, ahead, at, before, local, moment, span

pytestmark = pytest.mark.mesh

_SERVICE = "/gaggle.reminder.v1.ReminderService"


def _times(*when: reminder_pb2.ReminderTime) -> dict[str, Any]:
    return {"reminders": when}


def _set(*when: reminder_pb2.ReminderTime) -> dict[str, Any]:
    return {"reminders": api.ReminderTimes(times=when)}


def _calendar(days: int = 0, time_of_day: str = "") -> reminder_pb2.ReminderTime:
    offset = reminder_pb2.CalendarOffset(days=days, time_of_day=time_of_day)
    return reminder_pb2.ReminderTime(calendar_before_due=offset)


def _snooze(**fields: Any) -> dict[str, Any]:
    return {"reminder_id": "r", **fields}


_AT = reminder_pb2.ReminderTime(at=Timestamp(seconds=2_000_000_000))
_SKIP_NEVER = reminder_pb2.MissedPolicy(skip_after=Duration(seconds=-1))

# Method, fields, the field that is named.
INVALID: dict[str, tuple[str, dict[str, Any], str]] = {
    "no task": ("ScheduleReminders", {"task_id": "", **_times(_AT)}, "task_id"),
    "bad task": ("ScheduleReminders", {"task_id": "a:b", **_times(_AT)}, "task_id"),
    "bars": ("CancelReminders", {"task_id": "a||b"}, "task_id"),
    "request id": ("ScheduleReminders", {"request_id": "x" * 65, **_times(_AT)}, "request_id"),
    "no reminders": ("ScheduleReminders", {}, "reminders"),
    "too many": ("ScheduleReminders", _times(*[before(n) for n in range(11)]), "reminders"),
    "no time": ("ScheduleReminders", _times(_AT, reminder_pb2.ReminderTime()), "reminders[1]"),
    "twice": ("ScheduleReminders", _times(_AT, _AT), "reminders[1]"),
    "negative": ("ScheduleReminders", _times(before(-1)), "reminders[0].before_due"),
    "too long before": ("ScheduleReminders", _times(before(367 * 86_400)), "reminders[0].before_due"),
    "bad duration": (
        "ScheduleReminders",
        _times(reminder_pb2.ReminderTime(before_due=Duration(seconds=1, nanos=2_000_000_000))),
        "reminders[0].before_due",
    ),
    "too many days": ("ScheduleReminders", _times(_calendar(367)), "reminders[0].calendar_before_due.days"),
    "time of day": ("ScheduleReminders", _times(_calendar(1, "24:00")), "reminders[0].calendar_before_due.time_of_day"),
    "time of day, text": (
        "ScheduleReminders",
        _times(_calendar(1, "9am")),
        "reminders[0].calendar_before_due.time_of_day",
    ),
    "far future": (
        "ScheduleReminders",
        _times(reminder_pb2.ReminderTime(at=Timestamp(seconds=20_000_000_000))),
        "reminders[0].at",
    ),
    "no moment": (
        "ScheduleReminders",
        _times(reminder_pb2.ReminderTime(at=Timestamp(seconds=1, nanos=-5))),
        "reminders[0].at",
    ),
    "local with Z": ("ScheduleReminders", _times(local("2027-03-28T02:30Z")), "reminders[0].at_local"),
    "local, no such day": ("ScheduleReminders", _times(local("2027-02-29T02:30")), "reminders[0].at_local"),
    "local, cron": ("ScheduleReminders", _times(local("CRON_TZ=x * * * * *")), "reminders[0].at_local"),
    "local, too far": ("ScheduleReminders", _times(local("9999-12-31T23:59")), "reminders[0].at_local"),
    "policy": ("ScheduleReminders", {**_times(_AT), "past": 9}, "past"),
    "missed": ("ScheduleReminders", {**_times(_AT), "missed": _SKIP_NEVER}, "missed.skip_after"),
    "zone": ("ScheduleReminders", {**_times(_AT), "time_zone": "Mars/Olympus"}, "time_zone"),
    "zone, path": ("ScheduleReminders", {**_times(_AT), "time_zone": "../../etc/passwd"}, "time_zone"),
    "title": ("ScheduleReminders", {**_times(_AT), "title": "ü" * 513}, "title"),
    "due": ("ScheduleReminders", {**_times(_AT), "due_at": Timestamp(seconds=2**60)}, "due_at"),
    "a set of absolute ones": ("RescheduleReminders", _set(_AT), "reminders.times[0]"),
    "too large a set": ("RescheduleReminders", _set(*[before(n) for n in range(11)]), "reminders.times"),
    "ids": ("CancelReminders", {"reminder_ids": ["a", "b c"]}, "reminder_ids[1]"),
    "too many ids": ("CancelReminders", {"reminder_ids": [f"r{n}" for n in range(65)]}, "reminder_ids"),
    "snooze what": ("SnoozeReminder", {"delay": span(1)}, "reminder_id"),
    "snooze how": ("SnoozeReminder", _snooze(), "time"),
    "snooze for nothing": ("SnoozeReminder", _snooze(delay=span(0)), "delay"),
    "snooze too long": ("SnoozeReminder", _snooze(delay=span(367 * 86_400)), "delay"),
    "snooze local": ("SnoozeReminder", _snooze(until_local="tomorrow"), "until_local"),
    "get what": ("GetReminder", {"reminder_id": ""}, "reminder_id"),
    "page size": ("ListReminders", {"page_size": -1}, "page_size"),
    "page token": ("ListReminders", {"task_id": "", "page_token": "AAAA"}, "page_token"),
    "state": ("ListReminders", {"states": [77]}, "states[0]"),
}


@pytest.mark.parametrize(("method", "fields", "named"), INVALID.values(), ids=INVALID.keys())
async def test_invalid_field(reminding: Reminding, method: str, fields: dict[str, Any], named: str) -> None:
    """A wrong field is INVALID_ARGUMENT, and BadRequest names it."""
    refusal = await refused(reminding(method, **{"task_id": "t", **fields}))
    assert refusal.code == "INVALID_ARGUMENT", refusal
    assert refusal.fields == (named,)
    assert refusal.reason == ("INVALID_PAGE_TOKEN" if named == "page_token" else "INVALID_FIELD")


async def test_past_is_refused_by_name(reminding: Reminding) -> None:
    """A time gone by is refused unless asked otherwise; so is a snooze into the past."""
    task_id = await reminding.task(ahead(3600))
    refusal = await refused(reminding.schedule(task_id, at(ahead(600)), at(ahead(-120))))
    assert (refusal.code, refusal.fields) == ("INVALID_ARGUMENT", ("reminders[1]",))
    assert await reminding.all(task_id) == []
    (one,) = await reminding.schedule(task_id, at(ahead(600)))
    refusal = await refused(reminding("SnoozeReminder", task_id=task_id, reminder_id=one.id, until=moment(ahead(-1))))
    assert (refusal.code, refusal.fields) == ("INVALID_ARGUMENT", ("until",))


async def test_states_that_do_not_allow_it(reminding: Reminding) -> None:
    """No due time to be relative to, a task that is done, a cancelled reminder: FAILED_PRECONDITION."""
    task_id = await reminding.task()
    refusal = await refused(reminding.schedule(task_id, before(60)))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    (one,) = await reminding.schedule(task_id, at(ahead(600)))
    refusal = await refused(
        reminding("SnoozeReminder", task_id=task_id, reminder_id=one.id, delay=span(60), snooze_task=True)
    )
    assert (refusal.code, refusal.facts) == ("FAILED_PRECONDITION", {"state": "undue"})
    await reminding("CancelReminders", task_id=task_id, reminder_ids=[one.id])
    refusal = await refused(reminding("SnoozeReminder", task_id=task_id, reminder_id=one.id, delay=span(60)))
    assert (refusal.code, refusal.facts) == ("FAILED_PRECONDITION", {"state": "cancelled"})
    await reminding.tasker("CompleteTask", task_id=task_id)
    refusal = await refused(reminding.schedule(task_id, at(ahead(600))))
    assert (refusal.code, refusal.facts) == ("FAILED_PRECONDITION", {"state": "completed"})


async def test_stale_etag(reminding: Reminding) -> None:
    """A stale etag is ABORTED, and says which is current."""
    task_id = await reminding.task()
    (one,) = await reminding.schedule(task_id, at(ahead(600)))
    await reminding.schedule(task_id, at(ahead(700)))
    refusal = await refused(
        reminding("SnoozeReminder", task_id=task_id, reminder_id=one.id, delay=span(60), etag=one.etag)
    )
    assert (refusal.code, refusal.reason, refusal.facts) == ("ABORTED", "STALE_ETAG", {"etag": "1", "current": "2"})


async def test_another_users_reminders(reminding: Reminding, stranger: Reminding) -> None:
    """Another user's task and reminder are NOT_FOUND, in the words in which a missing one is; they do nothing."""
    task_id = await reminding.task()
    (one,) = await reminding.schedule(task_id, at(ahead(600)))
    missing = str(uuid.uuid4())
    for method, fields in (
        ("GetReminder", {}),
        ("SnoozeReminder", {"delay": span(60)}),
        ("CancelReminders", {}),
    ):
        found = []
        for task, reminder in ((task_id, one.id), (missing, missing)):
            ids: dict[str, Any] = {"task_id": task, "reminder_id": reminder}
            if method == "CancelReminders":
                ids = {"task_id": task, "reminder_ids": [reminder]}
            refusal = await refused(stranger(method, **ids, **fields))
            assert (refusal.code, refusal.reason) == ("NOT_FOUND", "NOT_FOUND")
            found.append(re.sub(re.escape(reminder), "*", refusal.message))
        assert found[0] == found[1]
    refusal = await refused(stranger.schedule(task_id, at(ahead(600))))
    assert refusal.code == "NOT_FOUND"
    assert not (await stranger("CancelReminders", task_id=task_id)).reminder_ids
    assert not (await stranger("ListReminders", task_id=task_id)).reminders
    assert [found.state for found in await reminding.all(task_id)] == [reminder_pb2.REMINDER_STATE_SCHEDULED]


async def test_foreign_page_token(reminding: Reminding, stranger: Reminding) -> None:
    """A token is good for the list that it was given for, and for its user."""
    for _ in range(2):
        task_id = await reminding.task()
        await reminding.schedule(task_id, at(ahead(600)))
    token = (await reminding("ListReminders", page_size=1)).next_page_token
    assert token
    for one, fields in ((stranger, {}), (reminding, {"states": [3]}), (reminding, {"task_id": "t"})):
        refusal = await refused(one("ListReminders", page_token=token, **fields))
        assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN")


async def test_request_id_with_another_body(reminding: Reminding) -> None:
    """The same request gives the first answer, and sets nothing twice; another body under its id is refused."""
    task_id = await reminding.task()
    times = [at(ahead(600)), at(ahead(700))]
    first = await reminding.schedule(task_id, *times, request_id="r")
    assert await reminding.schedule(task_id, *times, request_id="r") == first
    refusal = await refused(reminding.schedule(task_id, times[0], request_id="r"))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    assert len(await reminding.all(task_id)) == 2


async def test_too_many_for_a_task(reminding: Reminding) -> None:
    """Of one task at most sixteen are to fire: RESOURCE_EXHAUSTED with the limit, and nothing is set."""
    task_id = await reminding.task()
    await reminding.schedule(task_id, *[at(ahead(600 + number)) for number in range(10)])
    refusal = await refused(reminding.schedule(task_id, *[at(ahead(900 + number)) for number in range(10)]))
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "TOO_LARGE")
    assert refusal.facts["limit"] == "16"
    assert len(await reminding.all(task_id)) == 10


_BYTES = {
    "no message": b"\xff\xff\xff",
    "bad UTF-8": b"\x12\x02\xc3\x28",
}


@pytest.mark.parametrize("data", _BYTES.values(), ids=_BYTES.keys())
async def test_malformed(mesh: Mesh, reminding: Reminding, data: bytes) -> None:
    """Bytes that are no request are INVALID_ARGUMENT, MALFORMED_REQUEST."""
    async with mesh.channel("reminder") as channel:
        call: Any = channel.unary_unary(f"{_SERVICE}/ScheduleReminders")
        refusal = await refused(call(data, metadata=mesh.metadata(reminding.user), timeout=10))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "MALFORMED_REQUEST")


async def test_tokens(mesh: Mesh, reminding: Reminding) -> None:
    """No token, or a forged one, is UNAUTHENTICATED."""
    forged = mesh.token(reminding.user)[:-8] + "AAAAAAAA"
    async with mesh.channel("reminder") as channel:
        call: Any = channel.unary_unary(f"{_SERVICE}/ListReminders")
        for metadata in ((), (("authorization", f"Bearer {forged}"),)):
            refusal = await refused(call(b"", metadata=metadata, timeout=10))
            assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "INVALID_TOKEN")


async def test_owner_methods_are_for_services(mesh: Mesh, reminding: Reminding) -> None:
    """A user, and an admin too, may not call what serves the mesh's own services."""
    async with mesh.channel("reminder") as channel:
        stub: Any = owner_service_pb2_grpc.EntityOwnerServiceStub(channel)
        for roles in ((), ("admin",)):
            metadata = mesh.metadata(reminding.user, roles=roles)
            request = owner_service_pb2.ListRevisionsRequest(user_id="someone")
            refusal = await refused(stub.ListRevisions(request, metadata=metadata, timeout=10))
            assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "SERVICE_NOT_ALLOWED")


_CALLBACKS = {
    "job": ("AppCallback/OnJobEvent", appcallback_pb2.JobEventRequest(name="reminder-t-r-1")),
    "job, the older name": (
        "AppCallbackAlpha/OnJobEventAlpha1",
        appcallback_pb2.JobEventRequest(name="reminder-t-r-1"),
    ),
    "sweep": ("AppCallback/OnBindingEvent", appcallback_pb2.BindingEventRequest(name="reminder-sweep")),
    "topic": ("AppCallback/OnTopicEvent", appcallback_pb2.TopicEventRequest(topic="task-events", pubsub_name="pubsub")),
}


@pytest.mark.parametrize(("method", "request_"), _CALLBACKS.values(), ids=_CALLBACKS.keys())
async def test_callbacks_are_for_the_own_sidecar(mesh: Mesh, user: str, method: str, request_: Any) -> None:
    """Whoever has a user's token cannot forge a job, a tick or an event, neither straight nor through a sidecar."""
    path = f"/dapr.proto.runtime.v1.{method}"
    data = request_.SerializeToString()
    async with mesh.channel("reminder") as straight, mesh.sidecar("task") as sidecar:
        refusal = await refused(straight.unary_unary(path)(data, metadata=mesh.metadata(user), timeout=10))
        assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CALLBACK_REFUSED")
        proxied = mesh.metadata(user, app_id=mesh.service("reminder").app_id)
        refusal = await refused(sidecar.unary_unary(path)(data, metadata=proxied, timeout=10))
        assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "CALLBACK_REFUSED")
