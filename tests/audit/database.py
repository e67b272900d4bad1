"""A real PostgreSQL with the schema, for the tests of the SQL."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from services.runtime.errors import UnavailableError


@dataclass(frozen=True)
class Database:
    """One server; its schema `goose` is migrated."""

    url: str

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own and give its rows."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def call(self, function: str, request: dict[str, Any]) -> dict[str, Any]:
        """Call a function of the schema as the service does."""
        ((text,),) = self.run(f"SELECT goose.{function}(%s::jsonb)", [json.dumps(request)])
        answer = json.loads(text)
        assert isinstance(answer, dict)
        return answer


def fresh_user(prefix: str = "user") -> str:
    """Make a user id that no other test has: tests share one database and keep apart by user."""
    return f"{prefix}-{os.urandom(6).hex()}"


class BindingStandIn:
    """Answers as the sidecar's PostgreSQL binding does, from a real database, without the sidecar."""

    def __init__(self, database: Database) -> None:
        """A statement that holds `refuses` fails for good.

        Of the next results, `cut_off` lose their rows, as a connection lost half-way makes the binding do.
        """
        self._database = database
        self.cut_off = 0
        self.refuses = ""
        self.statements = 0

    async def sql(self, name: str, statement: str, parameters: Sequence[object] = ()) -> list[list[Any]]:
        """Run a statement with $1 for its parameter."""
        assert name == "readmodel"
        self.statements += 1
        if self.cut_off:
            self.cut_off -= 1
            return []
        if self.refuses and self.refuses in str(parameters):
            raise UnavailableError(name) from BindingError("invalid input syntax (SQLSTATE 22P02)")
        try:
            async with await psycopg.AsyncConnection.connect(self._database.url, autocommit=True) as connection:
                cursor = await connection.execute(statement.replace("$1", "%s").encode(), parameters or None)
                return [list(row) for row in await cursor.fetchall()] if cursor.description else []
        except psycopg.Error as error:
            raise UnavailableError(name) from BindingError(f"{error} (SQLSTATE {error.sqlstate})")


class BindingError(Exception):
    """What the sidecar says of a failed statement."""

    def details(self) -> str:
        """Give its text, as grpc.aio.AioRpcError does."""
        return str(self)
