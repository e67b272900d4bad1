"""Component sets: folders of component YAML that the same services run on, and what each set wants beside them.

dapr-components/SET/*.yaml        the components, as a cluster or `dapr run` takes them
dapr-components/SET/config.yaml   the sidecars' Configuration
dapr-components/SET/settings.env  the services' settings that go with it: names of components, and of topics that differ

Which broker a mesh on one machine has to start is not written down again: it is the one that the pub/sub components are
made for.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from cli.errors import CommandError

CONFIGURATION = "config.yaml"
SETTINGS = "settings.env"

BrokerKind = Literal["redis", "rabbitmq", "kafka"]
_BROKERS: dict[str, BrokerKind] = {
    "pubsub.redis": "redis",
    "pubsub.rabbitmq": "rabbitmq",
    "pubsub.kafka": "kafka",
}


@dataclass(frozen=True)
class ComponentSet:
    """One folder of components; `files` has the documents of each YAML file but the Configuration."""

    folder: Path
    files: dict[str, list[dict[str, Any]]]
    settings: dict[str, str]

    @classmethod
    def load(cls, folder: Path) -> "ComponentSet":
        """Reads a folder.

        Raises:
            CommandError: it is none, or holds what is not understood.
        """
        files = {}
        for file in sorted(folder.glob("*.yaml")):
            if file.name != CONFIGURATION:
                try:
                    documents = [document for document in yaml.safe_load_all(file.read_text()) if document]
                except yaml.YAMLError as error:
                    raise CommandError(f"{file} is not YAML: {error}") from error
                files[file.name] = documents
        if not files:
            raise CommandError(f"{folder} holds no component YAML.")
        return cls(folder, files, _read_settings(folder / SETTINGS))

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def configuration(self) -> Path:
        """The Configuration that each sidecar's is made from."""
        return self.folder / CONFIGURATION

    @property
    def secretstore(self) -> str:
        """Name of the secret component."""
        return self.settings.get("GAGGLE_SECRETSTORE", "secretstore")

    @cached_property
    def secret_names(self) -> dict[str, str]:
        """Which secret holds a credential, where it is one of several in it.

        Raises:
            CommandError: GAGGLE_SECRET_NAMES is not a JSON object of strings.
        """
        given = self.settings.get("GAGGLE_SECRET_NAMES", "{}")
        try:
            names = json.loads(given)
        except ValueError:
            names = None
        if not isinstance(names, dict) or not all(isinstance(one, str) for one in names.values()):
            raise CommandError(f"{self.folder / SETTINGS}: GAGGLE_SECRET_NAMES is no JSON object of strings: {given}")
        return names

    @cached_property
    def components(self) -> list[dict[str, Any]]:
        """Every Component."""
        return [one for documents in self.files.values() for one in documents if one.get("kind") == "Component"]

    @cached_property
    def broker(self) -> BrokerKind:
        """The broker that the pub/sub components are made for.

        Raises:
            CommandError: they are made for none that can be started here, or for several.
        """
        kinds = {one["spec"]["type"] for one in self.components if one["spec"]["type"].startswith("pubsub.")}
        brokers = {_BROKERS[kind] for kind in kinds if kind in _BROKERS}
        if len(brokers) != 1 or len(kinds) != 1:
            known = ", ".join(_BROKERS)
            raise CommandError(f"{self.folder} must have one type of pub/sub component of {known}; it has {kinds}.")
        return brokers.pop()

    @property
    def broker_authenticates(self) -> bool:
        """Whether Kafka's clients prove themselves by SASL, over TLS."""
        return any(
            item["name"] == "authType" and item.get("value") == "password"
            for one in self.components
            for item in one["spec"].get("metadata", [])
        )


def _read_settings(file: Path) -> dict[str, str]:
    """The lines NAME=VALUE of an environment file, as `docker run --env-file` and a ConfigMap take them."""
    if not file.exists():
        return {}
    settings = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not name.startswith("GAGGLE_"):
            raise CommandError(f"{file}, line {number}: GAGGLE_NAME=VALUE is wanted.")
        settings[name] = value
    return settings
