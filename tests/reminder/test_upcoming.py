"""What an operator sees of reminders: what fires next, whoever it is for."""

from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from gaggle.reminder.v1 import reminder_pb2, reminder_service_pb2_grpc
from gaggle.reminder.v1 import reminder_service_pb2 as api
from tests.mesh_fixture import Mesh
from tests.reminder.reminding import TIMEOUT_SECONDS, Reminding, ahead

pytestmark = pytest.mark.mesh


async def _ask(mesh: Mesh, user: str, *, roles: tuple[str, ...] = ("admin",), **fields: Any) -> Any:
    async with mesh.channel("reminder") as channel:
        stub: Any = reminder_service_pb2_grpc.ReminderServiceStub(channel)
        request = api.ListDueRemindersRequest(**fields)
        return await stub.ListDueReminders(request, metadata=mesh.metadata(user, roles=roles), timeout=TIMEOUT_SECONDS)


async def _all(mesh: Mesh, user: str, **fields: Any) -> list[Any]:
    """The whole list, page by page, and of it what is this user's."""
    found: list[Any] = []
    token = ""
    while True:
        page = await _ask(mesh, user, page_token=token, **fields)
        assert len(page.reminders) <= fields.get("page_size", 50)
        found += page.reminders
        token = page.next_page_token
        if not token:
            times = [one.reminder.remind_at.ToNanoseconds() for one in found]
            assert times == sorted(times)
            return [one for one in found if one.user_id == user]


async def test_an_admin_sees_what_fires_next_in_order(mesh: Mesh, reminding: Reminding, user: str) -> None:
    """All users' reminders within the horizon, soonest first, page by page; not what was cancelled or lies beyond."""
    hour, minute = 3600, 60
    later = await reminding.task(ahead(hour), 20 * minute, title="later")
    sooner = await reminding.task(ahead(hour), 50 * minute, title="sooner")
    gone = await reminding.task(ahead(hour), 30 * minute, title="gone")
    beyond = await reminding.task(ahead(30 * hour), minute, title="beyond")
    # A task's reminders are set behind its back.
    for task_id in (later, sooner, gone, beyond):
        await reminding.until(task_id, 1, reminder_pb2.REMINDER_STATE_SCHEDULED)
    await reminding("CancelReminders", task_id=gone)

    for size in (2, 50):
        seen = await _all(mesh, user, page_size=size)
        assert [(one.reminder.title, one.reminder.task_id) for one in seen] == [("sooner", sooner), ("later", later)]
    near = await _all(mesh, user, horizon=Duration(seconds=15 * minute))
    assert [one.reminder.title for one in near] == ["sooner"]


@pytest.mark.parametrize(
    ("roles", "fields", "code"),
    [
        ((), {}, grpc.StatusCode.PERMISSION_DENIED),
        (("admin",), {"page_size": -1}, grpc.StatusCode.INVALID_ARGUMENT),
        (("admin",), {"horizon": Duration(seconds=-1)}, grpc.StatusCode.INVALID_ARGUMENT),
        (("admin",), {"page_token": "bad"}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=["a user", "a negative page", "a time gone by", "a token of its own making"],
)
async def test_nobody_else_sees_it(
    mesh: Mesh, user: str, roles: tuple[str, ...], fields: dict[str, Any], code: grpc.StatusCode
) -> None:
    """Other people's reminders are for admins alone; bad input is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _ask(mesh, user, roles=roles, **fields)
    assert refused.value.code() == code
