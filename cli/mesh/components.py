"""The effective YAML: the committed set, with the data directory's path and the app-id suffix put in.

Everything else that differs between meshes (connection string, broker address, passwords) reaches the components by
secretKeyRef, so that the committed files are what a sidecar reads, and can be read by `dapr run` as they are.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from cli.errors import CommandError
from cli.mesh.data import DataDirectory
from cli.mesh.keys import ISSUER_KEY_ID
from cli.mesh.secrets import secret_name

_LOCAL_FILE_STORE = "secretstores.local.file"
_SECRET_STORE = "secretstore"  # noqa: S105 -- a component's name
# The service that issues people's tokens.
_ISSUER = "auth"
CONFIGURATION = "config.yaml"


def write_components(source: Path, data: DataDirectory, suffix: str) -> None:
    """Writes every YAML file of `source` into the data directory's components/, and removes what is not among them."""
    files = sorted(file for file in source.glob("*.yaml") if file.name != CONFIGURATION)
    if not files:
        raise CommandError(f"{source} holds no component YAML.")
    for stale in data.components.glob("*.yaml"):
        stale.unlink()
    for file in files:
        documents = [document for document in yaml.safe_load_all(file.read_text()) if document]
        effective = [effective_component(document, data.secrets_file, suffix) for document in documents]
        (data.components / file.name).write_text(yaml.safe_dump_all(effective, sort_keys=False))


def effective_component(document: dict[str, Any], secrets_file: Path, suffix: str) -> dict[str, Any]:
    """One document with its scopes suffixed and, if it is the local secret store, its file named."""
    effective = dict(document)
    if "scopes" in effective:
        effective["scopes"] = [f"{scope}{suffix}" for scope in effective["scopes"]]
    spec = effective.get("spec", {})
    if spec.get("type") == _LOCAL_FILE_STORE:
        metadata = [
            {"name": item["name"], "value": str(secrets_file)} if item["name"] == "secretsFile" else item
            for item in spec["metadata"]
        ]
        effective["spec"] = {**spec, "metadata": metadata}
    return effective


def write_configuration(source: Path, data: DataDirectory, service: str, key_ids: Iterable[str]) -> Path:
    """Writes a sidecar's Configuration: the committed one, which withholds other services' private keys besides."""
    document = yaml.safe_load(source.read_text())
    effective = effective_configuration(document, service, key_ids)
    path = data.configurations / f"{service}.yaml"
    path.write_text(yaml.safe_dump(effective, sort_keys=False))
    return path


def effective_configuration(document: dict[str, Any], service: str, key_ids: Iterable[str]) -> dict[str, Any]:
    """A Configuration in which the secrets API refuses `service` every private key but its own."""
    own = {service, *([ISSUER_KEY_ID] if service == _ISSUER else [])}
    denied = [secret_name(key_id) for key_id in key_ids if key_id not in own]
    scope = {"storeName": _SECRET_STORE, "defaultAccess": "allow", "deniedSecrets": sorted(denied)}
    return {**document, "spec": {**document.get("spec", {}), "secrets": {"scopes": [scope]}}}
