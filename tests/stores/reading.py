"""What lies in the state store of a mesh, read past Dapr."""

import re
import sqlite3

import psycopg
import yaml

from tests.mesh_fixture import Mesh

_REVISION = re.compile(r":r\d+-\d+$")


def conversation_keys(mesh: Mesh, user: str) -> list[str]:
    """Keys of a user's conversations without the app id before them, in order; revisions that run out are left out."""
    component = yaml.safe_load((mesh.description.components / "statestore.yaml").read_text())["spec"]
    pattern = f"%||chat:{user}:%"
    if component["type"] == "state.sqlite":
        (file,) = [one["value"] for one in component["metadata"] if one["name"] == "connectionString"]
        with sqlite3.connect(file.replace("{appID}", mesh.service("conversation").app_id), timeout=5) as connection:
            query = "SELECT key, expiration_time FROM state WHERE key LIKE ?"
            found = connection.execute(query, [pattern]).fetchall()
    else:
        with psycopg.connect(mesh.description.database_url) as database:
            query = "SELECT key, expires_at FROM goose.dapr_state WHERE key LIKE %s"
            found = database.execute(query, [pattern]).fetchall()
    kept = [key for key, until in found if until is None or not _REVISION.search(key)]
    return sorted(key.partition("||")[2] for key in kept)
