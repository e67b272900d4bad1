"""No more writes to the tables: triggers that refuse them, so that what was copied stays all there is.

The same statements are in the Alembic revision that deprecates the tables.
"""

from typing import Any

import psycopg
from psycopg import errors, sql

from cli.errors import CommandError
from cli.migrate.chats.source import Table, Tables

FUNCTION = "gaggle_refuse_write"
TRIGGER = "gaggle_moved"
_LOCK_SECONDS = 5


async def freeze(connection: psycopg.AsyncConnection[Any], tables: Tables) -> None:
    """Refuses all writes from now on; those that run already come to their end first. Repeating it is fine.

    Raises:
        CommandError: writers did not let go within five seconds; nothing was changed.
    """
    both = (tables.conversations, tables.messages)
    function = sql.Identifier(tables.conversations.schema, FUNCTION)
    try:
        async with connection.transaction():
            await connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{_LOCK_SECONDS}s")))
            for table in both:
                statement = sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE")
                await connection.execute(statement.format(table.identifier))
            await connection.execute(
                sql.SQL(
                    "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                    " RAISE EXCEPTION '% has moved to Gaggle and takes no more writes', TG_TABLE_NAME"
                    " USING ERRCODE = 'read_only_sql_transaction'; END $$"
                ).format(function)
            )
            for table in both:
                await connection.execute(
                    sql.SQL(
                        "CREATE OR REPLACE TRIGGER {} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {}"
                        " FOR EACH STATEMENT EXECUTE FUNCTION {}()"
                    ).format(sql.Identifier(TRIGGER), table.identifier, function)
                )
    except errors.LockNotAvailable:
        raise CommandError(
            f"Somebody has held the tables for {_LOCK_SECONDS} s; nothing was changed. Try again when it is quiet."
        ) from None


async def thaw(connection: psycopg.AsyncConnection[Any], tables: Tables) -> None:
    """Takes writes again. Repeating it is fine."""
    async with connection.transaction():
        for table in (tables.conversations, tables.messages):
            statement = sql.SQL("DROP TRIGGER IF EXISTS {} ON {}")
            await connection.execute(statement.format(sql.Identifier(TRIGGER), table.identifier))
        function = sql.Identifier(tables.conversations.schema, FUNCTION)
        await connection.execute(sql.SQL("DROP FUNCTION IF EXISTS {}()").format(function))


async def is_frozen(connection: psycopg.AsyncConnection[Any], tables: Tables) -> bool:
    """Whether both tables refuse writes."""
    for table in (tables.conversations, tables.messages):
        if not await _has_trigger(connection, table):
            return False
    return True


async def _has_trigger(connection: psycopg.AsyncConnection[Any], table: Table) -> bool:
    cursor = await connection.execute(
        "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgname = %s AND tgrelid = %s::regclass AND tgenabled <> 'D')",
        [TRIGGER, table.identifier.as_string(connection)],
    )
    row = await cursor.fetchone()
    return bool(row and row[0])
