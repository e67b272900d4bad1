"""`gaggle tasks` on a real mesh, as programs of their own."""

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
def tasks(mesh: Mesh, user: str) -> Command:
    """Runs `gaggle tasks` as the test's user; gives standard output, or with `code` what it said on stderr."""
    path = os.pathsep.join([str(PROJECT_ROOT), str(PROJECT_ROOT / "gen")])
    environment = {"GAGGLE_DATA": str(mesh.data.path), "PYTHONPATH": path, "GAGGLE_USER": user, "TZ": "Europe/Berlin"}

    async def run(*arguments: str, code: int = 0) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli.main", "tasks", *arguments),
            env=os.environ | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == code, err.decode()
        return (err if code else out).decode()

    return run


async def _listed(tasks: Command, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await tasks("list", "--json", *arguments)).splitlines()]


async def test_a_tasks_life(tasks: Command) -> None:
    """A task is added with all it may have, listed, edited for once, done, undone and removed."""
    added = await tasks(
        *("add", "Pay \x1b[31mrent", "--due", "2031-01-31 18:00", "--repeat", "FREQ=MONTHLY;BYMONTHDAY=-1"),
        *("--remind", "1h", "--remind", "1d", "-p", "high", "--tag", "home", "-d", "by transfer"),
    )
    task_id = added.strip()
    (task,) = await _listed(tasks)
    assert task["dueTime"] == "2031-01-31T17:00:00Z"
    assert (task["id"], task["timeZone"], task["tags"]) == (task_id, "Europe/Berlin", ["home"])
    assert (task["priority"], task["reminderOffsets"]) == ("TASK_PRIORITY_HIGH", ["3600s", "86400s"])
    table = await tasks("list", "--by", "due", "--text", "RENT", "--due-from", "2031-01-01")
    assert "\x1b" not in table
    assert "2031-01-31 18:00" in table
    assert task_id in table
    assert not await _listed(tasks, "--tag", "work")
    await tasks("edit", task_id, "--only-this", "--due", "2031-02-01 12:00", "--tag", "late", "--remind", "none")
    (task,) = await _listed(tasks)
    assert (task["dueTime"], task["tags"]) == ("2031-02-01T11:00:00Z", ["late"])
    assert "reminderOffsets" not in task
    await tasks("done", task_id)

    async def followed() -> list[dict[str, Any]]:
        return await _listed(tasks)

    (following,) = await eventually(followed, within=30.0, what="the next occurrence")
    assert (following["dueTime"], following["tags"]) == ("2031-02-28T17:00:00Z", ["home"])
    assert [one["id"] for one in await _listed(tasks, "--done")] == [task_id]
    await tasks("done", "--undo", task_id)
    assert len(await _listed(tasks, "--limit", "1")) == 1
    await tasks("rm", task_id, following["id"])
    assert await _listed(tasks, "--all") == []


async def test_what_goes_wrong(tasks: Command) -> None:
    """A slip of the person is told in a line: exit code 2 if it is wrong in itself, 1 if the service refuses."""
    assert "write" in await tasks("add", "x", "--due", "someday", code=2)
    assert "zone" in await tasks("add", "x", "--due", "today", "--zone", "Mars/Olympus", code=2)
    assert "FREQ" in await tasks("add", "x", "--due", "today", "--repeat", "fortnightly", code=1)
    assert "NOT_FOUND" in await tasks("done", "missing", code=1)
