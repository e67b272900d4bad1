"""The effective YAML: the committed set, with the data directory's path and the app-id suffix put in.

Everything else that differs between meshes (connection string, broker address, passwords) reaches the components by
secretKeyRef, so that the committed files are what a sidecar reads. A set whose secrets are Kubernetes' gets them from a
file on this machine, by a component of the same name.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from cli.mesh.data import DataDirectory
from cli.mesh.keys import ISSUER_KEY_ID
from cli.mesh.observing import with_tracing
from cli.mesh.secrets import secret_name
from cli.mesh.sets import ComponentSet

_LOCAL_FILE_STORE = "secretstores.local.file"
_KUBERNETES_STORE = "secretstores.kubernetes"
# The service that issues people's tokens.
_ISSUER = "auth"


def write_components(components: ComponentSet, data: DataDirectory, suffix: str) -> None:
    """Writes every YAML file of the set into the data directory's components/, and removes what is not among them."""
    for stale in data.components.glob("*.yaml"):
        stale.unlink()
    for name, documents in components.files.items():
        effective = [effective_component(document, data.secrets_file, suffix) for document in documents]
        (data.components / name).write_text(yaml.safe_dump_all(effective, sort_keys=False))


def effective_component(document: dict[str, Any], secrets_file: Path, suffix: str) -> dict[str, Any]:
    """One document with its scopes suffixed and, if it is a secret store, the file to serve."""
    effective = dict(document)
    if "scopes" in effective:
        effective["scopes"] = [f"{scope}{suffix}" for scope in effective["scopes"]]
    spec = effective.get("spec", {})
    file = {"name": "secretsFile", "value": str(secrets_file)}
    if spec.get("type") == _LOCAL_FILE_STORE:
        effective["spec"] = {
            **spec,
            "metadata": [file if item["name"] == "secretsFile" else item for item in spec["metadata"]],
        }
    elif spec.get("type") == _KUBERNETES_STORE:
        # An object of the file stands for a secret with several keys.
        several = {"name": "multiValued", "value": "true"}
        effective["spec"] = {"type": _LOCAL_FILE_STORE, "version": "v1", "metadata": [file, several]}
    return effective


def write_configuration(components: ComponentSet, data: DataDirectory, service: str, key_ids: Iterable[str]) -> Path:
    """Writes a sidecar's Configuration: the committed one, which withholds other services' private keys besides."""
    document = with_tracing(yaml.safe_load(components.configuration.read_text()), os.environ)
    effective = effective_configuration(document, service, key_ids, components.secretstore)
    path = data.configurations / f"{service}.yaml"
    path.write_text(yaml.safe_dump(effective, sort_keys=False))
    return path


def effective_configuration(
    document: dict[str, Any], service: str, key_ids: Iterable[str], secretstore: str
) -> dict[str, Any]:
    """A Configuration in which the secrets API refuses `service` every private key but its own."""
    own = {service, *([ISSUER_KEY_ID] if service == _ISSUER else [])}
    denied = [secret_name(key_id) for key_id in key_ids if key_id not in own]
    scope = {"storeName": secretstore, "defaultAccess": "allow", "deniedSecrets": sorted(denied)}
    return {**document, "spec": {**document.get("spec", {}), "secrets": {"scopes": [scope]}}}
