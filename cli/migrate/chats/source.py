"""The tables: found by their names, read in one snapshot and in the order in which they were filled."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from cli.errors import CommandError
from cli.migrate.chats.mapping import ConversationRow, MessageRow

_SCHEME = re.compile(r"postgres(ql)?(\+\w+)?://")
_TIMES = {"timestamp without time zone", "timestamp with time zone"}
_ROWS_AT_ONCE = 2_000
_CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Table:
    """A table and its columns with their types."""

    schema: str
    name: str
    columns: dict[str, str]

    @property
    def identifier(self) -> sql.Identifier:
        """Its name as SQL writes it."""
        return sql.Identifier(self.schema, self.name)


@dataclass(frozen=True)
class Names:
    """What the tables are called, as a person says it."""

    schema: str = ""
    """Empty: the connection's own."""

    conversations: str = "conversations"
    messages: str = "messages"
    zone: str = "UTC"
    """Of times that are stored without one."""


@dataclass(frozen=True)
class Tables:
    """Both tables as they are."""

    conversations: Table
    messages: Table
    zone: str
    identity: dict[str, str]
    """Tells this database and these tables from others."""


def database_url(url: str) -> str:
    """The URL as libpq takes it, from one that SQLAlchemy may have read.

    Raises:
        CommandError: it is not PostgreSQL's.
    """
    if not _SCHEME.match(url):
        raise CommandError("The database of the tables must be named as postgresql://...")
    return f"postgresql://{url.partition('://')[2]}"


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection in autocommit mode; whatever the database refuses meanwhile is a CommandError."""
    try:
        connection = await psycopg.AsyncConnection.connect(
            database_url(url), autocommit=True, connect_timeout=_CONNECT_SECONDS
        )
    except psycopg.Error as error:
        raise CommandError(f"The database can't be reached: {str(error).strip()}") from error
    try:
        async with connection:
            yield connection
    except psycopg.Error as error:
        raise CommandError(f"The database says: {str(error).strip()}") from error


async def find(connection: psycopg.AsyncConnection[Any], names: Names) -> Tables:
    """The tables of those names.

    Raises:
        CommandError: one is missing, or lacks a column.
    """
    conversations = await _table(connection, names.schema, names.conversations, {"id", "user_id"})
    messages = await _table(connection, names.schema, names.messages, {"id", "conversation_id", "role", "content"})
    await _check_zone(connection, names.zone)
    cursor = await connection.execute(
        "SELECT d.datname, d.oid::text, %s::regclass::oid::text, %s::regclass::oid::text"
        " FROM pg_database d WHERE d.datname = current_database()",
        [conversations.identifier.as_string(connection), messages.identifier.as_string(connection)],
    )
    row = await cursor.fetchone()
    assert row is not None
    identity = dict(zip(("database", "database_oid", "conversations_oid", "messages_oid"), row, strict=True))
    return Tables(conversations, messages, names.zone, identity)


async def _table(connection: psycopg.AsyncConnection[Any], schema: str, name: str, needed: set[str]) -> Table:
    cursor = await connection.execute(
        "SELECT table_schema, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = coalesce(nullif(%s, ''), current_schema()) AND table_name = %s"
        " AND is_generated = 'NEVER' ORDER BY ordinal_position",
        [schema, name],
    )
    rows = await cursor.fetchall()
    if not rows:
        raise CommandError(f"There is no table {name!r}{f' in the schema {schema!r}' if schema else ''}.")
    columns = {column: kind for _, column, kind in rows}
    if missing := sorted(needed - columns.keys()):
        raise CommandError(f"The table {name!r} has no column {', '.join(missing)}.")
    return Table(rows[0][0], name, columns)


async def _check_zone(connection: psycopg.AsyncConnection[Any], zone: str) -> None:
    cursor = await connection.execute("SELECT 1 FROM pg_timezone_names WHERE name = %s", [zone])
    if await cursor.fetchone() is None:
        raise CommandError(f"There is no time zone {zone!r}; say for example Europe/Berlin.")


@asynccontextmanager
async def snapshot(connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """All that is read in it is of one moment; nothing can be written."""
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


async def count(connection: psycopg.AsyncConnection[Any], tables: Tables) -> tuple[int, int, int]:
    """How many conversations, messages, and messages of no conversation there are."""
    statement = sql.SQL(
        "SELECT (SELECT count(*) FROM {c}), (SELECT count(*) FROM {m}),"
        " (SELECT count(*) FROM {m} m WHERE NOT EXISTS (SELECT FROM {c} c WHERE c.id = m.conversation_id))"
    ).format(c=tables.conversations.identifier, m=tables.messages.identifier)
    row = await (await connection.execute(statement)).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


async def conversations(
    connection: psycopg.AsyncConnection[Any], tables: Tables
) -> AsyncGenerator[ConversationRow, None]:
    """All of them, oldest first, each with its messages; within a `snapshot`."""
    async with connection.cursor(name="chats") as cursor:
        cursor.itersize = _ROWS_AT_ONCE
        await cursor.execute(_statement(tables))
        current: ConversationRow | None = None
        is_json = tables.messages.columns["content"] in {"json", "jsonb"}
        async for c_id, user, created, title, others, m_id, role, content, m_created, m_user, m_others in cursor:
            if current is None or current.id != c_id:
                if current is not None:
                    yield current
                current = ConversationRow(c_id, user, created, title or "", others, [])
            if m_id is not None:
                row = MessageRow(m_id, role or "", content or "", is_json, m_created, m_user, m_others)
                current.messages.append(row)
        if current is not None:
            yield current


def _statement(tables: Tables) -> sql.Composed:
    c, m = tables.conversations, tables.messages
    used = {"id", "user_id", "created_at", "updated_at", "title"}
    read = {"id", "conversation_id", "role", "content", "created_at", "user_id"}
    return sql.SQL(
        "SELECT c.id::text, c.user_id::text, {c_created}, {title}, {c_others},"
        " m.id::text, m.role::text, m.content::text, {m_created}, {m_user}, {m_others}"
        " FROM {conversations} c LEFT JOIN {messages} m ON m.conversation_id = c.id"
        " ORDER BY {c_order}, c.id, {m_order}, m.id"
    ).format(
        c_created=_microseconds("c", c, tables.zone),
        title=sql.SQL("c.title::text" if "title" in c.columns else "NULL"),
        c_others=_others("c", c, used - _kept(c)),
        m_created=_microseconds("m", m, tables.zone),
        m_user=sql.SQL("m.user_id::text" if "user_id" in m.columns else "NULL"),
        m_others=_others("m", m, read - _kept(m)),
        conversations=c.identifier,
        messages=m.identifier,
        c_order=_order("c", c),
        m_order=_order("m", m),
    )


def _others(alias: str, table: Table, used: set[str]) -> sql.Composable:
    """All columns but those as a JSON object; empty where there are none, which spares their making."""
    if table.columns.keys() <= used:
        return sql.SQL("''")
    row = sql.Identifier(alias)
    return sql.SQL("(to_jsonb({}) - {}::text[])::text").format(row, sql.Literal(sorted(used)))


def _kept(table: Table) -> set[str]:
    """A `created_at` that is no time goes along as it is."""
    return set() if table.columns.get("created_at") in _TIMES else {"created_at"}


def _order(alias: str, table: Table) -> sql.Composable:
    if table.columns.get("created_at") not in _TIMES:
        return sql.SQL("NULL::bigint")
    return sql.SQL("{}.created_at NULLS FIRST").format(sql.Identifier(alias))


def _microseconds(alias: str, table: Table, zone: str) -> sql.Composable:
    kind = table.columns.get("created_at")
    if kind not in _TIMES:
        return sql.SQL("NULL::bigint")
    column = sql.SQL("{}.created_at").format(sql.Identifier(alias))
    moment: sql.Composable = column
    if kind == "timestamp without time zone":
        moment = sql.SQL("{} AT TIME ZONE {}").format(column, sql.Literal(zone))
    return sql.SQL("CASE WHEN isfinite({}) THEN (extract(epoch FROM {}) * 1000000)::bigint END").format(column, moment)
