"""What a migration has done, in a directory of its own: every phase can be cut off anywhere and be run again.

migration.json   which tables, and what each phase found and did: the report
copied.jsonl     a line a conversation that is stored, with its user and the digest of what was
verified.jsonl   the same for those that were read back and found equal
backup/          the tables as files

Lines are added once a conversation is done, so a line that is missing or torn costs doing it again, which changes
nothing.
"""

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from cli.errors import CommandError, Refused
from cli.mesh.data import write_private


class Journal:
    """Conversations by their ids in the tables, each with its user and the digest of what was done with it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done: dict[str, tuple[str, str]] = {}
        self._file: TextIO | None = None

    def load(self) -> None:
        """Reads what earlier runs have left; the last line of an id holds."""
        if not self._path.exists():
            return
        for line in self._path.read_text().splitlines():
            try:
                source_id, user, digest = json.loads(line)
            except ValueError:
                continue  # torn, as a killed process leaves it
            self._done[source_id] = user, digest

    def has(self, source_id: str, digest: str) -> bool:
        """Whether that was done, with that digest."""
        return self._done.get(source_id, ("", ""))[1] == digest

    def users(self) -> dict[str, str]:
        """Whose those are that were done, by their ids."""
        return {source_id: user for source_id, (user, digest) in self._done.items() if digest}

    def add(self, source_id: str, user: str, digest: str) -> None:
        """Notes one that is done; without digest, that it is gone."""
        if self._file is None:
            torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
            self._file = self._path.open("a")
            if torn:
                self._file.write("\n")
        self._file.write(json.dumps([source_id, user, digest]) + "\n")
        self._file.flush()
        self._done[source_id] = user, digest

    def close(self) -> None:
        """Closes its file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class Work:
    """The directory of one migration."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.copied = Journal(path / "copied.jsonl")
        self.verified = Journal(path / "verified.jsonl")
        self._report = path / "migration.json"

    @property
    def backup(self) -> Path:
        """Where the tables lie as files."""
        return self.path / "backup"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the directory to this process.

        Raises:
            Refused: another process works in it.
            CommandError: it can't be made.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        except OSError as error:
            raise CommandError(f"{self.path} can't be made: {error}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(f"Another process works in {self.path}.") from None
            self.copied.load()
            self.verified.load()
            try:
                yield
            finally:
                self.copied.close()
                self.verified.close()

    def report(self) -> dict[str, Any]:
        """All that migration.json says.

        Raises:
            CommandError: it can't be read.
        """
        try:
            report = json.loads(self._report.read_text())
        except FileNotFoundError:
            return {"tables": None, "phases": {}}
        except (OSError, ValueError) as error:
            raise CommandError(f"{self._report} can't be read: {error}") from error
        assert isinstance(report, dict)
        return report

    def bind(self, identity: dict[str, str]) -> None:
        """Belongs to these tables from now on.

        Raises:
            Refused: it belongs to others.
        """
        report = self.report()
        if report["tables"] is None:
            self._write(report | {"tables": identity})
        elif report["tables"] != identity:
            raise Refused(
                f"{self.path} belongs to the migration of other tables (database {report['tables']['database']!r}): "
                "choose another directory with --work."
            )

    def note(self, phase: str, **facts: Any) -> None:
        """Writes what a phase found and did, in place of what it said before."""
        report = self.report()
        report["phases"][phase] = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts}
        self._write(report)

    def forget(self, phase: str) -> None:
        """Takes a phase back."""
        report = self.report()
        report["phases"].pop(phase, None)
        self._write(report)

    def phase(self, name: str) -> dict[str, Any]:
        """What a phase noted; empty if it never came to its end."""
        found = self.report()["phases"].get(name, {})
        assert isinstance(found, dict)
        return found

    def _write(self, report: dict[str, Any]) -> None:
        write_private(self._report, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
