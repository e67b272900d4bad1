"""openai-agents' SQLAlchemySession on the same PostgreSQL, by asyncpg: a row for each message."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from agents.extensions.memory import SQLAlchemySession
from sqlalchemy import text as sql
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from bench.clients.client import CONNECTIONS, WINDOW, Spec
from bench.texts import role, texts


class OpenAISQLAlchemy:
    """A session object for each caller."""

    def __init__(self, engine: AsyncEngine, spec: Spec) -> None:
        """`engine` looks into the schema `bench` first."""
        self._engine = engine
        self._spec = spec
        self._sessions: dict[str, Any] = {}
        self._text = texts(1)[0]
        self._kept = 0

    def _session(self, name: str, caller: int) -> Any:
        key = f"{name}/{caller}"
        if key not in self._sessions:
            self._sessions[key] = SQLAlchemySession(name, engine=self._engine, create_tables=not self._sessions)
        return self._sessions[key]

    async def prepare(self, history: int) -> None:
        """See Client."""
        items = [{"role": role(index), "content": text} for index, text in enumerate(texts(history))]
        for caller in range(min(self._spec.pools[str(history)], 32)):
            await self._session(_name(history, caller), caller).add_items(items)
        assert len(await self._session(_name(history, 0), 0).get_items(WINDOW)) == WINDOW
        async with self._engine.begin() as connection:
            await connection.execute(sql("ANALYZE agent_messages"))
            self._kept = (await connection.execute(sql("SELECT max(id) FROM agent_messages"))).scalar_one()

    async def read(self, history: int, caller: int) -> None:
        """See Client."""
        await self._session(_name(history, 0), caller).get_items(WINDOW)

    async def append(self, history: int, caller: int) -> None:
        """See Client."""
        await self._session(_name(history, caller), caller).add_items([{"role": "user", "content": self._text}])

    async def reset(self, history: int) -> None:  # noqa: ARG002
        """See Client."""
        async with self._engine.begin() as connection:
            await connection.execute(sql("DELETE FROM agent_messages WHERE id > :kept"), {"kept": self._kept})


def _name(history: int, caller: int) -> str:
    return f"openai-{history}-{caller}"


@contextlib.asynccontextmanager
async def connect(spec: Spec) -> AsyncIterator[OpenAISQLAlchemy]:
    """Connect."""
    engine = create_async_engine(
        make_url(spec.database_url).set(drivername="postgresql+asyncpg"),
        pool_size=CONNECTIONS,
        max_overflow=0,
        connect_args={"server_settings": {"search_path": "bench"}},
    )
    async with engine.begin() as connection:
        await connection.execute(sql("CREATE SCHEMA IF NOT EXISTS bench"))
        await connection.execute(sql("DROP TABLE IF EXISTS agent_messages, agent_sessions"))
    try:
        yield OpenAISQLAlchemy(engine, spec)
    finally:
        await engine.dispose()
