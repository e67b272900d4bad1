"""The local component set with another state store in it."""

from pathlib import Path
from typing import Any

import yaml

from cli.mesh.data import PROJECT_ROOT

_LOCAL = PROJECT_ROOT / "dapr-components" / "local"
_REDIS = ("redisHost", "redis-host"), ("redisPassword", "redis-password")


def with_store(kind: str, folder: Path) -> Path:
    """Copy the local set to `folder`/local, its state store swapped for one of that kind; nothing else differs."""
    fields: dict[str, list[dict[str, Any]]] = {
        # Each sidecar has a file of its own: SQLite has one writer at a time, and these do not share state.
        "sqlite": [
            {"name": "connectionString", "value": str(folder / "{appID}.db")},
            {"name": "busyTimeout", "value": "5s"},
            # Workflows keep their histories here.
            {"name": "actorStateStore", "value": "true"},
        ],
        "redis": [{"name": field, "secretKeyRef": {"name": secret, "key": secret}} for field, secret in _REDIS],
    }
    target = folder / "local"
    target.mkdir(parents=True)
    for file in _LOCAL.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    store = target / "statestore.yaml"
    document = yaml.safe_load(store.read_text())
    document["spec"] = {"type": f"state.{kind}", "version": "v1", "metadata": fields[kind]}
    store.write_text(yaml.safe_dump(document))
    return target
