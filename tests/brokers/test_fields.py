"""Component YAML against what Dapr says of its components: no field that it ignores, no default that loses data."""

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.binaries.golang import find_go
from cli.mesh.data import PROJECT_ROOT
from cli.mesh.sets import ComponentSet
from tests.brokers.conftest import ALL_SETS

_BINARIES = PROJECT_ROOT / "cli" / "binaries" / "dapr"
_SETS = PROJECT_ROOT / "dapr-components"

# Registered under a name that is not its metadata.yaml's.
_ALIASES = {"bindings.postgresql": "bindings.postgres"}
# Read by daprd itself, for every component of the kind.
_SCOPES = {"publishingScopes", "subscriptionScopes", "protectedTopics"}
_RUNTIME_FIELDS = {
    "pubsub": {"consumerID"} | _SCOPES,
    "bindings": {"direction"},
    "state": set(),
    "secretstores": set(),
}
# In metadata.yaml, and yet without effect.
_WITHOUT_EFFECT = {("pubsub.rabbitmq", "concurrency"): "pubsub/concurrency.go reads concurrencyMode in its place"}
_WORDS: dict[str, Any] = {
    "bool": re.compile(r"true|false"),
    "number": re.compile(r"-?\d+"),
    "duration": re.compile(r"-?(\d+|(\d+(\.\d+)?(ms|s|m|h))+)"),
}

_COMPONENTS = [
    pytest.param(document, id=f"{name}-{document['metadata']['name']}")
    for name in ALL_SETS
    for document in ComponentSet.load(_SETS / name).components
]


@cache
def _contrib() -> Path:
    """The source of the components that the pinned daprd is built of."""
    module = "github.com/dapr/components-contrib"
    go = str(find_go())
    subprocess.run([go, "mod", "download", module], cwd=_BINARIES, check=True, capture_output=True)
    told = subprocess.run([go, "list", "-m", "-json", module], cwd=_BINARIES, check=True, capture_output=True)
    return Path(json.loads(told.stdout)["Dir"])


@cache
def _published() -> dict[tuple[str, str], dict[str, Any]]:
    """Each component's metadata.yaml, by type and version."""
    found = {}
    for kind in _RUNTIME_FIELDS:
        for file in (_contrib() / kind).rglob("metadata.yaml"):
            # One of a component that is not ours has a tab in it.
            document = yaml.safe_load(file.read_text().replace("\t", " "))
            found[f"{document['type']}.{document['name']}", document["version"]] = document
    return found


def _fields(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    profiles = [*document.get("authenticationProfiles", []), *document.get("builtinAuthenticationProfiles", [])]
    entries = [*(one for profile in profiles for one in profile.get("metadata", [])), *document.get("metadata", [])]
    fields: dict[str, dict[str, Any]] = {}
    for one in entries:
        # Each way to authenticate allows its own values of authType.
        allowed = [*fields.get(one["name"], {}).get("allowedValues", []), *one.get("allowedValues", [])]
        fields[one["name"]] = one | ({"allowedValues": allowed} if allowed else {})
    return fields


def _published_for(component: dict[str, Any]) -> dict[str, Any]:
    kind = component["spec"]["type"]
    return _published()[_ALIASES.get(kind, kind), component["spec"]["version"]]


@pytest.mark.parametrize("component", _COMPONENTS)
def test_every_field_is_one_that_dapr_reads(component: dict[str, Any]) -> None:
    """What a component says has an effect, and is spelt and typed as Dapr reads it."""
    kind = component["spec"]["type"]
    published = _published_for(component)
    known = _fields(published)
    own = set(_RUNTIME_FIELDS[kind.partition(".")[0]])
    if "actorStateStore" in published.get("capabilities", []):
        own.add("actorStateStore")

    for item in component["spec"]["metadata"]:
        name = item["name"]
        assert (kind, name) not in _WITHOUT_EFFECT, _WITHOUT_EFFECT[kind, name]
        assert name in known or name in own, f"{kind} has no {name}; it has {sorted(known)}"
        if name in known and "value" in item:
            field, value = known[name], str(item["value"])
            pattern = _WORDS.get(field.get("type", "string"))
            assert pattern is None or pattern.fullmatch(value), f"{name}: {value} is no {field['type']}"
            assert value in field.get("allowedValues", [value])


def test_a_field_that_dapr_does_not_know_is_found() -> None:
    """The test above would notice `requiredAcks` and `tableName`, which examples abound with."""
    known = _fields(_published()["pubsub.kafka", "v1"])
    assert "producerRequiredAcks" in known
    assert {"requiredAcks", "acks"}.isdisjoint(known)
    assert "tableName" not in _fields(_published()["state.postgresql", "v2"])
    assert 'ConcurrencyKey                 = "concurrencyMode"' in (_contrib() / "pubsub/concurrency.go").read_text()


def test_secrets_are_never_in_the_yaml() -> None:
    """Whatever Dapr calls sensitive comes from the secret store, in every set."""
    for parameter in _COMPONENTS:
        (component,) = parameter.values
        assert isinstance(component, dict)
        sensitive = {name for name, one in _fields(_published_for(component)).items() if one.get("sensitive")}
        for item in component["spec"]["metadata"]:
            assert item["name"] not in sensitive or "secretKeyRef" in item


SAFE = {
    "rabbitmq": {
        "durable": "true",
        "deletedWhenUnused": "false",
        "deliveryMode": "2",
        "publisherConfirm": "true",
        "requeueInFailure": "true",
    },
    "kafka": {"initialOffset": "oldest", "producerRequiredAcks": "all", "authType": "none"},
    "todo": {"initialOffset": "oldest", "producerRequiredAcks": "all", "authType": "none"},
    "kafka-cloud": {
        "initialOffset": "oldest",
        "producerRequiredAcks": "all",
        "authType": "password",
        # Dapr's word for SCRAM-SHA-256; what it does not know it takes for PLAIN.
        "saslMechanism": "SHA-256",
        "disableTls": "false",
        "compression": "snappy",
        "maxMessageBytes": "10485760",
    },
}


@pytest.mark.parametrize("name", SAFE)
def test_defaults_that_lose_events_are_overruled(name: str) -> None:
    """No set leaves to Dapr's defaults what those would lose; replicas share a group that is their service's own."""
    components = ComponentSet.load(_SETS / name)
    wanted = components.settings["GAGGLE_PUBSUB"]
    (pubsub,) = [one for one in components.components if one["metadata"]["name"] == wanted]
    fields = {item["name"]: item.get("value") for item in pubsub["spec"]["metadata"]}

    assert SAFE[name].items() <= fields.items()
    assert fields["consumerID"] == "{appID}"
    assert "consumerGroup" not in fields
    assert "skipVerify" not in fields
    assert name != "rabbitmq" or int(str(fields["prefetchCount"])) > 0


NAMES = {
    "rabbitmq": ["pubsub-goose", "reminder-sweep", "secretstore", "statestore-goose"],
    "kafka": ["kafka-pubsub", "kubernetes-secrets", "reminder-sweep", "statestore"],
    "kafka-cloud": ["kafka-pubsub", "kubernetes-secrets", "postgres-statestore", "reminder-sweep"],
    "todo": ["pubsub-kafka-todo", "secretstore-kubernetes-todo", "state-postgresql-todo", "timer-todo-reminders"],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_set_has_its_components_and_is_retried_and_settings_name_them(name: str) -> None:
    """Each set has the names that its users know, beside read model and hints, and services are told of them."""
    components = ComponentSet.load(_SETS / name)
    names = [one["metadata"]["name"] for one in components.components]
    (resiliency,) = components.files["resiliency.yaml"]

    assert sorted(names) == sorted([*NAMES[name], "readmodel", "pubsub-fanout"])
    for setting in ("GAGGLE_STATESTORE", "GAGGLE_PUBSUB"):
        assert components.settings[setting] in names
    assert components.secretstore in names
    assert components.settings["GAGGLE_PUBSUB"] in resiliency["spec"]["targets"]["components"]
    for one in components.components:
        assert one["scopes"]
        assert components.files[f"{one['metadata']['name']}.yaml"] == [one]
