"""The steps of a migration. Each may be stopped, gone on with and repeated; until the file is removed, undone.

none --dual-write--> dual-write --verify--> verified --switch--> switched --remove--> removed
                          ^                     |                    |
                          +------- undo --------+<------ undo -------+
"""

import asyncio
import contextlib
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self

from cli.conversations.errors import ServiceRefusedError
from cli.errors import CommandError, Refused
from cli.goose.database import KNOWN_SCHEMA, GooseDatabase
from cli.goose.service import Mesh, Where, mesh
from cli.migrate.goose_state import Entry, Phase, State
from cli.migrate.goose_sync import LeftAloneError, Leveller, Tally
from cli.migrate.goose_verify import Difference, Verifier

_AT_ONCE = 12
_POLL_SECONDS = 1.0
_SETTLE_ROUNDS = 3
_SETTLE_SECONDS = 1.0
_SESSION, _CONVERSATION = "session", "conversation"


class Progress(Protocol):
    """Who is told how far a step is."""

    def begin(self, what: str, total: int) -> None:
        """A stretch of so many units begins."""
        ...

    def advance(self, units: int) -> None:
        """So many more are done."""
        ...

    def say(self, text: str) -> None:
        """Something that a person should read."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a step has done."""

    report: dict[str, Any]
    file: Path
    differences: tuple[Difference, ...] = ()


class Migration:
    """One file's way into the mesh."""

    def __init__(self, database: Path, where: Where, progress: Progress) -> None:
        """`database` is goose's file."""
        self._path = database.expanduser().absolute()
        self._where = where
        self._progress = progress
        self.state = State(self._path)
        self._began = time.monotonic()
        self._work_seconds = 0.0
        self._data_version = 0
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Leave at the next good moment."""
        self._stopping.set()

    # -- the steps

    async def dual_write(self, *, once: bool, prefer: str = "") -> Outcome:
        """Bring the file's sessions to the mesh, then keep both sides level until stopped, or once.

        `prefer` settles sessions that both sides have changed. Raises CommandError.
        """
        database = GooseDatabase(self._path)
        try:
            self._needs_phase(Phase.NONE, Phase.DUAL_WRITE, Phase.VERIFIED, Phase.SWITCHED)
            self.state.open()
            with self.state.alone():
                self._back_up(database)
                async with self._mesh(audit=True) as there:
                    return await self._dual_write(database, there, once=once, prefer=prefer)
        finally:
            self.state.close()
            database.close()

    async def verify(self, *, fix: bool) -> Outcome:
        """Compare every conversation; repair what differs, if asked to. Raises CommandError."""
        self._needs_phase(Phase.DUAL_WRITE, Phase.VERIFIED, Phase.SWITCHED)
        database = GooseDatabase(self._path)
        try:
            self.state.open()
            with self.state.alone() if fix else contextlib.nullcontext():
                async with self._mesh() as there:
                    return await self._verify(database, there, fix=fix)
        finally:
            self.state.close()
            database.close()

    async def switch(self) -> Outcome:
        """Have reads go to the mesh, once both sides are the same. Raises CommandError."""
        self._needs_phase(Phase.DUAL_WRITE, Phase.VERIFIED, Phase.SWITCHED)
        return await self._settled("switch", Phase.SWITCHED)

    async def remove(self) -> Outcome:
        """Take the file away, once both sides are the same; a last copy stays. Raises CommandError."""
        self._needs_phase(Phase.SWITCHED, Phase.REMOVING, Phase.REMOVED)
        if self._phase() is Phase.SWITCHED:
            outcome = await self._settled("remove", Phase.REMOVING)
            if self._phase() is not Phase.REMOVING:
                return outcome
        self.state.open()
        try:
            with self.state.alone():
                # From here on the file is only taken away: whoever comes back after a kill does the same.
                for suffix in ("-wal", "-shm", "-journal", ""):
                    self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
                self.state.phase = Phase.REMOVED
                return self._outcome("remove", {"removed": str(self._path), "kept": str(self.state.final)})
        finally:
            self.state.close()

    async def undo(self, *, everything: bool) -> Outcome:
        """Go one step back: reads to the file again, or `everything` that was brought to the mesh taken away from it.

        The latter is asked for, so that whoever repeats the former, not knowing that it was done, loses nothing.

        Raises CommandError.
        """
        self._needs_phase(Phase.DUAL_WRITE, Phase.VERIFIED, Phase.SWITCHED, Phase.UNDOING)
        phase = self._phase()
        if phase is Phase.SWITCHED:
            return await self._settled("undo", Phase.VERIFIED)
        if phase is not Phase.UNDOING and not everything:
            raise Refused(
                "Reads go to the file already: `gaggle migrate goose undo --yes` takes from the mesh all that was "
                "brought there."
            )
        database = GooseDatabase(self._path)
        try:
            self.state.open()
            with self.state.alone():
                async with self._mesh() as there:
                    return await self._undo(database, there)
        finally:
            self.state.close()
            database.close()

    # -- what they are made of

    def _phase(self) -> Phase:
        if not self.state.exists:
            return Phase.NONE
        self.state.open()
        try:
            return self.state.phase
        finally:
            self.state.close()

    def _needs_phase(self, *phases: Phase) -> None:
        phase = self._phase()
        if phase in phases:
            return
        if phase is Phase.NONE:
            raise Refused("This file's migration has not begun: `gaggle migrate goose dual-write` does.")
        if phase is Phase.REMOVED:
            raise Refused(f"The migration is done: {self._path} was removed, {self.state.final} is its last copy.")
        if phase is Phase.UNDOING:
            raise Refused("The migration is being undone: `gaggle migrate goose undo` goes on with that.")
        if phase is Phase.REMOVING:
            raise Refused("The file is being removed: `gaggle migrate goose remove` goes on with that.")
        raise Refused(f"The migration stands at {phase}; this step comes after {phases[0]}.")

    @asynccontextmanager
    async def _mesh(self, *, audit: bool = False) -> AsyncIterator[Mesh]:
        async with mesh(self._where, audit=audit) as there:
            self.state.claim(there.user)
            yield there

    def _back_up(self, database: GooseDatabase) -> None:
        """A copy of the file before anything is done to it."""
        if self.state.backup.exists():
            return
        if database.schema_version > KNOWN_SCHEMA:
            self._progress.say(
                f"The file is of goose's schema {database.schema_version}, newer than {KNOWN_SCHEMA}: columns that are "
                "not known are kept as they are."
            )
        if wrong := database.check():
            raise CommandError(f"{self._path} is damaged: {wrong}")
        self._copy(database, self.state.backup)
        self._progress.say(f"Backed up to {self.state.backup}")

    def _copy(self, database: GooseDatabase, target: Path) -> None:
        temporary = target.with_name(f".{target.name}")
        temporary.unlink(missing_ok=True)
        database.backup(temporary)
        copy = GooseDatabase(temporary)
        try:
            if wrong := copy.check():
                raise CommandError(f"The copy {temporary} is damaged: {wrong}")
        finally:
            copy.close()
        temporary.chmod(0o600)
        temporary.replace(target)

    async def _dual_write(self, database: GooseDatabase, there: Mesh, *, once: bool, prefer: str) -> Outcome:
        if not self.state.get("position"):
            # What happens from here on is in the log after this.
            self.state.put("position", str(await there.log_position()))
        if self.state.phase is Phase.NONE:
            self.state.phase = Phase.DUAL_WRITE
        self._note_first_line(database)
        leveller = Leveller(database, there, self.state)
        total = Tally()
        async with Tail(there, self.state) as tail:
            total.add(await self._round(database, leveller, tail, prefer, first=True))
            if not once:
                self._progress.say("Both sides are kept level; Ctrl-C leaves, and the same command goes on.")
            while not once and not self._stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), _POLL_SECONDS)
                total.add(await self._round(database, leveller, tail, "", first=False))
        troubles = self.state.troubles()
        sessions, messages, lines = database.counts()
        return self._outcome(
            "dual-write",
            {
                "sessions_in_file": sessions,
                "messages_in_file": messages,
                "ledger_lines_in_file": lines,
                "sessions_looked_at": total.sessions,
                "messages_to_mesh": total.pushed_messages,
                "messages_to_file": total.pulled_messages,
                "ledger_lines_to_mesh": total.pushed_lines,
                "ledger_lines_to_file": total.pulled_lines,
                "sessions_deleted": total.deleted,
                "left_alone": [{"session": one.id, "why": one.trouble} for one in troubles],
                "stopped_early": self._stopping.is_set() and once,
            },
        )

    def _note_first_line(self, database: GooseDatabase) -> None:
        """Since when there are lines of the ledger: what is compared begins there."""
        known = int(self.state.get("first_line", "0"))
        first = database.first_line_time()
        self.state.put("first_line", str(min(known, first) if known else first))

    async def _round(
        self, database: GooseDatabase, leveller: Leveller, tail: "Tail", prefer: str, *, first: bool
    ) -> Tally:
        """Bring all sessions level that either side says something new of."""
        if first:
            await tail.caught_up()
        position, told = tail.take()
        version = database.data_version()
        if not first and not told and version == self._data_version:
            tail.done(position)
            return Tally()
        self._data_version = version
        levels = self.state.levels()
        quick = database.quick()
        changed = {name: look.messages for name, look in quick.items() if levels.get(name) != look.text()}
        left = {entry.id for entry in self.state.troubles()}
        if not (first or prefer):
            # Looked at anew when a side says something new of them, not at every turn.
            seen = {entry.id: entry.quick for entry in self.state.troubles()}
            changed = {name: count for name, count in changed.items() if seen.get(name) != quick[name].text()}
        changed |= dict.fromkeys([*(name for name in levels if name not in quick), *told], 0)
        weights = {name: max(count, 1) for name, count in changed.items()}
        if first and weights:
            self._progress.begin("messages", sum(weights.values()))
        tally = await self._each(leveller, weights, prefer, shown=first)
        for entry in self.state.troubles():
            if entry.id in weights and entry.id in quick:
                entry.quick = quick[entry.id].text()
                self.state.keep(entry)
                if entry.id not in left:
                    self._progress.say(f"Left alone: {entry.id}: {entry.trouble}")
        if not self._stopping.is_set():
            tail.done(position)
        return tally

    async def _each(
        self, leveller: Leveller, weights: dict[str, int], prefer: str, *, shown: bool, restore: bool = False
    ) -> Tally:
        total = Tally()
        queue = iter(list(weights.items()))
        began = time.monotonic()

        async def work() -> None:
            for name, weight in queue:
                if self._stopping.is_set():
                    return
                with contextlib.suppress(LeftAloneError):
                    total.add(await leveller.level(name, prefer=prefer, restore=restore))
                if shown:
                    self._progress.advance(weight)

        await _together(work)
        self._work_seconds += time.monotonic() - began
        return total

    async def _verify(self, database: GooseDatabase, there: Mesh, *, fix: bool) -> Outcome:
        verifier = Verifier(database, there, self.state)
        differences = await self._differences(verifier)
        found = len(differences)
        fixed = 0
        if fix and differences:
            differences = await self._repair(database, there, differences)
            fixed = found - len(differences)
        if not differences and self.state.phase is Phase.DUAL_WRITE and not self._stopping.is_set():
            self.state.phase = Phase.VERIFIED
        elif differences and self.state.phase is Phase.VERIFIED:
            self.state.phase = Phase.DUAL_WRITE
        report = {
            "sessions": verifier.sessions,
            "messages": verifier.messages,
            "ledger_lines": verifier.lines,
            "differences_found": found,
            "differences_repaired": fixed,
            "differences": [one.told() for one in differences],
            "complete": not self._stopping.is_set(),
        }
        return self._outcome("verify", report, differences)

    async def _differences(self, verifier: Verifier) -> list[Difference]:
        """Whoever writes meanwhile makes a difference for a moment: what differs is looked at again."""
        names = verifier.identities()
        self._progress.begin("sessions compared", len(names))
        found = await self._compare(verifier, names, shown=True)
        for _ in range(_SETTLE_ROUNDS):
            if not found or self._stopping.is_set():
                break
            await asyncio.sleep(_SETTLE_SECONDS)
            again = await self._compare(verifier, sorted({one.session for one in found}), shown=False)
            if again == found:
                break
            found = again
        if not self._stopping.is_set():
            found += [one async for one in verifier.compare_ledgers(lambda _: None)]
        return found

    async def _compare(self, verifier: Verifier, names: Iterable[str], *, shown: bool) -> list[Difference]:
        found: dict[str, list[Difference]] = {}
        queue = iter(list(names))
        began = time.monotonic()

        async def work() -> None:
            for name in queue:
                if self._stopping.is_set():
                    return
                found[name] = await verifier.compare(name)
                if shown:
                    self._progress.advance(1)

        await _together(work)
        self._work_seconds += time.monotonic() - began
        return [one for name in sorted(found) for one in found[name]]

    async def _repair(self, database: GooseDatabase, there: Mesh, differences: list[Difference]) -> list[Difference]:
        """Have the side that has not changed follow the other; what is missing comes back. Gives what is left."""
        leveller = Leveller(database, there, self.state)
        names = {one.session: 1 for one in differences}
        self._progress.begin("sessions repaired", len(names))
        await self._each(leveller, names, "", shown=True, restore=True)
        for one in {one.session for one in differences if one.kind.startswith("ledger")}:
            try:
                await leveller.restore_ledger(one)
            except (LeftAloneError, ServiceRefusedError) as error:
                self._progress.say(f"The ledger of {one}: {error}")
        return await self._differences(Verifier(database, there, self.state))

    async def _settled(self, step: str, then: Phase) -> Outcome:
        """A last round and a comparison, and if all is the same, the next phase."""
        database = GooseDatabase(self._path)
        try:
            self.state.open()
            with self.state.alone():
                async with self._mesh(audit=True) as there:
                    if self.state.phase is then:
                        return self._outcome(step, {"phase": str(then), "already": True})
                    async with Tail(there, self.state) as tail:
                        await self._round(database, Leveller(database, there, self.state), tail, "", first=True)
                    verifier = Verifier(database, there, self.state)
                    differences = await self._differences(verifier)
                    if differences or self._stopping.is_set():
                        left = {"differences": [one.told() for one in differences]}
                        return self._outcome(step, left | {"complete": not self._stopping.is_set()}, differences)
                    if then is Phase.REMOVING:
                        self._copy(database, self.state.final)
                    self.state.phase = then
                    report = {
                        "phase": str(then),
                        "sessions": verifier.sessions,
                        "messages": verifier.messages,
                        "ledger_lines": verifier.lines,
                    }
                    return self._outcome(step, report)
        finally:
            self.state.close()
            database.close()

    async def _undo(self, database: GooseDatabase, there: Mesh) -> Outcome:
        self.state.phase = Phase.UNDOING
        leveller = Leveller(database, there, self.state)
        entries = list(self.state.entries())
        self._progress.begin("sessions taken away", len(entries))
        kept: list[dict[str, str]] = []

        async def one(entry: Entry) -> None:
            try:
                await leveller.take_back(entry)
            except (LeftAloneError, ServiceRefusedError) as error:
                kept.append({"session": entry.id, "why": str(error)})
            self._progress.advance(1)

        queue = iter(entries)

        async def work() -> None:
            for entry in queue:
                if self._stopping.is_set():
                    return
                await one(entry)

        began = time.monotonic()
        await _together(work)
        self._work_seconds += time.monotonic() - began
        report = {"taken_away": len(entries) - len(kept), "left_in_the_mesh": kept, "backup": str(self.state.backup)}
        outcome = self._outcome("undo", report | {"complete": not self._stopping.is_set()})
        if not self._stopping.is_set():
            self.state.begin_anew()
        return outcome

    def _outcome(self, step: str, report: dict[str, Any], differences: Iterable[Difference] = ()) -> Outcome:
        # Linux counts in KiB, macOS in bytes.
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1 / 1024)
        whole = {
            "step": step,
            "file": str(self._path),
            "user": self.state.get("user"),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **report,
            "phase": str(self.state.phase),
            "seconds": round(time.monotonic() - self._began, 1),
            "working_seconds": round(self._work_seconds, 1),
            "peak_memory_mb": round(memory / 1024 / 1024),
        }
        return Outcome(whole, self.state.write_report(step, whole), tuple(differences))


class Tail:
    """What the mesh says of the user's sessions, from the audit log, by its positions."""

    def __init__(self, there: Mesh, state: State) -> None:
        """Goes on from where the last process stood."""
        self._there = there
        self._state = state
        self._position = int(state.get("position", "0"))
        self._told: dict[str, dict[str, int]] = {}
        self._current = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to follow."""
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Follow no more."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            head = await self._there.log_position()
            if self._position >= head:
                self._current.set()
            async for response in self._there.watch(self._position):
                for entry in response.entries:
                    self._note(entry)
                    self._position = max(self._position, int(entry.position))
                self._position = max(self._position, int(response.position))
                if self._position >= head:
                    self._current.set()

    def _note(self, entry: Any) -> None:
        """Remember what may have changed."""
        event = entry.event
        if event.entity_type in {_CONVERSATION, _SESSION}:
            known = self._told.setdefault(event.entity_id, {})
            known[event.entity_type] = max(known.get(event.entity_type, 0), int(event.revision))

    async def caught_up(self) -> None:
        """Wait until all that was logged before now is known. Raises as Client.call."""
        assert self._task is not None
        current = asyncio.create_task(self._current.wait())
        await asyncio.wait({current, self._task}, return_when=asyncio.FIRST_COMPLETED)
        current.cancel()
        if self._task.done():
            self._task.result()

    def take(self) -> tuple[int, list[str]]:
        """Where it stands, and the sessions told of since last asked, save by ourselves. Raises as Client.call."""
        assert self._task is not None
        if self._task.done():
            self._task.result()
        told, self._told = self._told, {}
        found: dict[str, None] = {}
        for name, revisions in told.items():
            if _CONVERSATION in revisions:
                entry = self._state.by_conversation(name)
                if entry is not None and revisions[_CONVERSATION] > int(entry.conversation_etag or 0):
                    found[entry.id] = None
            if _SESSION in revisions:
                entry = self._state.by_session(name)
                if entry is None:
                    found[name] = None
                elif revisions[_SESSION] > int(entry.session_etag or 0):
                    found[entry.id] = None
        return self._position, list(found)

    def done(self, position: int) -> None:
        """All that was told up to here is done."""
        if str(position) != self._state.get("position"):
            self._state.put("position", str(position))


async def _together(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run several of a kind of worker; the first failure ends all, and is raised as it is."""
    tasks = [asyncio.create_task(work()) for _ in range(_AT_ONCE)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
