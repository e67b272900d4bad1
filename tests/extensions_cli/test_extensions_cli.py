"""`gaggle extensions` on a real mesh."""

import asyncio
import json
import os
import subprocess
import sys

import pytest

from cli.mesh.data import PROJECT_ROOT
from tests.mcp_servers import servers
from tests.mesh_fixture import Mesh

pytestmark = pytest.mark.mesh


async def _gaggle(mesh: Mesh, user: str, *arguments: str, code: int = 0) -> tuple[str, str]:
    """Run `gaggle extensions ...`, which must end with `code`; gives both of its outputs."""
    path = os.pathsep.join([str(PROJECT_ROOT), str(PROJECT_ROOT / "gen")])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "extensions", *arguments),
        env=os.environ
        | {"GAGGLE_DATA": str(mesh.data.path), "PYTHONPATH": path, "GAGGLE_USER": user, "COLUMNS": "160"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = (one.decode() for one in await process.communicate())
    assert process.returncode == code, (out, err)
    return out, err


async def test_from_add_to_remove(mesh: Mesh, user: str) -> None:
    """An extension is added, loaded, listed, asked for its tools, called and removed from the terminal."""
    added, _ = await _gaggle(mesh, user, "add", "odd", "-d", "odd things", "--env", "A=1", "--", *servers.ODD)
    assert len(added.strip()) == 36
    refused, said = await _gaggle(mesh, user, "call", "odd", "count", code=1)
    assert refused == ""
    assert "load it" in said
    loaded, _ = await _gaggle(mesh, user, "load", "odd")
    assert loaded.startswith("odd: ")
    listed, _ = await _gaggle(mesh, user, "list")
    assert "loaded" in next(line for line in listed.splitlines() if line.strip().startswith("odd"))
    tools, _ = await _gaggle(mesh, user, "tools", "odd")
    assert "append(path, text)" in tools
    text, _ = await _gaggle(mesh, user, "call", "odd", "flood", "size=3")
    assert text == "xxx\n"
    slow = json.dumps({"seconds": 0.2, "mark": os.devnull})
    out, progress = await _gaggle(mesh, user, "call", "odd", "slow", slow, "--via", "conversation")
    assert out == "slept\n"
    assert "0.2 sleeping" in progress
    _, wrong = await _gaggle(mesh, user, "call", "odd", "flood", "size=much", code=1)
    assert "INVALID_FIELD" in wrong
    failed, _ = await _gaggle(mesh, user, "call", "odd", "fail", "why=because", code=1)
    assert "because" in failed
    shown, _ = await _gaggle(mesh, user, "list", "--loaded", "--json")
    assert json.loads(shown)["config"]["stdio"]["envs"] == {"A": "1"}
    await _gaggle(mesh, user, "unload", "odd")
    await _gaggle(mesh, user, "remove", "odd")
    _, gone = await _gaggle(mesh, user, "load", "odd", code=1)
    assert "NOT_FOUND" in gone


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["add", "x"], id="neither command nor url"),
        pytest.param(["add", "x", "--url", "http://x", "--", "y"], id="both"),
        pytest.param(["add", "x", "--env", "A", "--", "y"], id="no value"),
        pytest.param(["call", "x", "y", "z"], id="an argument without a name"),
    ],
)
async def test_wrong_usage(mesh: Mesh, user: str, arguments: list[str]) -> None:
    """What can't be meant is told, with exit code 2, and nothing is called."""
    await _gaggle(mesh, user, *arguments, code=2)


async def test_what_the_deployment_does_not_allow(mesh: Mesh, user: str) -> None:
    """A command that is not on the list is told by its reason."""
    await _gaggle(mesh, user, "add", "shell", "--", "sh", "-c", "true")
    _, said = await _gaggle(mesh, user, "load", "shell", code=1)
    assert "MCP_TARGET_BLOCKED" in said
