"""Component YAML: what is committed, and what a mesh makes of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.errors import CommandError
from cli.mesh.components import effective_component, write_components
from cli.mesh.data import PROJECT_ROOT, DataDirectory
from cli.mesh.runfile import RunFile
from cli.mesh.sets import ComponentSet

_LOCAL = PROJECT_ROOT / "dapr-components" / "local"
_COMPONENTS = [path for path in sorted(_LOCAL.glob("*.yaml")) if path.name not in {"config.yaml", "resiliency.yaml"}]


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", _COMPONENTS, ids=lambda path: path.stem)
def test_every_component_has_scopes_and_no_secret_in_it(path: Path) -> None:
    """No component is open to every app, and none holds a password or a connection string."""
    component = _load(path)

    assert component["scopes"]
    assert component["metadata"]["name"] == path.stem
    for item in component["spec"]["metadata"]:
        named_like_a_secret = any(word in item["name"].lower() for word in ("password", "connectionstring", "url"))
        assert ("secretKeyRef" in item) or not named_like_a_secret


def test_durations_of_redis_are_numbers_and_the_retry_outlasts_the_processing_time() -> None:
    """The broker's component gives an event up only after the inbound retry did, or it would lose it."""
    settings = {item["name"]: item.get("value") for item in _load(_LOCAL / "pubsub.yaml")["spec"]["metadata"]}
    retry = _load(_LOCAL / "resiliency.yaml")["spec"]["policies"]["retries"]["delivery"]

    processing_ms = int(settings["processingTimeout"])
    assert processing_ms > 0
    assert int(settings["redeliverInterval"]) > 0
    assert retry["policy"] == "constant"
    assert int(retry["duration"].removesuffix("ms")) * retry["maxRetries"] > processing_ms


def test_effective_components_carry_the_suffix_and_the_secrets_file(tmp_path: Path) -> None:
    """A suffixed mesh reads its own secrets, and its components are for its own app ids alone."""
    data = DataDirectory.at(tmp_path / "data")
    data.create()
    (data.components / "gone.yaml").write_text("")

    write_components(ComponentSet.load(_LOCAL), data, "-t1")

    written = {path.stem: _load(path) for path in data.components.glob("*.yaml")}
    assert sorted(written) == sorted(path.stem for path in [*_COMPONENTS, _LOCAL / "resiliency.yaml"])
    assert all(scope.endswith("-t1") for document in written.values() for scope in document["scopes"])
    assert written["secretstore"]["spec"]["metadata"] == [{"name": "secretsFile", "value": str(data.secrets_file)}]


def test_nothing_else_is_changed() -> None:
    """Without a suffix, a component that is not the local secret store stays as it was committed."""
    for path in _COMPONENTS:
        if path.stem != "secretstore":
            assert effective_component(_load(path), Path("/elsewhere"), "") == _load(path)


@pytest.mark.parametrize(
    ("name", "broker", "authenticates"),
    [
        ("local", "redis", False),
        ("rabbitmq", "rabbitmq", False),
        ("kafka", "kafka", False),
        ("kafka-cloud", "kafka", True),
        ("todo", "kafka", False),
    ],
)
def test_the_broker_follows_from_the_components(name: str, broker: str, *, authenticates: bool) -> None:
    """What has to be started for a set is written down once: in its components."""
    components = ComponentSet.load(_LOCAL.parent / name)

    assert (components.broker, components.broker_authenticates) == (broker, authenticates)


def test_on_one_machine_a_file_stands_for_kubernetes_secrets() -> None:
    """A set of the cluster runs on a laptop: its secret component keeps its name and its scopes, and reads a file."""
    document = _load(_LOCAL.parent / "kafka" / "kubernetes-secrets.yaml")

    effective = effective_component(document, Path("/data/secrets.json"), "-t1")

    assert effective["metadata"]["name"] == "kubernetes-secrets"
    assert effective["scopes"] == [f"{scope}-t1" for scope in document["scopes"]]
    assert effective["spec"]["type"] == "secretstores.local.file"
    fields = {item["name"]: item["value"] for item in effective["spec"]["metadata"]}
    assert fields == {"secretsFile": "/data/secrets.json", "multiValued": "true"}


def test_a_set_is_named_or_refused() -> None:
    """A slip in the name of a set is told with the names that there are."""
    run_file = RunFile.load(PROJECT_ROOT / "dapr.yaml")

    assert run_file.components.name == "local"
    assert run_file.with_components("rabbitmq").components.name == "rabbitmq"
    with pytest.raises(CommandError, match="'rabitmq'; there are kafka, kafka-cloud, local, rabbitmq, todo"):
        run_file.with_components("rabitmq")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        pytest.param({}, "holds no component YAML", id="empty"),
        pytest.param({"a.yaml": "kind: [", "b.yaml": ""}, "not YAML", id="broken"),
        pytest.param({"a.yaml": "kind: X", "settings.env": "PUBSUB=x"}, "line 1", id="a setting that is none of ours"),
    ],
)
def test_a_folder_that_is_no_set_is_refused(tmp_path: Path, files: dict[str, str], told: str) -> None:
    """A broken set is told by its file before anything starts."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    with pytest.raises(CommandError, match=told):
        ComponentSet.load(tmp_path)
