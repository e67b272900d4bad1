"""goose's SQLite file: sessions, messages and the usage ledger, as its schema of versions 7 to 17 has them.

goose reads a conversation in the order of `created_timestamp`, then of rows
(https://github.com/block/goose, crates/goose/src/session/session_manager.rs). It may be writing meanwhile: each read is
one transaction, each change is one that first looks whether the session is still as it was judged.
"""

import hashlib
import json
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cli.errors import CommandError
from cli.goose.messages import GooseMessage
from cli.goose.sessions import Row, canonical
from cli.transcripts import dump

KNOWN_SCHEMA = 17
_BUSY_SECONDS = 30.0
_NEEDED = {
    "sessions": {"id", "working_dir"},
    "messages": {"id", "session_id", "message_id", "role", "content_json", "created_timestamp", "metadata_json"},
}


class NoGooseDatabaseError(CommandError):
    """The file is not there, or is none of goose's."""


class ChangedMeanwhileError(Exception):
    """The session is no longer as it was judged; nothing was written."""


@dataclass(frozen=True)
class Quick:
    """What tells most changes without reading a session's messages."""

    row: int
    """CRC-32 of the session's own row: `updated_at` has whole seconds, in which more than one thing may happen."""

    messages: int
    last_message: int
    last_line: int

    def text(self) -> str:
        """As it is kept and compared."""
        return f"{self.row:08x}|{self.messages}|{self.last_message}|{self.last_line}"


@dataclass(frozen=True)
class LocalSession:
    """A session as it lies in the file."""

    row: Row
    """Columns that have a value."""

    rows: list[int]
    """Row numbers of the messages, in goose's order."""

    messages: list[GooseMessage]
    ledger: list[Row]
    """Ascending by row number."""

    mark: int
    """As Quick.row."""

    @property
    def id(self) -> str:
        """goose's."""
        return str(self.row["id"])

    @property
    def last_line(self) -> int:
        """The newest row of the ledger; 0: none."""
        return int(self.ledger[-1]["id"]) if self.ledger else 0

    @property
    def quick(self) -> str:
        """As `GooseDatabase.quick` gives it."""
        last = max(self.rows, default=0)
        return Quick(self.mark, len(self.rows), last, self.last_line).text()

    @cached_property
    def digest(self) -> str:
        """Of all that is compared, the ledger apart, to which lines are only ever added."""
        return digest(self.row, self.messages)


def digest(row: Row, messages: Sequence[GooseMessage]) -> str:
    """SHA-256 of a session's row and messages."""
    whole = hashlib.sha256(_canonical(canonical(row)))
    whole.update(messages_digest(messages).encode())
    return whole.hexdigest()


def messages_digest(messages: Sequence[GooseMessage]) -> str:
    """SHA-256 of messages, whatever the order of their members."""
    whole = hashlib.sha256()
    for message in messages:
        whole.update(_canonical(message) + b"\n")
    return whole.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class GooseDatabase:
    """One connection to the file."""

    def __init__(self, path: Path) -> None:
        """Open the file at `path`. Raises NoGooseDatabaseError."""
        if not path.is_file():
            raise NoGooseDatabaseError(f"There is no file {path}.")
        self.path = path
        self._connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        try:
            self._columns = {table: self._names(table) for table in ("sessions", "messages", "usage_ledger")}
        except sqlite3.DatabaseError as error:
            raise NoGooseDatabaseError(f"{path} is no SQLite database: {error}.") from None
        for table, needed in _NEEDED.items():
            if missing := needed - self._columns[table]:
                raise NoGooseDatabaseError(
                    f"{path} is no session database of goose, or of a version before 1.10: its table {table} has no "
                    f"{', '.join(sorted(missing))}. Open it once with a current goose, which brings it up to date."
                )

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def _names(self, table: str) -> set[str]:
        return {str(row["name"]) for row in self._connection.execute(f"PRAGMA table_info({table})")}

    @property
    def schema_version(self) -> int:
        """goose's number; 0: it has none."""
        try:
            row = self._connection.execute("SELECT MAX(version) FROM schema_version").fetchone()
        except sqlite3.OperationalError:
            return 0
        return int(row[0] or 0)

    def data_version(self) -> int:
        """A number that changes when another connection has changed the file."""
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def check(self) -> str:
        """What SQLite finds wrong with the file; empty: nothing."""
        found = [str(row[0]) for row in self._connection.execute("PRAGMA integrity_check(5)")]
        return "" if found == ["ok"] else "; ".join(found)

    def backup(self, target: Path) -> None:
        """Copy the file as it is at one moment, whoever writes to it meanwhile."""
        with sqlite3.connect(target, isolation_level=None) as copy:
            self._connection.backup(copy, pages=4096)
            copy.execute("PRAGMA journal_mode = DELETE")
        copy.close()

    def counts(self) -> tuple[int, int, int]:
        """How many sessions, messages and lines of the ledger there are."""
        tables = [name for name in ("sessions", "messages", "usage_ledger") if self._columns[name]]
        found = [int(self._connection.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0]) for name in tables]  # noqa: S608 - our own names
        return found[0], found[1], found[2] if len(found) > 2 else 0  # noqa: PLR2004

    def quick(self) -> dict[str, Quick]:
        """Every session, oldest first."""
        lines: dict[str, int] = {}
        if self._columns["usage_ledger"]:
            found = self._connection.execute("SELECT session_id, MAX(id) FROM usage_ledger GROUP BY session_id")
            lines = {str(row[0]): int(row[1]) for row in found}
        messages: dict[str, tuple[int, int]] = {}
        for one in self._connection.execute("SELECT session_id, COUNT(*), MAX(id) FROM messages GROUP BY session_id"):
            messages[str(one[0])] = (int(one[1]), int(one[2]))
        rows = self._connection.execute("SELECT * FROM sessions ORDER BY created_at, id")
        return {
            str(row["id"]): Quick(_mark(row), *messages.get(str(row["id"]), (0, 0)), lines.get(str(row["id"]), 0))
            for row in rows
        }

    def session(self, session_id: str) -> LocalSession | None:
        """One session at one moment, None if there is none."""
        with self._transaction("BEGIN"):
            return self._session(session_id)

    def _session(self, session_id: str) -> LocalSession | None:
        found = self._connection.execute("SELECT * FROM sessions WHERE id = ?", [session_id]).fetchone()
        if found is None:
            return None
        rows: list[int] = []
        messages: list[GooseMessage] = []
        for one in self._connection.execute(
            "SELECT * FROM messages WHERE session_id = ? ORDER BY created_timestamp, id", [session_id]
        ):
            rows.append(int(one["id"]))
            messages.append(_message(one))
        ledger = self.ledger(session_id)
        row = {name: found[name] for name in found.keys() if found[name] is not None}  # noqa: SIM118 - a Row is no dict
        return LocalSession(row, rows, messages, ledger, _mark(found))

    def ledger(self, session_id: str) -> list[Row]:
        """A session's lines of the usage ledger, ascending."""
        if not self._columns["usage_ledger"]:
            return []
        lines = self._connection.execute("SELECT * FROM usage_ledger WHERE session_id = ? ORDER BY id", [session_id])
        return [dict(line) for line in lines]

    def first_line_time(self) -> int:
        """When the oldest line of the ledger was written, in seconds since 1970; now, if there is none."""
        if self._columns["usage_ledger"]:
            found = self._connection.execute("SELECT MIN(created_timestamp) FROM usage_ledger").fetchone()[0]
            if isinstance(found, int):
                return found
        return int(time.time())

    def write(
        self,
        session_id: str,
        expected: str,
        *,
        row: Row,
        keep: int,
        messages: Sequence[GooseMessage],
        lines: Sequence[Row],
    ) -> LocalSession:
        """Bring a session to what the mesh has: its row, the first `keep` messages as they are, then these.

        `expected` is the digest that it must still have; empty: it must not be there. Raises ChangedMeanwhileError.
        """
        with self._transaction("BEGIN IMMEDIATE"):
            there = self._session(session_id)
            if (there.digest if there else "") != expected:
                raise ChangedMeanwhileError
            self._write_row(session_id, row, there)
            for number in there.rows[keep:] if there else ():
                self._connection.execute("DELETE FROM messages WHERE id = ?", [number])
            for message in messages:
                self._insert("messages", _columns(message) | {"session_id": session_id})
            for line in lines if self._columns["usage_ledger"] else ():
                self._connection.execute("DELETE FROM usage_ledger WHERE id = ?", [line.get("id")])
                self._insert("usage_ledger", line | {"session_id": session_id})
            written = self._session(session_id)
        assert written is not None
        return written

    def _write_row(self, session_id: str, row: Row, there: LocalSession | None) -> None:
        known = {name: value for name, value in row.items() if name in self._columns["sessions"]}
        if there is None:
            self._insert("sessions", known)
            return
        gone = {name: None for name in there.row if name not in known and name != "updated_at"}
        changed = {name: value for name, value in (known | gone).items() if there.row.get(name) != value}
        changed.pop("updated_at", None)
        sets = "".join(f"{name} = ?, " for name in changed)
        self._connection.execute(
            f"UPDATE sessions SET {sets}updated_at = datetime('now') WHERE id = ?",  # noqa: S608 - names of its own columns
            [*changed.values(), session_id],
        )

    def delete(self, session_id: str, expected: str) -> None:
        """Take a session away. Raises ChangedMeanwhileError if it is not as its digest `expected` says."""
        with self._transaction("BEGIN IMMEDIATE"):
            there = self._session(session_id)
            if there is None:
                return
            if there.digest != expected:
                raise ChangedMeanwhileError
            self._connection.execute("DELETE FROM messages WHERE session_id = ?", [session_id])
            if self._columns["usage_ledger"]:
                self._connection.execute("DELETE FROM usage_ledger WHERE session_id = ?", [session_id])
            self._connection.execute("DELETE FROM sessions WHERE id = ?", [session_id])

    def _insert(self, table: str, values: Row) -> None:
        known = {name: value for name, value in values.items() if name in self._columns[table]}
        marks = ", ".join("?" * len(known))
        self._connection.execute(
            f"INSERT INTO {table} ({', '.join(known)}) VALUES ({marks})",  # noqa: S608 - names of its own columns
            list(known.values()),
        )

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        self._connection.execute(begin)
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _mark(row: sqlite3.Row) -> int:
    return zlib.crc32(repr(tuple(row)).encode(errors="replace"))


def _message(row: sqlite3.Row) -> GooseMessage:
    message: GooseMessage = {"role": row["role"], "created": row["created_timestamp"]}
    message["content"] = _json(row["content_json"])
    if row["message_id"] is not None:
        message["id"] = row["message_id"]
    if row["metadata_json"] is not None:
        message["metadata"] = _json(row["metadata_json"])
    if "tokens" in row.keys() and row["tokens"] is not None:  # noqa: SIM118 - a Row is no dict
        message["tokens"] = row["tokens"]
    return message


def _columns(message: GooseMessage) -> Row:
    columns: Row = {"role": message["role"], "created_timestamp": message.get("created", 0)}
    columns["content_json"] = _text(message["content"])
    columns["message_id"] = message.get("id")
    columns["metadata_json"] = _text(message["metadata"]) if "metadata" in message else None
    columns["tokens"] = message.get("tokens")
    return {name: value for name, value in columns.items() if value is not None}


_UNREADABLE = "gaggle.unreadable"


def _json(text: str) -> Any:
    """A column's JSON. One that is none is kept as it is, in an object that goose does not write."""
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return {_UNREADABLE: text}


def _text(value: Any) -> str:
    if isinstance(value, dict) and value.keys() == {_UNREADABLE}:
        return str(value[_UNREADABLE])
    return dump(value, separators=(",", ":"))
