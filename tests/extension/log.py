"""What the audit log says of a user's extensions."""

import asyncio
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.mesh_fixture import Mesh


async def events_of(mesh: Mesh, user: str) -> list[dict[str, Any]]:
    """Read a user's events of extensions, in the order of their revisions."""
    return await asyncio.to_thread(_events, mesh, user)


def _events(mesh: Mesh, user: str) -> list[dict[str, Any]]:
    with psycopg.connect(mesh.description.database_url, row_factory=dict_row) as connection:
        query = "SELECT * FROM goose.events WHERE user_id = %s AND entity_type = 'extension' ORDER BY revision, part"
        return list(connection.execute(query, [user]).fetchall())


async def read_model(mesh: Mesh, user: str) -> list[tuple[Any, ...]]:
    """Read a user's rows of the read model: name, status, type."""
    return await asyncio.to_thread(_rows, mesh, user)


def _rows(mesh: Mesh, user: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(mesh.description.database_url) as connection:
        query = "SELECT name, status, data ->> 'type' FROM goose.extensions WHERE user_id = %s ORDER BY name"
        return connection.execute(query, [user]).fetchall()
