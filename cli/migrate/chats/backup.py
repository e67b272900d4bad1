"""The tables as files, and back: CSV as PostgreSQL writes it, compressed, both of one moment."""

import asyncio
import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psycopg
from psycopg import sql

from cli.errors import CommandError, Refused
from cli.mesh.data import write_private
from cli.migrate.chats.source import Table, Tables, snapshot

MANIFEST = "manifest.json"
_BUFFER_BYTES = 1024 * 1024


async def write(
    connection: psycopg.AsyncConnection[Any], tables: Tables, folder: Path, told: Callable[[str], None]
) -> dict[str, Any]:
    """Writes both tables and, last, the manifest that makes them a backup; an unfinished one is begun again.

    Gives the manifest. Raises psycopg.Error and OSError.
    """
    unfinished = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    manifest: dict[str, Any] = {"tables": {}}
    async with snapshot(connection):
        for table in (tables.conversations, tables.messages):
            told(f"{table.name}: writing")
            manifest["tables"][table.name] = await _write(connection, table, unfinished / f"{table.name}.csv.gz")
    write_private(unfinished / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return manifest


async def _write(connection: psycopg.AsyncConnection[Any], table: Table, path: Path) -> dict[str, Any]:
    statement = sql.SQL("COPY (SELECT {columns} FROM {table} ORDER BY id) TO STDOUT (FORMAT csv, HEADER)").format(
        columns=_columns(table), table=table.identifier
    )
    # mtime=0: the same rows make the same file.
    with path.open("wb") as file, gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
        async with connection.cursor() as cursor:
            async with cursor.copy(statement) as copy:
                async for data in copy:
                    packed.write(data)
            rows = cursor.rowcount
    return {"rows": rows, "columns": list(table.columns), "sha256": await asyncio.to_thread(_digest, path)}


def check(folder: Path) -> dict[str, Any]:
    """Reads the manifest and the files' digests.

    Raises:
        CommandError: there is no whole backup.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, facts in manifest["tables"].items():
            if _digest(folder / f"{name}.csv.gz") != facts["sha256"]:
                raise CommandError(f"The backup of {name} in {folder} is damaged.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"There is no whole backup in {folder}: {error}") from error
    assert isinstance(manifest, dict)
    return manifest


async def restore(connection: psycopg.AsyncConnection[Any], tables: Tables, folder: Path) -> dict[str, int]:
    """Fills the tables, which must be empty, in one transaction; gives how many rows each has now.

    Raises:
        Refused: a table has rows.
        CommandError: the backup is not whole, or not of these tables.
    """
    manifest = await asyncio.to_thread(check, folder)
    counts = {}
    async with connection.transaction():
        for table in (tables.conversations, tables.messages):
            facts = manifest["tables"].get(table.name)
            if facts is None or not set(facts["columns"]) <= set(table.columns):
                raise CommandError(f"The backup in {folder} is not of {table.name} as it is now.")
            await connection.execute(sql.SQL("LOCK TABLE {}").format(table.identifier))
            cursor = await connection.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(table.identifier))
            if (await cursor.fetchone() or [True])[0]:
                raise Refused(f"{table.name} has rows: a backup is restored into empty tables alone.")
            columns = sql.SQL(", ").join(map(sql.Identifier, facts["columns"]))
            statement = sql.SQL("COPY {table} ({columns}) FROM STDIN (FORMAT csv, HEADER MATCH)").format(
                table=table.identifier, columns=columns
            )
            async with connection.cursor() as writer, writer.copy(statement) as copy:
                with gzip.open(folder / f"{table.name}.csv.gz", "rb") as packed:
                    while data := packed.read(_BUFFER_BYTES):
                        await copy.write(data)
            await _go_on_counting(connection, table)
            cursor = await connection.execute(sql.SQL("SELECT count(*) FROM {}").format(table.identifier))
            counts[table.name] = (await cursor.fetchone() or [0])[0]
            if counts[table.name] != facts["rows"]:
                raise CommandError(f"{table.name}: {counts[table.name]} rows of {facts['rows']} came back.")
    return counts


async def _go_on_counting(connection: psycopg.AsyncConnection[Any], table: Table) -> None:
    """The sequence of its ids, if it has one, gives none twice."""
    if table.columns["id"] not in {"smallint", "integer", "bigint"}:
        return
    name = table.identifier.as_string(connection)
    statement = sql.SQL(
        "SELECT setval(s.name, (SELECT greatest(max(id), 1) FROM {table}))"
        " FROM (SELECT pg_get_serial_sequence(%s, 'id') AS name) s WHERE s.name IS NOT NULL"
    ).format(table=table.identifier)
    await connection.execute(statement, [name])


def _columns(table: Table) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, table.columns))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return _sha256(file)


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while data := file.read(_BUFFER_BYTES):
        digest.update(data)
    return digest.hexdigest()
