"""What a migration remembers, in a directory beside goose's file.

sessions.db.gaggle/
    state.db        how far it is; how each session stood on both sides when they were last level
    lock            locked by the one process that changes anything
    backup.db       the file as it was before the first step
    final.db        the file as it was before it was removed
    report-*.json   what each step has done
"""

import fcntl
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from cli.errors import CommandError, Refused
from gaggle.agent.v1.session_pb2 import UsageEntry

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    digest TEXT NOT NULL,
    messages INTEGER NOT NULL,
    messages_digest TEXT NOT NULL,
    last_line INTEGER NOT NULL,
    quick TEXT NOT NULL,
    conversation_etag TEXT NOT NULL,
    session_etag TEXT NOT NULL,
    last_sequence INTEGER NOT NULL,
    level_time INTEGER NOT NULL,
    intent TEXT NOT NULL,
    trouble TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS sessions_by_session ON sessions (session_id);
CREATE INDEX IF NOT EXISTS sessions_by_conversation ON sessions (conversation_id);
"""


class Phase(StrEnum):
    """How far a migration is."""

    NONE = "none"
    DUAL_WRITE = "dual-write"
    VERIFIED = "verified"
    SWITCHED = "switched"
    REMOVING = "removing"
    REMOVED = "removed"
    UNDOING = "undoing"

    @property
    def reads_from_mesh(self) -> bool:
        """Whose word counts."""
        return self in {Phase.SWITCHED, Phase.REMOVING, Phase.REMOVED}


@dataclass
class Entry:
    """A session, and how both sides stood when they were last level."""

    id: str
    """goose's."""

    session_id: str
    conversation_id: str
    digest: str = ""
    """Of the file's side; empty: not there."""

    messages: int = 0
    messages_digest: str = ""
    last_line: int = 0
    """The newest row of the ledger that the mesh has, too."""

    quick: str = ""
    conversation_etag: str = ""
    """Empty: not there."""

    session_etag: str = ""
    last_sequence: int = 0
    level_time: int = 0
    """Seconds since 1970; 0: never level so far."""

    intent: str = ""
    """What a push that may be cut off is about: how many messages stay, and the SHA-256 of the session's new extra."""

    trouble: str = ""
    """Why it is left alone; empty: it is not."""

    def plan(self, keep: int, extra: str) -> None:
        """Note what is about to be sent."""
        self.intent = json.dumps({"keep": keep, "extra": extra})

    def planned(self) -> dict[str, Any]:
        """What was about to be sent; empty: nothing."""
        found: dict[str, Any] = json.loads(self.intent) if self.intent else {}
        return found


class LineTable:
    """Lines of the mesh's ledger by session."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """The one that has the table."""
        self._db = connection

    def add(self, entry: UsageEntry) -> None:
        """Keep one."""
        self._db.execute("INSERT INTO temp.lines VALUES (?, ?)", [entry.session_id, entry.SerializeToString()])

    def of(self, session_id: str) -> list[UsageEntry]:
        """A session's."""
        rows = self._db.execute("SELECT line FROM temp.lines WHERE session_id = ?", [session_id])
        return [UsageEntry.FromString(row[0]) for row in rows]


class State:
    """What a migration remembers; every change is durable when it returns, against kill -9."""

    def __init__(self, database: Path) -> None:
        """`database` is goose's file, which need not be there any more."""
        self.directory = database.with_name(f"{database.name}.gaggle")
        self._file = self.directory / "state.db"
        self._connection: sqlite3.Connection | None = None

    @property
    def exists(self) -> bool:
        """Whether anything was begun."""
        return self._file.is_file()

    @property
    def backup(self) -> Path:
        """The file as it was before the first step."""
        return self.directory / "backup.db"

    @property
    def final(self) -> Path:
        """The file as it was before it was removed."""
        return self.directory / "final.db"

    def open(self) -> None:
        """Make what is missing. Raises CommandError."""
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise CommandError(f"{self.directory} cannot be made: {error}") from error
        self._connection = sqlite3.connect(self._file, timeout=30.0, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode = WAL")
        # A killed process loses nothing so; after a power cut, contents are compared again.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Let go of it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._connection is not None
        return self._connection

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from changing anything. Raises Refused."""
        with (self.directory / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Refused(
                    "Another process works on this migration. Stop it first (Ctrl-C): it loses nothing by that."
                ) from None
            yield

    # -- the migration as a whole

    def get(self, name: str, default: str = "") -> str:
        """A value that was kept."""
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", [name]).fetchone()
        return str(row[0]) if row else default

    def put(self, name: str, value: str) -> None:
        """Keep a value."""
        self._db.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", [name, value])

    @property
    def phase(self) -> Phase:
        """How far it is."""
        return Phase(self.get("phase", Phase.NONE))

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self.put("phase", phase)

    @property
    def nonce(self) -> str:
        """Of this migration; a new one after it was undone."""
        found = self.get("nonce")
        if not found:
            found = uuid.uuid4().hex
            self.put("nonce", found)
        return found

    @property
    def first_line(self) -> datetime:
        """Since when the file has had lines of the usage ledger."""
        return datetime.fromtimestamp(max(int(self.get("first_line", "0")), 1), UTC)

    def begin_anew(self) -> None:
        """Forget everything: the migration was undone. The backup is kept under a name of its own."""
        if self.backup.exists():
            self.backup.replace(self.directory / f"backup-{datetime.now(UTC):%Y%m%dT%H%M%S}.db")
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("DELETE FROM sessions")
        self._db.execute("DELETE FROM meta")
        self._db.execute("COMMIT")

    def claim(self, user: str) -> None:
        """Bind the migration to a user of the mesh. Raises Refused for another one's."""
        known = self.get("user")
        if known and known != user:
            raise Refused(
                f"This migration was begun for the user {known}, not for {user or 'nobody'}: name --user {known}."
            )
        if not known:
            self.put("user", user)

    # -- sessions

    def entry(self, identity: str) -> Entry | None:
        """By goose's id."""
        return self._one("id", identity)

    def by_session(self, session_id: str) -> Entry | None:
        """By the agent session's id."""
        return self._one("session_id", session_id)

    def by_conversation(self, conversation_id: str) -> Entry | None:
        """By the conversation's id."""
        return self._one("conversation_id", conversation_id)

    def _one(self, column: str, value: str) -> Entry | None:
        row = self._db.execute(f"SELECT * FROM sessions WHERE {column} = ?", [value]).fetchone()  # noqa: S608 - our own column
        return Entry(**dict(row)) if row else None

    def entries(self) -> Iterator[Entry]:
        """All, by goose's ids."""
        last = ""
        while True:
            rows = self._db.execute("SELECT * FROM sessions WHERE id > ? ORDER BY id LIMIT 500", [last]).fetchall()
            if not rows:
                return
            for row in rows:
                yield Entry(**dict(row))
            last = str(rows[-1]["id"])

    def levels(self) -> dict[str, str]:
        """The quick look of every session that is level and without trouble."""
        rows = self._db.execute("SELECT id, quick FROM sessions WHERE level_time > 0 AND trouble = '' AND intent = ''")
        return {str(row[0]): str(row[1]) for row in rows}

    def keep(self, entry: Entry) -> None:
        """Keep an entry."""
        names = [one.name for one in fields(Entry)]
        marks = ", ".join("?" * len(names))
        self._db.execute(
            f"INSERT OR REPLACE INTO sessions ({', '.join(names)}) VALUES ({marks})",  # noqa: S608 - our own columns
            [getattr(entry, name) for name in names],
        )

    def keep_level(self, entry: Entry) -> None:
        """Keep an entry whose sides are level now."""
        entry.intent = entry.trouble = ""
        entry.level_time = int(time.time())
        self.keep(entry)

    def forget(self, identity: str) -> None:
        """Drop an entry."""
        self._db.execute("DELETE FROM sessions WHERE id = ?", [identity])

    def troubles(self) -> list[Entry]:
        """Those that are left alone."""
        rows = self._db.execute("SELECT * FROM sessions WHERE trouble <> '' ORDER BY id").fetchall()
        return [Entry(**dict(row)) for row in rows]

    def count(self) -> int:
        """How many sessions there are."""
        return int(self._db.execute("SELECT COUNT(*) FROM sessions").fetchone()[0])

    # -- the mesh's ledger, while it is compared

    @contextmanager
    def remote_lines(self) -> Iterator["LineTable"]:
        """A table for lines of the mesh's ledger, on disk, for there may be more than memory should hold."""
        # Of this connection alone, so that whoever works on the migration meanwhile is not held up.
        self._db.execute("DROP TABLE IF EXISTS temp.lines")
        self._db.execute("CREATE TEMP TABLE lines (session_id TEXT NOT NULL, line BLOB NOT NULL)")
        self._db.execute("CREATE INDEX temp.lines_by_session ON lines (session_id)")
        try:
            yield LineTable(self._db)
        finally:
            self._db.execute("DROP TABLE IF EXISTS temp.lines")

    # -- reports

    def write_report(self, step: str, report: dict[str, Any]) -> Path:
        """Keep what a step has done; gives the file."""
        target = self.directory / f"report-{step}.json"
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        temporary.replace(target)
        return target
