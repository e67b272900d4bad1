"""Compares every conversation of goose's file with the mesh, value for value."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from cli.goose.database import GooseDatabase, LocalSession
from cli.goose.messages import GooseMessage, write_messages
from cli.goose.service import Mesh
from cli.goose.sessions import Row, ledger_line, row_of, same_session, usage_entry
from cli.migrate.goose_state import Entry, State
from gaggle.agent.v1.session_pb2 import UsageEntry

_SHOWN = 20


@dataclass(frozen=True)
class Difference:
    """One thing in which the two sides differ."""

    session: str
    """goose's id."""

    kind: str
    """`missing-in-mesh`, `missing-in-file`, `session`, `message`, `message-missing-in-mesh`, `message-missing-in-file`,
    `ledger`, `ledger-missing-in-mesh`, `ledger-missing-in-file`, `left-alone`."""

    detail: str

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.session}: {self.kind}: {self.detail}"

    def told(self) -> dict[str, str]:
        """For the report."""
        return asdict(self)


class Verifier:
    """Reads both sides whole, a session at a time."""

    def __init__(self, database: GooseDatabase | None, mesh: Mesh, state: State) -> None:
        """`database`: None once it was removed."""
        self._database = database
        self._mesh = mesh
        self._state = state
        self._messages: dict[str, int] = {}
        self.lines = 0

    @property
    def sessions(self) -> int:
        """How many were compared."""
        return len(self._messages)

    @property
    def messages(self) -> int:
        """How many of the mesh's were."""
        return sum(self._messages.values())

    def identities(self) -> list[str]:
        """Every session that either side is known to have, by goose's ids."""
        found = dict.fromkeys(self._database.quick() if self._database else ())
        found |= dict.fromkeys(entry.id for entry in self._state.entries())
        return list(found)

    async def compare(self, identity: str) -> list[Difference]:
        """What is different in one session, the ledger apart. Raises as Client.call."""
        entry = self._state.entry(identity)
        local = self._database.session(identity) if self._database else None
        self._messages[identity] = 0
        if entry is None:
            return [Difference(identity, "missing-in-mesh", "was never copied")] if local else []
        session = await self._mesh.session(entry.session_id)
        conversation = await self._mesh.conversation(entry.conversation_id)
        if session is None and conversation is None:
            detail = f"session and conversation: {entry.trouble}" if entry.trouble else "session and conversation"
            return [Difference(identity, "missing-in-mesh", detail)] if local else []
        if local is None:
            return [Difference(identity, "missing-in-file", f"the mesh has it as {entry.session_id}")]
        found: list[Difference] = []
        if session is None:
            found.append(Difference(identity, "missing-in-mesh", "its session"))
        else:
            row = row_of(session)
            for name in same_session(row, local.row):
                detail = f"{name} is {_short(local.row.get(name))} in the file, {_short(row.get(name))} in the mesh"
                found.append(Difference(identity, "session", detail))
        if conversation is None and (local.messages or entry.conversation_etag):
            found.append(Difference(identity, "missing-in-mesh", "its conversation"))
        elif conversation is not None:
            written = list(write_messages(await self._mesh.messages(conversation.id)))
            found += _compare_messages(local, written)
            self._messages[identity] = len(written)
        if entry.trouble:
            found.append(Difference(identity, "left-alone", entry.trouble))
        return found

    async def compare_ledgers(self, progress: Callable[[int], None]) -> AsyncIterator[Difference]:
        """What is different in the usage ledger. `progress` is told how many lines were read."""
        if self._database is None:
            return
        started = datetime.now(UTC)
        with self._state.remote_lines() as table:
            for day in await self._mesh.days_with_usage(self._state.first_line, started):
                async for entry in self._mesh.lines(day, day):
                    table.add(entry)
                    self.lines += 1
                progress(self.lines)
            for known in self._state.entries():
                local = self._database.ledger(known.id)
                for difference in _compare_lines(known, local, table.of(known.session_id)):
                    yield difference


def _compare_messages(local: LocalSession, written: list[GooseMessage]) -> Iterator[Difference]:
    """Match by ids where both have them, so that one that is missing is not a difference of all that follow."""
    mine, yours = local.messages, written
    if mine == yours:
        return
    for tag, number, detail in _diff(mine, yours):
        kind = {"-": "message-missing-in-mesh", "+": "message-missing-in-file", "!": "message"}[tag]
        yield Difference(local.id, kind, f"message {number}: {detail}")


def _diff(mine: list[GooseMessage], yours: list[GooseMessage]) -> Iterator[tuple[str, int, str]]:
    keys = [_key(one, number) for number, one in enumerate(mine)]
    theirs = [_key(one, number) for number, one in enumerate(yours)]
    there = {key: one for key, one in zip(theirs, yours, strict=True)}  # noqa: C416 - later ones of one id count
    known = set(keys)
    for number, (key, one) in enumerate(zip(keys, mine, strict=True), start=1):
        if key not in there:
            yield "-", number, _gist(one)
        elif there[key] != one:
            yield "!", number, _changed(one, there[key])
    for number, (key, one) in enumerate(zip(theirs, yours, strict=True), start=1):
        if key not in known:
            yield "+", number, _gist(one)
    if [key for key in keys if key in there] != [key for key in theirs if key in known]:
        yield "!", 1, "the messages are in another order"


def _key(message: GooseMessage, number: int) -> str:
    identity = message.get("id")
    return str(identity) if identity else f"#{number}"


def _changed(mine: GooseMessage, yours: GooseMessage) -> str:
    names = sorted(name for name in mine.keys() | yours.keys() if mine.get(name) != yours.get(name))
    shown = "; ".join(
        f"{name} is {_short(mine.get(name))} in the file, {_short(yours.get(name))} in the mesh" for name in names
    )
    return f"{mine.get('id', '')} {shown}".strip()


def _gist(message: GooseMessage) -> str:
    return f"{message.get('id', '')} {message.get('role', '')} {_short(message.get('content'))}".strip()


def _compare_lines(entry: Entry, local: list[Row], remote: list[UsageEntry]) -> Iterator[Difference]:
    sourced = {int(one.source_id): one for one in remote if one.source_id}
    own = Counter(_line(ledger_line(one)) for one in remote if not one.source_id)
    left: list[Row] = []
    for line in local:
        there = sourced.pop(int(line["id"]), None)
        if there is None:
            left.append(line)
        else:
            mine, theirs = ledger_line(usage_entry(line)), ledger_line(there)
            for name in sorted(name for name in mine if mine[name] != theirs[name]):
                detail = f"line {line['id']}: {name} is {mine[name]} in the file, {theirs[name]} in the mesh"
                yield Difference(entry.id, "ledger", detail)
    for line in left:
        key = _line(ledger_line(usage_entry(line)))
        if own[key] > 0:
            own[key] -= 1
        else:
            yield Difference(entry.id, "ledger-missing-in-mesh", f"line {line['id']}")
    for number in sourced:
        yield Difference(entry.id, "ledger-missing-in-file", f"line {number}")
    for key, count in own.items():
        for _ in range(count):
            yield Difference(entry.id, "ledger-missing-in-file", f"a turn of the mesh, {_short(dict(key))}")


def _line(line: Row) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((name, value) for name, value in line.items() if value is not None))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN * 3 else f"{text[: _SHOWN * 3]}…"
