"""What lies in the state store of a mesh, read past Dapr."""

import sqlite3

import psycopg
import yaml

from tests.mesh_fixture import Mesh


def conversation_keys(mesh: Mesh, user: str) -> list[str]:
    """Keys of a user's conversations without the app id before them, in order."""
    component = yaml.safe_load((mesh.description.components / "statestore.yaml").read_text())["spec"]
    pattern = f"%||chat:{user}:%"
    if component["type"] == "state.sqlite":
        (file,) = [one["value"] for one in component["metadata"] if one["name"] == "connectionString"]
        with sqlite3.connect(file.replace("{appID}", mesh.service("conversation").app_id), timeout=5) as connection:
            found = connection.execute("SELECT key FROM state WHERE key LIKE ?", [pattern]).fetchall()
    else:
        with psycopg.connect(mesh.description.database_url) as database:
            found = database.execute("SELECT key FROM goose.dapr_state WHERE key LIKE %s", [pattern]).fetchall()
    return sorted(key.partition("||")[2] for (key,) in found)
