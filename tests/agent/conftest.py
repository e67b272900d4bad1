"""Fixtures: a mesh with two replicas of the agent, and the scripted model that it asks."""

import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.agent.agents import Turns
from tests.agent.scripted import KEY, ScriptedModel
from tests.mesh_fixture import Mesh, start_mesh

_LOCAL = Path(__file__).parents[2] / "dapr-components" / "local"
SERVICES = ["conversation", "audit", "extension", "agent"]


@pytest.fixture(scope="session")
def scripted() -> Iterator[ScriptedModel]:
    """The model's endpoint."""
    model = ScriptedModel()
    yield model
    model.stop()


@pytest.fixture(scope="session")
def agents(scripted: ScriptedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two replicas of the agent beside what they stand on; its tests may kill them."""
    prices = {"input": 1.0, "output": 2.0, "cache_read": 0.5}
    endpoint: dict[str, Any] = {
        "name": "scripted",
        "base_url": scripted.start(),
        "secret": "scripted-key",
        "models": {"one": {"context_tokens": 8000, "prices": prices}, "small": {"context_tokens": 600}},
        "timeout_seconds": 30,
    }
    keyless = {"name": "keyless", "base_url": endpoint["base_url"], "secret": "no-such-secret"}
    data = tmp_path_factory.mktemp("agents")
    (data / "secrets.json").write_text(json.dumps({"scripted-key": KEY}))
    (data / "secrets.json").chmod(0o600)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GAGGLE_MODEL_ENDPOINTS", json.dumps([endpoint, keyless]))
        environment.setenv("GAGGLE_DAPR_MODELS", json.dumps([{"component": "echo"}, {"component": "asked-by-dapr"}]))
        environment.setenv("GAGGLE_MODEL_BACKOFF_SECONDS", "0.05")
        environment.setenv("GAGGLE_CHAT_EXTENSIONS", "[]")
        environment.setenv("GAGGLE_LEASE_SECONDS", "4")
        environment.setenv("GAGGLE_RECOVERY_SECONDS", "0.5")
        components = str(_with_models(tmp_path_factory.mktemp("sets") / "local", endpoint["base_url"]))
        mesh = start_mesh(data, only=SERVICES, replicas={"agent": 2}, components=components)
    yield mesh
    mesh.stop()


def _with_models(folder: Path, url: str) -> Path:
    """The local set, and beside it two conversation components: one that repeats, one that asks the scripted model."""
    shutil.copytree(_LOCAL, folder)
    asks: list[dict[str, Any]] = [
        {"name": "key", "secretKeyRef": {"name": "scripted-key", "key": "scripted-key"}},
        {"name": "model", "value": "two"},
        {"name": "endpoint", "value": url},
    ]
    for name, kind, metadata in (("echo", "echo", []), ("asked-by-dapr", "openai", asks)):
        component = {
            "apiVersion": "dapr.io/v1alpha1",
            "kind": "Component",
            "metadata": {"name": name},
            "spec": {"type": f"conversation.{kind}", "version": "v1", "metadata": metadata},
            "auth": {"secretStore": "secretstore"},
            "scopes": ["agent"],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(component))
    return folder


@pytest.fixture
async def turns(agents: Mesh, user: str) -> AsyncIterator[Turns]:
    """The test's user."""
    async with AsyncExitStack() as stack:
        yield await _turns(agents, user, stack)


@pytest.fixture
async def stranger(agents: Mesh, user: str) -> AsyncIterator[Turns]:
    """Another user."""
    async with AsyncExitStack() as stack:
        yield await _turns(agents, f"{user}-stranger", stack)


async def _turns(mesh: Mesh, user: str, stack: AsyncExitStack) -> Turns:
    channels = [await stack.enter_async_context(mesh.channel("agent", replica)) for replica in range(2)]
    others = {name: await stack.enter_async_context(mesh.channel(name)) for name in ("conversation", "extension")}
    return Turns(mesh, user, channels, others)


@pytest.fixture
def effects(tmp_path: Path) -> Callable[[], list[str]]:
    """The lines that tools have written to the test's file; the file is `effects.path`."""
    path = tmp_path / "effects"

    def read() -> list[str]:
        return path.read_text().splitlines() if path.exists() else []

    read.path = str(path)  # type: ignore[attr-defined]
    return read
