"""Makes both sides of a session level: goose's file, and the mesh.

For each session it is remembered how both sides stood when they were last level. A side that stands otherwise now has
changed. One that has is followed by the other; if both have, nothing is merged: the session is left alone and reported.

A process may be killed at any point. What is pushed is noted first; what is found half-done then is known by its
content and gone on with. What is pulled is one transaction of the file, so it is there or not, and if it is there
both sides have the same content. So whatever was cut off, the next look at the session tells.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cli.conversations.errors import ServiceRefusedError
from cli.goose.database import ChangedMeanwhileError, GooseDatabase, LocalSession, messages_digest
from cli.goose.messages import GooseMessage, read_message, write_messages
from cli.goose.service import Mesh
from cli.goose.sessions import (
    Fields,
    Row,
    extra_of_row,
    fields_of_row,
    ledger_line,
    new_session_id,
    row_of,
    same_session,
    usage_entry,
)
from cli.migrate.goose_state import Entry, State
from cli.transcripts import MAX_MESSAGE_BYTES
from gaggle.agent.v1 import agent_service_pb2 as agent_api
from gaggle.agent.v1.session_pb2 import Session, UsageEntry, UsageTotals
from gaggle.conversation.v1.conversation_pb2 import Conversation
from gaggle.conversation.v1.message_pb2 import Message

SESSION_KEY = "goose.session"
MIGRATION_KEY = "goose.migration"
BOTH_CHANGED = "both sides have changed"
# A deleted conversation's id is free again after seven days; until then the next of these is taken.
_LIVES = 6


class LeftAloneError(Exception):
    """A session that can't be made level; its text says why."""


@dataclass(frozen=True)
class RemoteSession:
    """A session as the mesh has it."""

    session: Session
    conversation: Conversation
    messages: list[Message] = field(repr=False)

    def written(self) -> list[GooseMessage]:
        """The messages as goose has them."""
        return list(write_messages(self.messages))


@dataclass
class Tally:
    """What was done."""

    sessions: int = 0
    pushed_messages: int = 0
    pulled_messages: int = 0
    pushed_lines: int = 0
    pulled_lines: int = 0
    deleted: int = 0

    def add(self, other: "Tally") -> None:
        """Count another's, too."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Leveller:
    """Works on one session at a time; several of them at once are fine."""

    def __init__(self, database: GooseDatabase, mesh: Mesh, state: State) -> None:
        """All three are the caller's to close."""
        self._database = database
        self._mesh = mesh
        self._state = state

    async def level(self, identity: str, *, prefer: str = "", restore: bool = False) -> Tally:
        """Make one session level, by goose's id.

        `prefer` ("sqlite" or "mesh") settles what both have changed, and that alone. `restore`: what is missing on one
        side is brought back from the other, instead of being deleted there, too. Raises LeftAloneError, which is noted,
        and what Client.call raises.
        """
        entry = self._state.entry(identity) or self._new_entry(identity)
        try:
            tally = await self._level(entry, prefer, restore=restore)
        except (LeftAloneError, ServiceRefusedError) as error:
            entry.trouble = str(error)
            self._state.keep(entry)
            raise LeftAloneError(str(error)) from error
        tally.sessions = 1
        return tally

    def _new_entry(self, identity: str) -> Entry:
        session_id = new_session_id(identity)
        if not session_id:
            session_id = f"goose-{_sha256(identity)[:32]}"
        return Entry(identity, session_id, session_id)

    async def _level(self, entry: Entry, prefer: str, *, restore: bool) -> Tally:
        local = self._database.session(entry.id)
        never = not entry.level_time and not entry.intent and not entry.trouble
        if local is not None and never:
            # The common case, first seen: nothing needs to be asked before it is created.
            return await self._push(local, entry, None)
        session = await self._mesh.session(entry.session_id)
        if session is not None and never:
            entry.conversation_id = session.conversation_id or entry.conversation_id
        conversation = await self._mesh.conversation(entry.conversation_id)
        deleted = entry.level_time > 0 and conversation is None and entry.conversation_etag != ""
        local_changed = self._local_changed(local, entry)
        remote_changed = (
            not entry.level_time
            or (conversation.etag if conversation else "") != entry.conversation_etag
            or (session.etag if session else "") != entry.session_etag
        )
        if local is None:
            return await self._only_there(entry, conversation, session, remote_changed, prefer, restore=restore)
        if not local_changed and not remote_changed and not entry.trouble:
            entry.quick = local.quick
            self._state.keep_level(entry)
            return Tally()
        if deleted and not restore and not entry.intent and not (local_changed and prefer == "sqlite"):
            if local_changed and not prefer:
                raise LeftAloneError(f"{BOTH_CHANGED}: deleted in the mesh, changed in the file")
            self._database.delete(local.id, local.digest)
            await self._take_away(entry, conversation, session)
            return Tally(deleted=1)
        if not remote_changed and local_changed and self._goes_on(local, entry):
            assert conversation is not None
            return await self._push(local, entry, RemoteSession(session or Session(), conversation, []), entry.messages)
        messages = await self._mesh.messages(conversation.id) if conversation else []
        remote = RemoteSession(session or Session(), conversation or Conversation(), messages)
        return await self._both_there(local, entry, remote, prefer, local_changed, remote_changed)

    async def _both_there(
        self,
        local: LocalSession,
        entry: Entry,
        remote: RemoteSession,
        prefer: str,
        local_changed: bool,  # noqa: FBT001 - what was found, not how to act
        remote_changed: bool,  # noqa: FBT001
    ) -> Tally:
        written = remote.written()
        whole = bool(remote.session.id and remote.conversation.id)
        if whole and written == local.messages and not same_session(row_of(remote.session), local.row):
            return await self._lines_alone(local, remote, entry)
        if self._is_ours_cut_off(entry, local, remote, written):
            take_local = True
        elif not whole:
            # What the mesh lacks is made again, from what the file has.
            if written != local.messages[: len(written)]:
                raise LeftAloneError("the mesh has another conversation of this id")
            take_local = True
        elif local_changed and remote_changed:
            if not prefer:
                raise LeftAloneError(_both(local, written, remote))
            take_local = prefer == "sqlite"
        else:
            take_local = local_changed or (not remote_changed and not self._state.phase.reads_from_mesh)
        return await (self._push(local, entry, remote) if take_local else self._pull(local, remote, entry))

    async def _only_there(
        self,
        entry: Entry,
        conversation: Conversation | None,
        session: Session | None,
        remote_changed: bool,  # noqa: FBT001 - what was found, not how to act
        prefer: str,
        *,
        restore: bool,
    ) -> Tally:
        """The file does not have it."""
        # Or was to come over, and is gone from the file since.
        was_there = entry.digest != "" or entry.intent != ""
        if session is None and conversation is None:
            self._state.forget(entry.id)
            return Tally()
        if was_there and not restore and not (remote_changed and prefer == "mesh"):
            if remote_changed and not prefer and entry.level_time:
                raise LeftAloneError(f"{BOTH_CHANGED}: deleted in the file, changed in the mesh")
            await self._take_away(entry, conversation, session)
            return Tally(deleted=1)
        if session is None:
            raise LeftAloneError("the mesh has its conversation without its session, and the file has neither")
        messages = await self._mesh.messages(conversation.id) if conversation else []
        return await self._pull(None, RemoteSession(session, conversation or Conversation(), messages), entry)

    @staticmethod
    def _goes_on(local: LocalSession, entry: Entry) -> bool:
        """Whether the messages that both sides had are still the first ones."""
        return messages_digest(local.messages[: entry.messages]) == entry.messages_digest

    @staticmethod
    def _local_changed(local: LocalSession | None, entry: Entry) -> bool:
        if local is None:
            return entry.digest != ""
        return local.digest != entry.digest or local.last_line != entry.last_line

    @staticmethod
    def _is_ours_cut_off(entry: Entry, local: LocalSession, remote: RemoteSession, written: list[GooseMessage]) -> bool:
        """Whether the mesh's side is what a push of ours left, and nothing else."""
        plan = entry.planned()
        if not plan or len(written) < plan["keep"] or written != local.messages[: len(written)]:
            return False
        if not entry.level_time:
            return remote.conversation.metadata.get(SESSION_KEY) == entry.id
        # The session's own fields are either as they were or as they were to become; its sums come after them.
        return remote.session.etag == entry.session_etag or plan["extra"] == _sha256(remote.session.extra_json)

    # -- the file's side goes to the mesh

    async def _push(
        self, local: LocalSession, entry: Entry, remote: RemoteSession | None, keep: int | None = None
    ) -> Tally:
        """Bring the mesh to what the file has; of its messages the first `keep` are known to be the same."""
        messages = _read(local)
        there = remote.conversation if remote else Conversation()
        drop = False
        if keep is None:
            keep = _common(remote.written(), local.messages) if remote else 0
            drop = remote is not None and keep < len(remote.messages)
        entry.plan(keep, _sha256(extra_of_row(local.row)))
        self._state.keep(entry)
        last, etag = int(there.last_sequence), there.etag
        if not there.id:
            if not await self._create(local, entry):
                # There was something of that id: judge by its content.
                return await self._level_found(local, entry)
            last, etag = 0, "1"
        elif remote is not None and drop:
            after = int(remote.messages[keep - 1].sequence) if keep else 0
            etag = await self._mesh.truncate(entry.conversation_id, after, etag)
        tally = Tally(pushed_messages=len(messages) - keep)
        if keep < len(messages):
            last, etag = await self._mesh.append(entry.conversation_id, last, messages[keep:])
        session = await self._push_session(local, entry, remote.session if remote and remote.session.id else None)
        fresh = await self._pushed_lines(local, entry, session)
        tally.pushed_lines = len(fresh)
        session = await self._push_usage(local, session, fresh)
        self._level_at(entry, local, etag, session.etag, last)
        return tally

    async def _create(self, local: LocalSession, entry: Entry) -> bool:
        """Create the conversation; False if there is one of its id."""
        base = entry.session_id
        metadata = {SESSION_KEY: entry.id[:1024], MIGRATION_KEY: self._state.nonce}
        for life in range(1, _LIVES + 1):
            name = base if life == 1 else f"{base[:60]}.{life}"
            created = await self._mesh.create_conversation(name, fields_of_row(local.row).name, metadata)
            if created or await self._mesh.conversation(name) is not None:
                entry.conversation_id = name
                self._state.keep(entry)
                return created
        raise LeftAloneError(f"{base} and its followers were deleted less than seven days ago; try again later")

    async def _level_found(self, local: LocalSession, entry: Entry) -> Tally:
        conversation = await self._mesh.conversation(entry.conversation_id)
        session = await self._mesh.session(entry.session_id)
        if conversation is None:
            raise LeftAloneError("its conversation was deleted while it was looked at")
        messages = await self._mesh.messages(conversation.id)
        remote = RemoteSession(session or Session(), conversation, messages)
        written = remote.written()
        if session is not None and written == local.messages and not same_session(row_of(session), local.row):
            return await self._lines_alone(local, remote, entry)
        mine = conversation.metadata.get(SESSION_KEY) == entry.id
        if not mine or written != local.messages[: len(written)]:
            raise LeftAloneError("the mesh has another conversation of this id")
        return await self._push(local, entry, remote)

    async def _push_session(self, local: LocalSession, entry: Entry, there: Session | None) -> Session:
        fields, extra = fields_of_row(local.row), extra_of_row(local.row)
        if there is None:
            created = await self._mesh.create_session(
                agent_api.CreateSessionRequest(
                    session_id=entry.session_id,
                    name=fields.name,
                    working_dir=fields.working_dir,
                    session_type=fields.session_type,
                    conversation_id=entry.conversation_id,
                    extra_json=extra,
                    metadata={MIGRATION_KEY: self._state.nonce},
                )
            )
            # One of that id may be there: our own, if the process was cut off.
            there = created or await self._mesh.session(entry.session_id)
            if there is None:
                raise LeftAloneError("its session was deleted while it was looked at")
            if created is not None:
                return created
            if there.metadata.get(MIGRATION_KEY) != self._state.nonce:
                raise LeftAloneError("the mesh has another session of this id")
        now = Fields.of(there)
        same_fields = (now.name, now.working_dir, now.session_type) == (
            fields.name,
            fields.working_dir,
            fields.session_type,
        )
        if same_fields and there.extra_json == extra and there.conversation_id == entry.conversation_id:
            return there
        return await self._mesh.update_session(
            agent_api.UpdateSessionRequest(
                session_id=there.id,
                etag=there.etag,
                name=fields.name,
                working_dir=fields.working_dir,
                session_type=fields.session_type,
                conversation_id=entry.conversation_id,
                extra_json=extra,
            )
        )

    async def _pushed_lines(self, local: LocalSession, entry: Entry, session: Session) -> list[UsageEntry]:
        """The lines that the mesh lacks."""
        known = max(int(session.usage_source_id), entry.last_line)
        fresh = [line for line in local.ledger if line["id"] > known]
        if fresh and entry.level_time:
            # Lines that a pull has written into the file, and was killed before it noted that, are the mesh's own.
            own = Counter(_line_key(ledger_line(one)) for one in await self._own_lines(entry))
            fresh = [line for line in fresh if not _take(own, _line_key(line))]
        return [usage_entry(line) for line in fresh]

    async def _own_lines(self, entry: Entry) -> list[UsageEntry]:
        """Lines that turns in the mesh have made since the sides were last level, oldest first."""
        since = datetime.fromtimestamp(entry.level_time, UTC) - timedelta(days=1) if entry.level_time else None
        now = datetime.now(UTC)
        found = [one async for one in self._mesh.lines(since or now, now, entry.session_id)]
        return [one for one in reversed(found) if not one.source_id]

    async def _push_usage(self, local: LocalSession, session: Session, fresh: list[UsageEntry]) -> Session:
        wanted, there = fields_of_row(local.row), Fields.of(session)
        if not fresh and (wanted.accumulated_usage, wanted.last_usage) == (there.accumulated_usage, there.last_usage):
            return session
        sums = UsageTotals()
        sums.CopyFrom(wanted.accumulated_usage)
        sums.model_calls = len(local.ledger)
        return await self._mesh.import_usage(session, fresh, sums, wanted.last_usage)

    # -- the mesh's side goes to the file

    async def _pull(self, local: LocalSession | None, remote: RemoteSession, entry: Entry) -> Tally:
        written = remote.written()
        keep = _common(written, local.messages) if local else 0
        own = await self._own_lines(entry)
        lines = _missing(own, local.ledger if local else [])
        try:
            now = self._database.write(
                entry.id,
                local.digest if local else "",
                row=row_of(remote.session) | {"id": entry.id},
                keep=keep,
                messages=written[keep:],
                lines=lines,
            )
        except ChangedMeanwhileError:
            raise LeftAloneError(f"{BOTH_CHANGED}, just now") from None
        tally = Tally(pulled_messages=len(written) - keep, pulled_lines=len(lines))
        self._level_at(
            entry, now, remote.conversation.etag, remote.session.etag, int(remote.conversation.last_sequence)
        )
        return tally

    async def _lines_alone(self, local: LocalSession, remote: RemoteSession, entry: Entry) -> Tally:
        """Messages and session are the same: only lines may be missing, on either side."""
        tally = Tally()
        fresh = await self._pushed_lines(local, entry, remote.session)
        tally.pushed_lines = len(fresh)
        session = await self._push_usage(local, remote.session, fresh) if fresh else remote.session
        lines = _missing(await self._own_lines(entry), local.ledger)
        if lines:
            try:
                local = self._database.write(
                    entry.id, local.digest, row=local.row, keep=len(local.rows), messages=[], lines=lines
                )
            except ChangedMeanwhileError:
                raise LeftAloneError(f"{BOTH_CHANGED}, just now") from None
            tally.pulled_lines = len(lines)
        self._level_at(entry, local, remote.conversation.etag, session.etag, int(remote.conversation.last_sequence))
        return tally

    # -- one side is gone

    async def _take_away(self, entry: Entry, conversation: Conversation | None, session: Session | None) -> None:
        if conversation is not None:
            await self._mesh.delete_conversation(conversation.id, conversation.etag)
        if session is not None:
            await self._mesh.delete_session(session.id, session.etag)
        self._state.forget(entry.id)

    async def take_back(self, entry: Entry) -> None:
        """Take away from the mesh what was brought there; what was changed there since comes to the file first.

        Raises LeftAloneError.
        """
        conversation = await self._mesh.conversation(entry.conversation_id)
        session = await self._mesh.session(entry.session_id)
        if session is not None and session.metadata.get(MIGRATION_KEY) != self._state.nonce:
            # It began in the mesh, and stays there.
            self._state.forget(entry.id)
            return
        if conversation is not None and conversation.metadata.get(MIGRATION_KEY) != self._state.nonce:
            conversation = None
        # One that is half gone was taken back before, by a process that was killed.
        if (
            entry.level_time
            and conversation is not None
            and session is not None
            and self._changed(entry, conversation, session)
        ):
            await self.level(entry.id, restore=True)
            entry = self._state.entry(entry.id) or entry
            conversation = await self._mesh.conversation(entry.conversation_id)
            session = await self._mesh.session(entry.session_id)
        await self._take_away(entry, conversation, session)

    @staticmethod
    def _changed(entry: Entry, conversation: Conversation, session: Session) -> bool:
        return (conversation.etag, session.etag) != (entry.conversation_etag, entry.session_etag)

    async def restore_ledger(self, identity: str) -> None:
        """Write the mesh's lines into the file where its own are missing or are other ones: lines never change.

        Raises LeftAloneError.
        """
        entry, local = self._state.entry(identity), self._database.session(identity)
        if entry is None or local is None:
            return
        begin, now = self._state.first_line, datetime.now(UTC)
        there = {
            int(one.source_id): one
            for day in await self._mesh.days_with_usage(begin, now)
            async for one in self._mesh.lines(day, day, entry.session_id)
            if one.source_id
        }
        mine = {int(line["id"]): line for line in local.ledger}
        wrong = [
            ledger_line(one) | {"id": number}
            for number, one in sorted(there.items())
            if number not in mine or ledger_line(usage_entry(mine[number])) != ledger_line(one)
        ]
        try:
            now_local = self._database.write(
                identity, local.digest, row=local.row, keep=len(local.rows), messages=[], lines=wrong
            )
        except ChangedMeanwhileError:
            raise LeftAloneError(f"{BOTH_CHANGED}, just now") from None
        entry.quick, entry.last_line = now_local.quick, now_local.last_line
        self._state.keep(entry)

    def _level_at(self, entry: Entry, local: LocalSession, etag: str, session_etag: str, last: int) -> None:
        entry.digest = local.digest
        entry.messages = len(local.messages)
        entry.messages_digest = messages_digest(local.messages)
        entry.last_line = local.last_line
        entry.quick = local.quick
        entry.conversation_etag, entry.session_etag, entry.last_sequence = etag, session_etag, last
        self._state.keep_level(entry)


def _read(local: LocalSession) -> list[Message]:
    taken: set[str] = set()
    messages = []
    for number, one in zip(local.rows, local.messages, strict=True):
        message = read_message(one, taken=taken)
        if (size := message.ByteSize()) > MAX_MESSAGE_BYTES:
            raise LeftAloneError(
                f"its message in row {number} is {size:,} bytes; the mesh takes at most {MAX_MESSAGE_BYTES:,}"
            )
        messages.append(message)
    return messages


def _both(local: LocalSession, written: list[GooseMessage], remote: RemoteSession) -> str:
    common = _common(written, local.messages)
    columns = same_session(row_of(remote.session), local.row)
    counts = f"{len(local.messages)} messages in the file, {len(written)} in the mesh, {common} of them the same"
    return f"{BOTH_CHANGED}: {counts}" + (f"; they differ in {', '.join(columns)}" if columns else "")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many at the beginning are the same."""
    for number, (mine, yours) in enumerate(zip(one, other, strict=False)):
        if mine != yours:
            return number
    return min(len(one), len(other))


def _line_key(line: Row) -> tuple[Any, ...]:
    names = ("created_timestamp", "model", "input_tokens", "output_tokens", "total_tokens", "cost", "is_compaction")
    return tuple(line.get(name) or None for name in names)


def _take(counter: "Counter[tuple[Any, ...]]", key: tuple[Any, ...]) -> bool:
    if counter[key] <= 0:
        return False
    counter[key] -= 1
    return True


def _missing(own: Sequence[UsageEntry], ledger: Sequence[Row]) -> list[Row]:
    """The mesh's own lines that the file lacks, as rows."""
    there = Counter(_line_key(line) for line in ledger)
    return [line for line in _rows(own) if not _take(there, _line_key(line))]


def _rows(own: Sequence[UsageEntry]) -> Iterator[Row]:
    return (ledger_line(entry) for entry in own)
