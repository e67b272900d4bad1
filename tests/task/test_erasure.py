"""A user's right to be forgotten, as far as tasks are concerned."""

import pytest

from gaggle.task.v1 import task_pb2
from tests.conditions import eventually
from tests.conversation.talking import Talker, refused
from tests.mesh_fixture import Mesh
from tests.task.tasking import Tasker, at

pytestmark = pytest.mark.mesh

_WITHIN = 60.0


async def test_an_erasure_takes_all_tasks(mesh: Mesh, tasker: Tasker, stranger: Tasker, user: str) -> None:
    """An erased user has no task, open or completed, gets none, recurring ones included, and a receipt says so."""
    recurrence = task_pb2.Recurrence(rule="FREQ=DAILY")
    first = await tasker.create("a", due_time=at("2031-01-01"), recurrence=recurrence)
    second = await tasker.create("b")
    await tasker("CompleteTask", task_id=second.id)
    kept = await stranger.create("kept")
    async with mesh.channel("conversation") as channel:
        talker = Talker(channel, mesh.metadata(user))
        await talker("EraseUser")

        async def reported() -> dict[str, int]:
            receipts = {one.service: one.items for one in (await talker("GetErasure")).receipts}
            return receipts if "task" in receipts else {}

        assert (await eventually(reported, within=_WITHIN, what="the receipt of task"))["task"] == 2
    assert await tasker.list() == []
    for task_id in (first.id, second.id):
        assert (await refused(tasker.get(task_id))).code == "NOT_FOUND"
    refusal = await refused(tasker.create("again"))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "USER_ERASED")
    assert await stranger.list() == [kept]
