"""What `gaggle up` tells Prometheus and its sidecars' Configurations."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.errors import CommandError
from cli.mesh.data import DataDirectory
from cli.mesh.description import MeshDescription, ReplicaDescription, ServiceDescription
from cli.mesh.observing import OTLP, RATIO, ZIPKIN, with_tracing, write_targets

_CONFIGURATION: dict[str, Any] = {"kind": "Configuration", "spec": {"tracing": {"samplingRate": "0.01"}, "metrics": {}}}


def _replica(name: str, port: int) -> ReplicaDescription:
    return ReplicaDescription(
        name=name,
        address=f"127.0.0.1:{port}",
        sidecar_grpc=f"127.0.0.1:{port + 100}",
        sidecar_http=f"127.0.0.1:{port + 200}",
        sidecar_internal=f"127.0.0.1:{port + 300}",
        sidecar_metrics=f"127.0.0.1:{port + 400}",
        metrics=f"127.0.0.1:{port + 500}",
    )


def test_prometheus_is_told_of_every_process(tmp_path: Path) -> None:
    """Each replica, each sidecar, placement and scheduler is a target, under its name."""
    mesh = MeshDescription.model_construct(
        services={
            "task": ServiceDescription(app_id="task", replicas=[_replica("task", 1000), _replica("task-2", 1020)])
        },
        placement="127.0.0.1:7000",
        scheduler="127.0.0.1:7004",
    )

    write_targets(mesh, DataDirectory(tmp_path))

    found = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "targets").iterdir()}
    assert found == {
        "services": [
            {"targets": ["127.0.0.1:1500"], "labels": {"service": "task", "replica": "task"}},
            {"targets": ["127.0.0.1:1520"], "labels": {"service": "task", "replica": "task-2"}},
        ],
        "sidecars": [
            {"targets": ["127.0.0.1:1400"], "labels": {"service": "task", "replica": "task"}},
            {"targets": ["127.0.0.1:1420"], "labels": {"service": "task", "replica": "task-2"}},
        ],
        "control-plane": [
            {"targets": ["127.0.0.1:7002"], "labels": {"service": "placement", "replica": "placement"}},
            {"targets": ["127.0.0.1:7006"], "labels": {"service": "scheduler", "replica": "scheduler"}},
        ],
    }


@pytest.mark.parametrize(
    ("environment", "tracing"),
    [
        ({}, {"samplingRate": "0.01"}),
        ({RATIO: "1"}, {"samplingRate": "1"}),
        (
            {ZIPKIN: "http://z:9411/api/v2/spans"},
            {"samplingRate": "0.01", "zipkin": {"endpointAddress": "http://z:9411/api/v2/spans"}},
        ),
        (
            {OTLP: "http://c:4317"},
            {"samplingRate": "0.01", "otel": {"endpointAddress": "c:4317", "isSecure": False, "protocol": "grpc"}},
        ),
        (
            {OTLP: "https://c:4317"},
            {"samplingRate": "0.01", "otel": {"endpointAddress": "c:4317", "isSecure": True, "protocol": "grpc"}},
        ),
    ],
    ids=["nothing said", "ratio", "zipkin", "otlp", "otlp by TLS"],
)
def test_sidecars_trace_as_services_do(environment: dict[str, str], tracing: dict[str, Any]) -> None:
    """One setting says for a service and its sidecar how many calls are traced and where traces go."""
    effective = with_tracing(_CONFIGURATION, environment)

    assert effective["spec"] == {"tracing": tracing, "metrics": {}}
    assert _CONFIGURATION["spec"]["tracing"] == {"samplingRate": "0.01"}


@pytest.mark.parametrize(
    "environment",
    [{RATIO: "often"}, {RATIO: "2"}, {ZIPKIN: "zipkin:9411"}, {OTLP: "127.0.0.1:4317"}],
    ids=["no number", "more than all", "no address for zipkin", "no address for otlp"],
)
def test_a_mistake_in_the_settings_is_said_by_name(environment: dict[str, str]) -> None:
    """A mesh is not started with traces that would go nowhere in silence."""
    with pytest.raises(CommandError, match=next(iter(environment))):
        with_tracing(_CONFIGURATION, environment)
