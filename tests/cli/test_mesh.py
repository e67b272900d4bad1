"""`gaggle up` and what follows, on real PostgreSQL, Redis, placement, scheduler and daprd, around one tiny service."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.cli.command import MINI_MESH, gaggle
from tests.conditions import eventually
from tests.mesh_fixture import Mesh

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("mini")]

_BACK_SECONDS = 10.0


@pytest.fixture(scope="module")
def mini(private_mesh: Callable[..., Mesh]) -> Mesh:
    """A mesh of one service in two replicas."""
    return private_mesh(run_file=MINI_MESH, replicas={"task": 2})


async def _health(channel: grpc.aio.Channel, app_id: str | None = None) -> int:
    metadata = (("dapr-app-id", app_id),) if app_id else ()
    async with channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), metadata=metadata, timeout=10, wait_for_ready=True
        )
    return int(answer.status)


async def test_every_service_is_reached_by_its_port_and_through_any_sidecar(mini: Mesh) -> None:
    """A client needs nothing but an address, and for a sidecar the app id."""
    app_id = mini.service("task").app_id
    assert app_id.startswith("task-t")

    for replica in range(2):
        assert await _health(mini.channel("task", replica)) == health_pb2.HealthCheckResponse.SERVING
        assert await _health(mini.sidecar("task", replica), app_id) == health_pb2.HealthCheckResponse.SERVING


def test_status_tells_all_of_it_and_pipes(mini: Mesh) -> None:
    """`gaggle status --json` names every process with its state, id, ports and memory."""
    result = gaggle("status", "--json", data=mini.data.path)

    assert result.returncode == 0, result.stderr
    status = json.loads(result.stdout)
    assert status["state"] == "ready"
    assert [row["name"] for row in status["services"]] == ["task", "task-2"]
    assert [row["name"] for row in status["infrastructure"]] == ["postgres", "redis", "placement", "scheduler"]
    for row in status["services"]:
        assert row["state"] == row["sidecar_state"] == "ready"
        assert psutil.pid_exists(row["pid"])
        assert 0 < row["memory_bytes"] + row["sidecar_memory_bytes"] < 200_000_000
    table = gaggle("status", data=mini.data.path).stdout
    assert mini.service("task").address.rpartition(":")[2] in table


def test_only_loopback_is_listened_on(mini: Mesh) -> None:
    """Nobody on the network can call a service, a sidecar, a store or a metrics page of a local mesh."""
    mesh = mini.description
    # Dapr 1.18 ignores --healthz-listen-address; these two answer "ready" or "not ready" and nothing else.
    health = {int(address.rpartition(":")[2]) + 1 for address in (mesh.placement, mesh.scheduler)}
    open_to_all = {
        (name, connection.laddr.port)
        for name, entry in mesh.processes.items()
        for connection in psutil.Process(entry.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr.ip not in {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    }

    assert {(name, port) for name, port in open_to_all if port not in health} == set()


def test_the_log_of_every_process_is_at_hand(mini: Mesh) -> None:
    """`gaggle logs` prints a sidecar's log, and names the logs there are when it is asked for another one."""
    assert '"msg":' in gaggle("logs", "task", "--sidecar", "-n", "5", data=mini.data.path).stdout
    missing = gaggle("logs", "nobody", data=mini.data.path)
    assert missing.returncode == 1
    assert "postgres" in missing.stderr


async def test_the_sidecar_withholds_other_services_keys(mini: Mesh) -> None:
    """A service reads the secrets that are for it, and no other service's private key."""
    async with httpx.AsyncClient(
        base_url=f"http://{mini.service('task').sidecar_http}/v1.0/secrets/secretstore"
    ) as client:
        assert "keys" in (await client.get("/token-jwks")).json()["token-jwks"]
        assert (await client.get("/service-key-task")).status_code == 200
        assert (await client.get("/service-key-conversation")).status_code == 403
        assert "service-key-conversation" not in (await client.get("/bulk")).json()


@pytest.mark.parametrize("name", ["task", "task-2.daprd", "redis", "postgres"])
async def test_a_killed_process_is_back_within_ten_seconds(mini: Mesh, name: str) -> None:
    """`kill -9` of any process costs seconds, and the mesh's log says that it happened."""
    await mini.killed(name, within=_BACK_SECONDS)

    async def all_well() -> bool:
        return all(state == "ready" for _, state in (await asyncio.to_thread(mini.states)).values())

    await eventually(all_well, within=_BACK_SECONDS, what="everything ready again")
    assert f"{name} was ended by SIGKILL; starting it again" in mini.data.log("mesh").read_text()


async def test_restart_replaces_every_replica_and_returns_when_they_are_ready(mini: Mesh) -> None:
    """`gaggle restart SERVICE` leaves new processes that serve, and the stores untouched."""
    before = mini.states()

    assert await mini.restart("task") == ["task", "task-2"]

    after = mini.states()
    assert {state for _, state in after.values()} == {"ready"}
    replaced = {name for name, (pid, _) in after.items() if pid != before[name][0]}
    assert replaced == {"task", "task.daprd", "task-2", "task-2.daprd"}


def test_restarting_what_is_not_there_names_what_is(mini: Mesh) -> None:
    """A typing error in a service's name is answered with the names."""
    result = gaggle("restart", "taks", data=mini.data.path)

    assert result.returncode == 1
    assert "task-2.daprd" in result.stderr


def test_a_second_mesh_on_the_data_or_the_suffix_is_refused(mini: Mesh, tmp_path: Path) -> None:
    """Two meshes never share data nor find each other's services; the second is told so, with exit code 4."""
    same_data = gaggle("up", "--detach", "--file", str(MINI_MESH), data=mini.data.path)
    suffix = mini.description.app_id_suffix
    same_suffix = gaggle("up", "--file", str(MINI_MESH), data=tmp_path / "second", GAGGLE_APP_ID_SUFFIX=suffix)

    assert (same_data.returncode, same_suffix.returncode) == (4, 4)
    assert "already" in same_data.stderr
    assert str(mini.data.path) in same_suffix.stderr
    assert {state for _, state in mini.states().values()} == {"ready"}
