"""Fixtures: one mesh for each component set, one after the other."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.mesh.data import PROJECT_ROOT
from services.runtime.dapr import dapr_pb2_grpc, pubsub_pb2
from tests.brokers.probe import TOPIC, deliveries
from tests.mesh_fixture import Mesh, start_mesh

ALL_SETS = ("local", "rabbitmq", "kafka", "kafka-cloud", "todo")
SETS = tuple(os.environ.get("GAGGLE_TEST_SETS", ",".join(ALL_SETS)).split(","))
RUN_FILE = Path(__file__).with_name("mesh.yaml")
_MESHES = {"own", "whole"}
"""Fixtures that start a mesh for each set."""


class BrokerMesh(Mesh):
    """A mesh on one component set, with the probe in it."""

    deliveries_file: Path

    @property
    def set(self) -> str:
        """The component set's name."""
        return self.description.component_set

    @property
    def pubsub(self) -> str:
        """The pub/sub component's name."""
        return self.description.settings.get("GAGGLE_PUBSUB", "pubsub")

    def deliveries(self, topic: str) -> list[str]:
        """Ids of the events that the probe wrote down under a topic, or as "taken" or "dead-letter", in their order."""
        return [one["id"] for one in deliveries(self.deliveries_file) if one["topic"] == topic]

    async def publish(self, topic: str, data: bytes, *, key: str = "", service: str = "probe") -> None:
        """Publish JSON as any application does that has a sidecar."""
        async with self.sidecar(service) as channel:
            await publish(channel, self.pubsub, topic, data, key=key)


async def publish(channel: Any, pubsub: str, topic: str, data: bytes, *, key: str = "") -> None:
    """Publish JSON on a sidecar's channel."""
    stub: Any = dapr_pb2_grpc.DaprStub(channel)  # type: ignore[no-untyped-call]
    request = pubsub_pb2.PublishEventRequest(
        pubsub_name=pubsub, topic=topic, data=data, data_content_type="application/json"
    )
    if key:
        request.metadata["partitionKey"] = key
    await stub.PublishEvent(request, timeout=30)


def with_probe(source: Path, target: Path) -> Path:
    """Copy a component set, with the probe in every scope; audit's sidecar, too, may publish its topic."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".yaml" or file.name == "config.yaml":
            (target / file.name).write_bytes(file.read_bytes())
            continue
        document = yaml.safe_load(file.read_text())
        for item in document["spec"].get("metadata") or []:
            if item["name"] == "publishingScopes":
                item["value"] = item["value"].replace("audit=", f"audit={TOPIC},")
        (target / file.name).write_text(yaml.safe_dump(document | {"scopes": [*document["scopes"], "probe"]}))
    return target


# First, since xdist reads the groups in this hook, too.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, on each set, the tests that are marked as other sets' (`@pytest.mark.sets(...)`).

    What is left of a set stays together, so that workers side by side have a mesh each.
    """
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        marker = item.get_closest_marker("sets")
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        for mesh in _MESHES & parameters.keys():
            item.add_marker(pytest.mark.xdist_group(f"{mesh}-{parameters[mesh]}"))
        chosen = parameters.get("own")
        (kept if marker is None or chosen is None or chosen in marker.args else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture(scope="session", params=SETS)
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerMesh]:
    """A mesh of the set, whose processes may be killed."""
    folder = tmp_path_factory.mktemp("mesh")
    components = with_probe(PROJECT_ROOT / "dapr-components" / request.param, folder / "sets" / request.param)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GAGGLE_PROBE_FILE", str(folder / "deliveries.jsonl"))
        started = start_mesh(folder / "data", run_file=RUN_FILE, components=str(components))
    mesh = BrokerMesh(started.file)
    mesh.deliveries_file = folder / "deliveries.jsonl"
    yield mesh
    mesh.stop()


@pytest.fixture
async def audit(own: BrokerMesh) -> AsyncIterator[Any]:
    """The audit service's stub."""
    from gaggle.audit.v1 import audit_service_pb2_grpc

    async with own.channel("audit") as channel:
        yield audit_service_pb2_grpc.AuditServiceStub(channel)
