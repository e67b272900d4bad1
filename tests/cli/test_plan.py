"""From dapr.yaml and the command line to what runs where."""

import socket
from pathlib import Path

import pytest

from cli.errors import CommandError
from cli.mesh.data import PROJECT_ROOT
from cli.mesh.plan import make_plan
from cli.mesh.ports import Ports, find_free_base, is_free
from cli.mesh.runfile import RunFile

_MINI = Path(__file__).with_name("mini-mesh.yaml")


def _run_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "dapr.yaml"
    path.write_text(text)
    return path


def test_the_committed_mesh_has_distinct_ports_from_50101() -> None:
    """No two processes of the default mesh want one port, and the first service is where the documents say."""
    apps = RunFile.load(PROJECT_ROOT / "dapr.yaml").apps
    ports = [
        port
        for app in apps
        for port in (
            app.app_port,
            app.dapr_grpc_port,
            app.dapr_http_port,
            app.dapr_internal_grpc_port,
            app.metrics_port,
            app.service_metrics_port,
            *([] if app.service_http_port is None else [app.service_http_port]),
        )
    ]

    assert len({*ports, *Ports().infrastructure}) == len(ports) + len(Ports().infrastructure)
    assert min(ports) == 50101


def test_replicas_share_an_app_id_and_no_port() -> None:
    """Pairs of service and sidecar compete for events under one app id, each on ports of its own."""
    plan = make_plan(RunFile.load(_MINI), suffix="-t1", port_base=20_000, replicas={"task": 3})

    assert [replica.name for replica in plan.replicas] == ["task", "task-2", "task-3"]
    assert {replica.app_id for replica in plan.replicas} == {"task-t1"}
    ports = [port for replica in plan.replicas for port in replica.ports]
    assert len(set(ports)) == len(ports)
    assert min(ports) == 20_000


def test_a_service_without_code_is_left_out() -> None:
    """dapr.yaml may name what is still to be written."""
    run_file = RunFile.load(_MINI)

    assert [app.service for app in run_file.apps] == ["task", "conversation"]
    assert make_plan(run_file).services == ["task"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        pytest.param({"only": ["nobody"]}, "no service 'nobody'", id="unknown service"),
        pytest.param({"replicas": {"task": 6}}, "1 to 5 replicas", id="too many replicas"),
        pytest.param({"port_base": 80}, "--port-base", id="privileged port"),
    ],
)
def test_what_cannot_be_run_is_refused(options: dict[str, object], told: str) -> None:
    """A slip on the command line is named before anything starts."""
    with pytest.raises(CommandError, match=told):
        make_plan(RunFile.load(_MINI), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("version: 2\napps: []", "version: 1", id="another version"),
        pytest.param("version: 1\napps: [{appID: a, command: [x]}]", "app 'a', appDirPath", id="missing field"),
        pytest.param("version: 1\napps: [", "not YAML", id="broken YAML"),
    ],
)
def test_a_bad_run_file_is_told_by_app_and_field(tmp_path: Path, text: str, told: str) -> None:
    """A mistake in dapr.yaml is found by what the message says."""
    with pytest.raises(CommandError, match=told):
        RunFile.load(_run_file(tmp_path, text))


def test_a_port_in_use_is_noticed() -> None:
    """The mesh refuses ports that another program holds, rather than starting half of itself."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert not is_free(port)
        plan = make_plan(RunFile.load(_MINI), port_base=port)
        assert port in plan.occupied()


def test_free_ports_are_found_below_those_of_outgoing_connections() -> None:
    """Ports found for a test mesh are free, and no outgoing connection takes one between two starts of a process."""
    ports = find_free_base([50101, 50201])

    assert all(is_free(port) for port in [ports.base, ports.shifted(50201), *ports.infrastructure])
    assert max(ports.infrastructure) < 32_768
