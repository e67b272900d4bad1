"""The effective YAML: the committed set, with the data directory's path and the app-id suffix put in.

Everything else that differs between meshes (connection string, broker address, passwords) reaches the components by
secretKeyRef, so that the committed files are what a sidecar reads. A set whose secrets are Kubernetes' gets them from a
file on this machine, by a component of the same name.

A sidecar's Configuration is put together from two: the set's (traces, metrics, workflows) and its service's own in
dapr-configurations/ (which secrets it may read; in a mesh with identities also who may call it, and which of Dapr's
APIs it may use).
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cli.errors import CommandError
from cli.mesh.data import PROJECT_ROOT, DataDirectory
from cli.mesh.observing import with_tracing
from cli.mesh.secrets import Secret, secret_name
from cli.mesh.sets import ComponentSet

SERVICE_CONFIGURATIONS = PROJECT_ROOT / "dapr-configurations"

_LOCAL_FILE_STORE = "secretstores.local.file"
_KUBERNETES_STORE = "secretstores.kubernetes"
# Of pub/sub components: APP=TOPIC,TOPIC;APP=...
_TOPIC_SCOPES = {"publishingScopes", "subscriptionScopes"}
_DEAD_LETTERS = "dead-letter."
# Names that an operator chooses, which no committed list can hold.
_EXTENSION_SECRETS = "extension-"
_MODEL_ENDPOINTS = "GAGGLE_MODEL_ENDPOINTS"
_DEFAULT_MODEL_SECRET = "OPENAI_API_KEY"  # noqa: S105 -- a name


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
    if effective.get("kind") == "Resiliency":
        return _suffixed_targets(effective, suffix)
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
    elif suffix and any(item["name"] in _TOPIC_SCOPES for item in spec.get("metadata") or []):
        effective["spec"] = {**spec, "metadata": [_suffixed_topics(item, suffix) for item in spec["metadata"]]}
    return effective


def topic_scopes(value: str) -> dict[str, list[str]]:
    """The topics of each app, read from `publishingScopes` or `subscriptionScopes`."""
    entries = (entry.split("=", 1) for entry in "".join(value.split()).split(";") if entry)
    return {app: [topic for topic in topics.split(",") if topic] for app, topics in entries}


def _suffixed_topics(item: dict[str, Any], suffix: str) -> dict[str, Any]:
    if item["name"] not in _TOPIC_SCOPES:
        return item
    entries = [
        f"{app}{suffix}=" + ",".join(f"{one}{suffix}" if one.startswith(_DEAD_LETTERS) else one for one in topics)
        for app, topics in topic_scopes(item["value"]).items()
    ]
    return {**item, "value": ";".join(entries)}


def _suffixed_targets(document: dict[str, Any], suffix: str) -> dict[str, Any]:
    targets = dict(document["spec"].get("targets", {}))
    if "apps" in targets:
        targets["apps"] = {f"{app}{suffix}": policies for app, policies in targets["apps"].items()}
    return {**document, "spec": {**document["spec"], "targets": targets}}


def write_configuration(
    components: ComponentSet,
    data: DataDirectory,
    service: str,
    *,
    suffix: str,
    closed: bool,
    secrets: Mapping[str, Secret],
    environment: Mapping[str, str],
) -> Path:
    """Writes a sidecar's Configuration.

    Args:
        components: the set, whose Configuration all sidecars share.
        data: where to write it.
        service: the service's name.
        suffix: of the mesh's app ids.
        closed: whether sidecars have identities, so that access can be decided by them.
        secrets: those that there are.
        environment: the service's, which names secrets of its own.
    """
    shared = with_tracing(yaml.safe_load(components.configuration.read_text()), os.environ)
    effective = effective_configuration(
        shared,
        service_configuration(service),
        secretstore=components.secretstore,
        secret_names=components.secret_names,
        further=further_secrets(service, secrets, environment),
        suffix=suffix,
        closed=closed,
    )
    path = data.configurations / f"{service}.yaml"
    path.write_text(yaml.safe_dump(effective, sort_keys=False))
    return path


def service_configuration(service: str) -> dict[str, Any]:
    """A service's own Configuration; one that has none may read its own key, and nobody may call it."""
    file = SERVICE_CONFIGURATIONS / f"{service}.yaml"
    if file.exists():
        document: dict[str, Any] = yaml.safe_load(file.read_text())
        return document
    allowed = {"storeName": "secretstore", "defaultAccess": "deny"}
    scope = {**allowed, "allowedSecrets": [secret_name(service), "token-jwks"]}
    return {"spec": {"secrets": {"scopes": [scope]}, "accessControl": {"defaultAction": "deny"}}}


def further_secrets(service: str, secrets: Mapping[str, Secret], environment: Mapping[str, str]) -> set[str]:
    """The secrets that an operator has named for a service: of its models, or of extensions.

    Raises:
        CommandError: GAGGLE_MODEL_ENDPOINTS is not a JSON array of objects.
    """
    if service == "extension":
        return {name for name in secrets if name.startswith(_EXTENSION_SECRETS)}
    if service == "agent" and environment.get(_MODEL_ENDPOINTS):
        try:
            named = {one.get("secret", _DEFAULT_MODEL_SECRET) for one in json.loads(environment[_MODEL_ENDPOINTS])}
        except (ValueError, AttributeError, TypeError) as error:
            raise CommandError(f"{_MODEL_ENDPOINTS} is not a JSON array of objects: {error}") from error
        return named - {""}
    return set()


def effective_configuration(
    shared: dict[str, Any],
    own: dict[str, Any],
    *,
    secretstore: str,
    secret_names: Mapping[str, str],
    further: Iterable[str],
    suffix: str,
    closed: bool,
) -> dict[str, Any]:
    """The set's Configuration and a service's own as one."""
    spec: dict[str, Any] = {**shared.get("spec", {})}
    (scope,) = own["spec"]["secrets"]["scopes"]
    wanted = {*scope["allowedSecrets"], *further}
    allowed = sorted({secret_names.get(name, name) for name in wanted})
    spec["secrets"] = {"scopes": [{**scope, "storeName": secretstore, "allowedSecrets": allowed}]}
    if closed:
        policies = own["spec"]["accessControl"].get("policies", [])
        suffixed = [{**policy, "appId": f"{policy['appId']}{suffix}"} for policy in policies]
        spec["accessControl"] = {**own["spec"]["accessControl"], "policies": suffixed}
        if "api" in own["spec"]:
            spec["api"] = own["spec"]["api"]
    return {**shared, "spec": spec}
