"""asyncpg, straight to PostgreSQL: the floor. Reads one row of the same bytes, inserts one small row."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg

from bench.clients.client import CONNECTIONS, Spec
from bench.texts import texts

_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS bench;
DROP TABLE IF EXISTS bench.document, bench.message;
CREATE TABLE bench.document (key text PRIMARY KEY, value bytea NOT NULL);
CREATE TABLE bench.message (id bigserial PRIMARY KEY, conversation text NOT NULL, body bytea NOT NULL);
CREATE INDEX ON bench.message (conversation, id);
"""


class Floor:
    """Statements on connections that are handed round without a pool's own round trips."""

    def __init__(self, connections: list[Any], document: bytes) -> None:
        """`document` is what a read gives."""
        self._document = document
        self._free: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        for one in connections:
            self._free.put_nowait(one)
        self._body = texts(1)[0].encode()

    async def prepare(self, history: int) -> None:  # noqa: ARG002
        """See Client."""
        async with self._connection() as connection:
            await connection.execute("INSERT INTO bench.document VALUES ('document', $1)", self._document)
        assert await self._read() == self._document

    async def _read(self) -> bytes:
        async with self._connection() as connection:
            value: bytes = await connection.fetchval("SELECT value FROM bench.document WHERE key = $1", "document")
            return value

    async def read(self, history: int, caller: int) -> None:  # noqa: ARG002
        """See Client."""
        await self._read()

    async def append(self, history: int, caller: int) -> None:  # noqa: ARG002
        """See Client."""
        async with self._connection() as connection:
            await connection.execute(
                "INSERT INTO bench.message (conversation, body) VALUES ($1, $2)", f"c{caller}", self._body
            )

    async def reset(self, history: int) -> None:  # noqa: ARG002
        """See Client."""
        async with self._connection() as connection:
            await connection.execute("TRUNCATE bench.message")

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        connection = await self._free.get()
        try:
            yield connection
        finally:
            self._free.put_nowait(connection)


@contextlib.asynccontextmanager
async def connect(spec: Spec) -> AsyncIterator[Floor]:
    """Connect."""
    document = Path(spec.document).read_bytes()  # noqa: ASYNC240 - before anything is measured
    connections = [await asyncpg.connect(spec.database_url) for _ in range(CONNECTIONS)]
    await connections[0].execute(_SCHEMA)
    try:
        yield Floor(connections, document)
    finally:
        for connection in connections:
            await connection.close()
