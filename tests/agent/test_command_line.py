"""`gaggle chat` and `gaggle sessions` on the real mesh."""

import json
import subprocess
import sys

import pytest

from tests.agent.agents import Turns
from tests.agent.scripted import script
from tests.mesh_fixture import Mesh

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("agents")]


def _gaggle(mesh: Mesh, user: str, *arguments: str, say: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.main", *arguments, "--user", user, "--data", str(mesh.data.path)]
    return subprocess.run(command, input=say, capture_output=True, text=True, timeout=60, check=False)


def test_lines_of_a_conversation(agents: Mesh, user: str) -> None:
    """Each line is a turn of one conversation; what is said comes out as it is, and what it cost."""
    done = _gaggle(agents, user, "chat", say="say one\nsay [two] :smile:\n")
    assert done.returncode == 0, done.stderr
    assert "one" in done.stdout
    assert "[two] :smile:" in done.stdout
    assert done.stdout.count(" in, ") == 2
    listed = _gaggle(agents, user, "conversations", "list", "--json")
    assert len(listed.stdout.splitlines()) == 1


def test_one_message_as_json(agents: Mesh, user: str) -> None:
    """--json gives the events of the contract, one a line."""
    done = _gaggle(agents, user, "chat", script({"text": "hi"}), "--model", "scripted:one", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["started"]["model"] == "scripted:one"
    assert events[-1]["ended"]["status"] == "TURN_STATUS_COMPLETED"


def test_failures_show(agents: Mesh, user: str) -> None:
    """A turn that failed says why, and the exit code says that it did."""
    done = _gaggle(agents, user, "chat", script({"refusal": "I won't"}), "--model", "scripted:one")
    assert done.returncode == 1
    assert "MODEL_REFUSED" in done.stdout
    done = _gaggle(agents, user, "chat", "x", "--model", "nothing")
    assert done.returncode == 1
    assert "model: there is no model of this name" in done.stderr


async def test_sessions_and_usage(agents: Mesh, turns: Turns) -> None:
    """Sessions are listed and shown; usage is summed by day and model."""
    session = (await turns("CreateSession", name="Work [a]")).session
    assert _gaggle(agents, turns.user, "chat", "say x", "--session", session.id).returncode == 0
    listed = _gaggle(agents, turns.user, "sessions", "list")
    assert "Work [a]" in listed.stdout
    shown = json.loads(_gaggle(agents, turns.user, "sessions", "show", session.id).stdout)
    assert shown["turnCount"] == "1"
    usage = _gaggle(agents, turns.user, "sessions", "usage")
    assert "offline" in usage.stdout
    assert "in all" in usage.stdout
    missing = _gaggle(agents, turns.user, "sessions", "show", "none")
    assert (missing.returncode, "NOT_FOUND" in missing.stderr) == (1, True)
