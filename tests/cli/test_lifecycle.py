"""How a mesh begins and ends: refusals, data that stays, and nothing left running."""

import os
import signal
import sys
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from cli.errors import Refused
from cli.mesh.data import DataDirectory
from cli.mesh.leftovers import find_process
from cli.mesh.lock import hold_mesh_locks
from tests.cli.command import MINI_MESH, gaggle
from tests.conditions import eventually
from tests.mesh_fixture import Mesh, start_mesh

pytestmark = pytest.mark.mesh


def test_a_second_bare_mesh_is_refused(tmp_path: Path) -> None:
    """Without a suffix there is one mesh on a machine, and who starts another learns where the first one is."""
    first = DataDirectory.at(tmp_path / "first")
    first.create()
    with ExitStack() as held:
        # Where a person's bare mesh runs on this machine, that one stands in the way just as well.
        with suppress(Refused):
            held.enter_context(hold_mesh_locks(first, ""))
        result = gaggle("up", "--file", str(MINI_MESH), data=tmp_path / "second", GAGGLE_APP_ID_SUFFIX="")

    assert result.returncode == 4
    assert "GAGGLE_APP_ID_SUFFIX" in result.stderr


async def test_data_survives_down_and_up(tmp_path: Path) -> None:
    """What was acknowledged before `gaggle down` is there after `gaggle up`, under the same app ids."""
    key, value = f"key-{uuid.uuid4().hex}", "kept"
    mesh = start_mesh(tmp_path / "data", run_file=MINI_MESH)
    app_id = mesh.service("task").app_id
    async with httpx.AsyncClient() as client:
        saved = await client.post(_state(mesh), json=[{"key": key, "value": value}])
        assert saved.status_code == 204, saved.text
    mesh.stop()
    assert gaggle("status", data=mesh.data.path).returncode == 3

    mesh = start_mesh(tmp_path / "data", run_file=MINI_MESH)
    try:
        assert mesh.service("task").app_id == app_id
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{_state(mesh)}/{key}")).json() == value
    finally:
        mesh.stop()
    reset = gaggle("reset", "--yes", data=mesh.data.path)
    assert reset.returncode == 0, reset.stderr
    assert not mesh.data.path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
async def test_no_process_is_left_however_the_supervisor_ends(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, a polite kill and `kill -9` of the supervisor all leave nothing running."""
    if number is signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a process of its parent's death")
    mesh = start_mesh(tmp_path / "data", run_file=MINI_MESH)
    before = mesh.description

    os.kill(before.supervisor_pid, number)

    async def all_gone() -> bool:
        left = [name for name, entry in before.processes.items() if find_process(entry)]
        return not left and not psutil.pid_exists(before.supervisor_pid)

    await eventually(all_gone, within=30, what="every process gone, the supervisor last")
    if number is signal.SIGKILL:
        # It had no time to tidy up: the next command does.
        assert gaggle("status", data=mesh.data.path).returncode == 3
        assert gaggle("down", data=mesh.data.path).returncode == 0
    assert not mesh.file.exists()


def test_reset_asks_and_spares_what_is_not_its_own(tmp_path: Path) -> None:
    """No directory is removed without a yes, nor one that no mesh has made."""
    (tmp_path / "precious").touch()
    foreign = gaggle("reset", "--yes", data=tmp_path)
    assert foreign.returncode == 4

    data = DataDirectory.at(tmp_path / "data")
    data.create()
    data.keep_suffix("-x")
    unanswered = gaggle("reset", data=data.path)

    assert unanswered.returncode == 1
    assert data.path.exists()
    assert (tmp_path / "precious").exists()


def _state(mesh: Mesh) -> str:
    return f"http://{mesh.service('task').sidecar_http}/v1.0/state/statestore"
