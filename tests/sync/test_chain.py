"""Two replicas, and all that can die: each client has every event once. And a task, from its making to the screen."""

import asyncio
import itertools
import json
import signal
from collections.abc import Iterator
from datetime import timedelta

import pytest
from google.protobuf import json_format

from cli.mesh.data import DataDirectory, write_private
from gaggle.task.v1 import task_service_pb2 as task_api
from gaggle.task.v1 import task_service_pb2_grpc
from tests.conditions import eventually
from tests.mesh_fixture import Mesh, start_mesh
from tests.notification.notifying import Notified
from tests.notification.receivers import PASSWORD, USERNAME, MailServer, make_certificate
from tests.reminder.reminding import ahead, moment, span
from tests.sync.following import Follower, following, logged
from tests.task.tasking import TIMEOUT_SECONDS, Tasker

pytestmark = [pytest.mark.mesh, pytest.mark.slow, pytest.mark.xdist_group("faults")]

_WITHIN = 60.0
_SOME = 15
_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module")
def mail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailServer]:
    """A mail server with a certificate of its own."""
    server = MailServer(*make_certificate(tmp_path_factory.mktemp("mail")))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, mail: MailServer) -> Iterator[Mesh]:
    """The services on the way of a reminder, and two replicas of sync."""
    folder = tmp_path_factory.mktemp("mesh")
    data = DataDirectory.at(folder)
    data.create()
    secrets = {
        "SMTP_HOST": "localhost",
        "SMTP_PORT": str(mail.port),
        "SMTP_USERNAME": USERNAME,
        "SMTP_PASSWORD": PASSWORD,
        "SMTP_FROM_EMAIL": "gaggle@example.org",
    }
    write_private(data.secrets_file, json.dumps(secrets))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAGGLE_SMTP_CA_FILE", str(mail.certificate))
        one = start_mesh(folder, only=["audit", "task", "reminder", "notification", "sync"], replicas={"sync": 2})
    yield one
    if one.file.exists():
        one.stop()


async def test_a_reminder_is_everywhere_once(own: Mesh, mail: MailServer, user: str) -> None:
    """A reminder is in the inbox, in a mailbox and on an open socket, once each, and the log shows its chain.

    The task is due in 70 seconds and asks for a minute's notice: ten seconds later all of it is there, under the trace
    id of the call that made the task.
    """
    async with (
        own.channel("notification") as notifications,
        own.channel("task") as tasks,
        following(own, user) as socket,
    ):
        inbox = Notified(own, notifications, user)
        await inbox("SetPreferences", email_address=inbox.address)
        request = task_api.CreateTaskRequest(title="Take the cake out", due_time=moment(ahead(70)))
        request.reminder_offsets.append(span(60))
        metadata = (*own.metadata(user), ("traceparent", f"00-{_TRACE}-00f067aa0ba902b7-00"))
        stub = task_service_pb2_grpc.TaskServiceStub(tasks)
        task = (await stub.CreateTask(request, metadata=metadata, timeout=TIMEOUT_SECONDS)).task

        (due,) = await socket.until(1, "reminder.due")
        (created,) = await socket.until(1, "notification.created")
        (one,) = await inbox.until(1, within=_WITHIN)
        (delivered,) = await socket.until(1, "notification.delivered")
        # The reminder's own time, not the test's: ten seconds after the task was made, and told soon after.
        late = due.timestamp.ToDatetime() - (task.due_time.ToDatetime() - timedelta(seconds=60))
        assert timedelta(0) <= late < timedelta(seconds=10)
        assert due.data["task_id"] == task.id
        assert created.data["notificationId"] == one.id
        assert (one.title, one.subject_id) == ("Take the cake out", task.id)
        assert json_format.MessageToDict(delivered.data)["notificationIds"] == [one.id]

        # What comes behind all of it goes the same ways: a second one of anything would have come before.
        await inbox.tell("behind it")
        await socket.until(2, "notification.delivered")
        subjects = [message["Subject"] for message in mail.to(inbox.address)]
        assert sorted(subjects) == ["Take the cake out", "behind it"]
        assert len(await inbox.all()) == 2
        types = [one.event_type for one in socket.events]
        for told, times in (("task.created", 1), ("reminder.scheduled", 1), ("reminder.due", 1)):
            assert types.count(told) == times
        assert types.count("notification.created") == types.count("notification.delivered") == 2

        chain = [one for one in await logged(own, user) if one.metadata["traceparent"][3:35] == _TRACE]
        assert sorted(one.event_type for one in chain) == [
            "notification.created",
            "notification.delivered",
            "reminder.due",
            "reminder.scheduled",
            "task.created",
        ]


async def test_each_replica_has_every_event(own: Mesh, user: str) -> None:
    """Clients at both replicas get all there is: replicas do not share events out among themselves."""
    async with following(own, user, [0]) as one, following(own, user, [1]) as other:
        async with own.channel("task") as tasks:
            tasker = Tasker(tasks, own.metadata(user))
            ids = {(await tasker.create(f"task {number}")).id for number in range(_SOME)}
        for follower in (one, other):
            assert {event.entity_id for event in await follower.until(_SOME)} == ids
        assert [event.event_id for event in one.events] == [event.event_id for event in other.events]


async def test_whatever_dies(own: Mesh, user: str) -> None:
    """While replicas, log, sidecars and broker die or stall, each client gets every event once, and in order."""
    async with (
        following(own, user, [0, 1]) as one,
        following(own, user, [1, 0]) as other,
        following(own, user, [0]) as third,
        own.channel("task") as tasks,
    ):
        tasker = Tasker(tasks, own.metadata(user))
        writing = asyncio.create_task(_write(tasker))
        for process in ("sync", "audit.daprd", "audit", "sync-2.daprd", "sync-2"):
            await _more(third)
            await own.killed(process, within=_WITHIN)
        await _more(third)
        own.signal("redis", signal.SIGSTOP)
        try:
            await _written(tasker, 5)
        finally:
            own.signal("redis", signal.SIGCONT)
        await _more(third)
        await own.restart("sync")
        await _more(third)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        made = {task.id for task in await tasker.list(page_size=200)}

        async def all_logged() -> bool:
            return {event.entity_id for event in await logged(own, user)} == made

        await eventually(all_logged, within=_WITHIN, what="every task in the log")
        for follower in (one, other, third):
            assert follower.began is not None
            wanted = [event.event_id for event in await logged(own, user, follower.began)]
            seen = [event.event_id for event in await follower.until(len(wanted), within=_WITHIN)]
            assert seen == wanted
        # It was cut, more than once; a restart says so in words.
        assert len(third.ends) >= 2
        assert "DEPENDENCY_UNAVAILABLE" in third.ends


async def _write(tasker: Tasker) -> None:
    for number in itertools.count():
        await tasker.create(f"task {number}")
        await asyncio.sleep(0.2)


async def _written(tasker: Tasker, count: int) -> None:
    """Wait until so many more tasks are there, whether or not anybody is told."""
    before = len(await tasker.list(page_size=200))

    async def there() -> bool:
        return len(await tasker.list(page_size=200)) >= before + count

    await eventually(there, within=_WITHIN, what="more tasks")


async def _more(follower: Follower) -> None:
    """Wait for news, so that what is done next is done under way."""
    await follower.until(len(follower.events) + 3, within=_WITHIN)
