"""From a task to the inbox, through every service on the way."""

import pytest

from tests.mesh_fixture import Mesh
from tests.notification.notifying import Notified
from tests.reminder.reminding import Reminding, ahead

pytestmark = pytest.mark.mesh


async def test_a_due_reminder_is_in_the_inbox_once(mesh: Mesh, notified: Notified, user: str) -> None:
    """A task's reminder that comes due is told in the inbox, once, in the trace of the call that made the task."""
    async with mesh.channel("reminder") as reminders, mesh.channel("task") as tasks:
        reminding = Reminding(mesh, reminders, tasks, user)
        task_id = await reminding.task(ahead(5), 3, title="Take the cake out")
        (one,) = await notified.until(1, within=30.0)
        (due,) = await reminding.told(task_id, 1, "reminder.due")
    assert (one.title, one.subject_type, one.subject_id) == ("Take the cake out", "task", task_id)
    (created,) = await notified.told(1, "notification.created")
    assert created["notificationId"] == one.id
    assert len(due["trace"]) == 32
    assert created["trace"] == due["trace"]
