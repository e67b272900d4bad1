"""`gaggle reminders` on a real mesh, as programs of their own."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cli.mesh.data import PROJECT_ROOT
from tests.conditions import eventually
from tests.mesh_fixture import Mesh

pytestmark = pytest.mark.mesh

Command = Callable[..., Awaitable[str]]


@pytest.fixture
def gaggle(mesh: Mesh, user: str) -> Command:
    """Runs `gaggle` as the test's user; gives standard output, or with `code` what it said on stderr."""
    path = os.pathsep.join([str(PROJECT_ROOT), str(PROJECT_ROOT / "gen")])
    environment = {"GAGGLE_DATA": str(mesh.data.path), "PYTHONPATH": path, "GAGGLE_USER": user, "TZ": "Europe/Berlin"}

    async def run(*arguments: str, code: int = 0) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli.main", *arguments),
            env=os.environ | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == code, err.decode()
        return (err if code else out).decode()

    return run


async def _listed(gaggle: Command, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await gaggle("reminders", "list", "--json", *arguments)).splitlines()]


async def test_list_snooze_cancel(gaggle: Command) -> None:
    """Reminders are listed soonest first, put off with their task or without, and cancelled one by one or all."""
    due = ("--due", "2031-01-31 18:00", "--remind", "1h", "--remind", "1d")
    task_id = (await gaggle("tasks", "add", "Pay \x1b[31mrent", *due)).strip()

    async def both() -> list[dict[str, Any]]:
        found = await _listed(gaggle)
        return found if len(found) == 2 else []

    first, second = await eventually(both, within=20.0, what="both reminders")
    assert (first["remindAt"], second["remindAt"]) == ("2031-01-30T17:00:00Z", "2031-01-31T16:00:00Z")
    table = await gaggle("reminders", "list")
    assert "\x1b" not in table
    assert "2031-01-30 18:00:00" in table
    assert "Pay" in table

    await gaggle("reminders", "snooze", first["id"], "--until", "2031-02-01 18:00", "--with-task")
    found = {one["id"]: one for one in await _listed(gaggle, "--task", task_id)}
    assert (found[first["id"]]["state"], found[first["id"]]["remindAt"]) == (
        "REMINDER_STATE_SNOOZED",
        "2031-02-01T17:00:00Z",
    )
    assert found[second["id"]]["remindAt"] == "2031-02-02T16:00:00Z"

    await gaggle("reminders", "cancel", first["id"])
    assert [one["id"] for one in await _listed(gaggle)] == [second["id"]]
    await gaggle("reminders", "cancel", "--task", task_id)
    assert await _listed(gaggle) == []
    assert {one["state"] for one in await _listed(gaggle, "--all")} == {"REMINDER_STATE_CANCELLED"}
    assert "cancelled" in await gaggle("reminders", "snooze", first["id"], "--for", "1h", code=1)


async def test_what_goes_wrong(gaggle: Command) -> None:
    """A slip of the person is told in a line: exit code 2 if it is wrong in itself, 1 if the service refuses."""
    assert "write" in await gaggle("reminders", "snooze", "x", "--for", "soon", code=2)
    assert "zone" in await gaggle("reminders", "snooze", "x", "--until", "today", "--zone", "Mars/Olympus", code=2)
    assert "--until" in await gaggle("reminders", "snooze", "x", "--for", "1h", "--until", "today", code=2)
    assert "--task" in await gaggle("reminders", "cancel", code=2)
    assert "no reminder" in await gaggle("reminders", "cancel", "missing", code=1)
