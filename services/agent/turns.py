"""Turns in the state store: begun, taken up, decided on, ended. What happens in between is running.py's."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.agent.state.v1 import document_pb2
from gaggle.agent.v1 import agent_service_pb2 as api
from gaggle.agent.v1 import event_pb2, session_pb2, turn_pb2
from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.v1 import message_pb2
from services.agent import journal, usage
from services.agent.models.catalog import Catalog
from services.agent.peers import Conversations
from services.agent.sessions import Sessions, undeleted
from services.agent.settings import AgentSettings
from services.agent.store import (
    AgentStore,
    Transaction,
    checkpoint_key,
    day_key,
    index_key,
    lane_key,
    log_key,
    now,
    session_key,
    timestamp,
    today,
    turn_key,
    watchlist_key,
)
from services.runtime import paging, topics
from services.runtime.errors import (
    ConflictError,
    FailedPreconditionError,
    GaggleError,
    InvalidArgumentError,
    NotFoundError,
    TooManyRequestsError,
)
from services.runtime.ids import new_id
from services.runtime.requests import body_hash, first_answer, new_row, row_key
from services.runtime.state import Put, Remove

QUEUE = 15
RECENT = 64
ENDED = frozenset(
    {
        turn_pb2.TURN_STATUS_COMPLETED,
        turn_pb2.TURN_STATUS_FAILED,
        turn_pb2.TURN_STATUS_CANCELLED,
        turn_pb2.TURN_STATUS_INTERRUPTED,
    }
)
DAY_SECONDS = 86_400
# A turn may wait for a person for thirty days before the time to keep it begins.
LONGEST_WAIT_DAYS = 31
_SERVICE = "gaggle.agent.v1.AgentService"
_WAITING = turn_pb2.TOOL_CALL_STATUS_WAITING_APPROVAL


class LostError(Exception):
    """Another process has taken the turn over, or it has ended: this one stops."""


@dataclass(slots=True)
class Begun:
    """What became of a request to chat."""

    turn: document_pb2.TurnDocument
    new: bool
    interrupts: str = ""
    """The turn that has to be ended first."""


@dataclass(frozen=True, slots=True)
class Once:
    """A request's place in the ledger, where it brought an id: it has one effect, and is answered again."""

    key: str = ""
    digest: bytes = b""

    @classmethod
    def of(cls, user_id: str, method: str, request: Any) -> "Once":
        """Name a request of AgentService."""
        if not request.request_id:
            return cls()
        return cls(row_key(user_id, request.request_id), body_hash(f"/{_SERVICE}/{method}", request))

    @property
    def keys(self) -> list[str]:
        """What to read for it."""
        return [self.key] if self.key else []

    def had(self, transaction: Transaction) -> bool:
        """Tell whether it has had its effect. Raises InvalidArgumentError, REQUEST_ID_REUSED."""
        return bool(self.key) and first_answer(transaction.item(self.key), self.digest) is not None

    def note(self, transaction: Transaction) -> None:
        """Plan the row that says that it has."""
        if self.key:
            transaction.puts.append(new_row(self.key, self.digest, b""))


def digest(user_id: str, turn_id: str) -> str:
    """Name a turn in other services' requests, in at most 24 characters; two users may have turns of one id."""
    return hashlib.blake2b(f"{user_id}\0{turn_id}".encode(), digest_size=12).hexdigest()


class Turns:
    """Changes turns, each change one commit."""

    def __init__(
        self,
        store: AgentStore,
        sessions: Sessions,
        conversations: Conversations,
        catalog: Catalog,
        settings: AgentSettings,
        holder: str,
    ) -> None:
        """`holder` names this process's place, which the one that comes after it takes again."""
        self.store = store
        self._holder = holder
        self._process = new_id()
        self._sessions = sessions
        self._conversations = conversations
        self._catalog = catalog
        self._settings = settings
        self._kept_seconds = (settings.turn_retention_days + LONGEST_WAIT_DAYS) * DAY_SECONDS

    # -- beginning

    async def find_begun(self, user_id: str, request: api.ChatRequest) -> document_pb2.TurnDocument | None:
        """Find the turn that this very request began. Raises InvalidArgumentError, REQUEST_ID_REUSED; NotFoundError."""
        if not request.request_id:
            return None
        turn = await self.store.turn(user_id, request.request_id)
        if turn is None:
            if request.after_position:
                raise NotFoundError("turn", request.request_id)
            return None
        if turn.body_hash != request_hash(request):
            raise reused()
        return turn

    async def resolve(self, user_id: str, request: api.ChatRequest) -> tuple[api.ChatRequest, bool]:
        """Fill in what a request leaves open from its session, and make sure of its conversation.

        Gives also whether the session is to remember the conversation. Raises NotFoundError, FailedPreconditionError.
        """
        resolved = api.ChatRequest()
        resolved.CopyFrom(request)
        resolved.after_position = 0
        resolved.request_id = request.request_id or new_id()
        remember = False
        if request.session_id:
            session = await self._sessions.get(user_id, request.session_id)
            if session.status == session_pb2.SESSION_STATUS_ENDED:
                raise FailedPreconditionError("the session has ended", metadata={"state": "ended"})
            fill_in(resolved, session)
            remember = not session.conversation_id
        model = self._catalog.find(resolved.model)
        resolved.model = model.name
        options = resolved.options
        options.max_steps = options.max_steps or self._settings.max_steps
        options.timeout_seconds = options.timeout_seconds or self._settings.turn_timeout_seconds
        options.approval.expire_seconds = options.approval.expire_seconds or self._settings.approval_expire_seconds
        if request.conversation_id:
            await self._conversations.exists(user_id, request.conversation_id)
        elif resolved.conversation_id:
            try:
                await self._conversations.exists(user_id, resolved.conversation_id)
            except GaggleError as error:
                if error.reason != error_reason_pb2.ERROR_REASON_NOT_FOUND:
                    raise
                await self._conversations.create(user_id, resolved.conversation_id, "")
        else:
            key = f"turn-{digest(user_id, resolved.request_id)}"
            resolved.conversation_id = await self._conversations.create(user_id, "", key)
        return resolved, remember

    async def begin(self, user_id: str, asked: api.ChatRequest, resolved: api.ChatRequest, *, remember: bool) -> Begun:
        """Take the conversation's lane, or what its policy gives instead.

        Raises ConflictError (TURN_IN_PROGRESS), TooManyRequestsError (the queue is full), InvalidArgumentError.
        """
        turn_id, conversation_id = resolved.request_id, resolved.conversation_id
        key, lane = turn_key(user_id, turn_id), lane_key(user_id, conversation_id)
        watched, day = watchlist_key(user_id, turn_id), today()
        session = session_key(user_id, resolved.session_id) if remember else ""
        hashed = request_hash(asked)

        async def apply(transaction: Transaction) -> Begun:
            there = transaction.read(key, document_pb2.TurnDocument)
            if there is not None:
                if there.body_hash != hashed:
                    raise reused()
                return Begun(there, new=False)
            turn = document_pb2.TurnDocument(
                id=turn_id, user_id=user_id, body_hash=hashed, request=resolved, day=day, create_time=now()
            )
            turn.update_time.CopyFrom(turn.create_time)
            document = transaction.read(lane, document_pb2.Lane) or document_pb2.Lane()
            interrupts = self._enter(document, turn)
            document.recent.append(turn_id)
            del document.recent[:-RECENT]
            transaction.put(lane, document)
            transaction.put(key, turn)
            watch(transaction, watched, user_id, turn_id)
            self._sessions.note_turn(user_id, transaction, day, turn_id)
            await self._sessions.enter(user_id, transaction, day=day)
            if session and (told := undeleted(transaction.read(session, document_pb2.SessionDocument))) is not None:
                told.session.conversation_id = conversation_id
                payload = event_pb2.SessionUpdatedEvent(changed=["conversation"])
                self._sessions.write(user_id, transaction, told, {topics.SESSION_UPDATED: payload})
            if turn.attempt:
                transaction.puts.append(self.checkpoint(turn))
            return Begun(turn, new=True, interrupts=interrupts)

        keys = [key, lane, watched, day_key(user_id, day), index_key(user_id), *([session] if session else [])]
        return await self.store.change(keys, apply)

    @staticmethod
    def _enter(lane: document_pb2.Lane, turn: document_pb2.TurnDocument) -> str:
        """Give the turn its place; gives the turn that it interrupts."""
        if not lane.active_turn_id:
            lane.active_turn_id = turn.id
            _take_up(turn)
            return ""
        if lane.policy not in {api.TURN_POLICY_QUEUE, api.TURN_POLICY_INTERRUPT}:
            raise ConflictError(
                "a turn of this conversation runs",
                reason=error_reason_pb2.ERROR_REASON_TURN_IN_PROGRESS,
                metadata={"turn_id": lane.active_turn_id},
            )
        if len(lane.queue) >= QUEUE:
            raise TooManyRequestsError(QUEUE, retry_after_seconds=5)
        turn.status = turn_pb2.TURN_STATUS_QUEUED
        if lane.policy == api.TURN_POLICY_QUEUE:
            lane.queue.append(turn.id)
            return ""
        lane.queue.insert(0, turn.id)
        return str(lane.active_turn_id)

    def checkpoint(self, turn: document_pb2.TurnDocument, events: list[turn_pb2.TurnEvent] | None = None) -> Put:
        """Write that the turn's process lives, and what its step has said so far."""
        document = document_pb2.Checkpoint(holder=self._holder, process=self._process, events=events or ())
        ends = now().ToDatetime(UTC) + timedelta(seconds=self._settings.lease_seconds)
        document.expire_time.CopyFrom(timestamp(ends))
        key = checkpoint_key(turn.user_id, turn.id, turn.attempt)
        return Put(key, document.SerializeToString(), ttl_seconds=self._kept_seconds)

    def is_dead(self, checkpoint: document_pb2.Checkpoint) -> bool:
        """Tell whether nobody works on a turn any more: its lease is over, or this process took that one's place."""
        ended = checkpoint.expire_time.ToDatetime(UTC) < now().ToDatetime(UTC)
        return ended or (checkpoint.holder == self._holder and checkpoint.process != self._process)

    # -- taking up

    async def take_up(
        self,
        user_id: str,
        turn_id: str,
        *,
        after_attempt: int | None = None,
        ending: "turn_pb2.TurnStatus.ValueType" = turn_pb2.TURN_STATUS_UNSPECIFIED,
        partial_text: str = "",
    ) -> document_pb2.TurnDocument | None:
        """Make this process the one that works on a turn; None if there is nothing to do.

        With `after_attempt`: only if nobody else did since. With `ending`: to end it so.
        """
        found = await self.store.turn(user_id, turn_id)
        if found is None:
            return None
        key, watched = turn_key(user_id, turn_id), watchlist_key(user_id, turn_id)
        lane = lane_key(user_id, found.request.conversation_id)

        def apply(transaction: Transaction) -> document_pb2.TurnDocument | None:
            turn = transaction.read(key, document_pb2.TurnDocument)
            document = transaction.read(lane, document_pb2.Lane)
            if turn is None or turn.status in ENDED or document is None:
                unwatch(transaction, watched, user_id, turn_id)
                return None
            if turn.status == turn_pb2.TURN_STATUS_QUEUED and document.active_turn_id != turn_id:
                if ending:
                    document.queue.remove(turn_id)
                    transaction.put(lane, document)
                    self.write_end(transaction, turn, ending, [])
                return None
            other = after_attempt is not None and turn.attempt != after_attempt
            waits = turn.status == turn_pb2.TURN_STATUS_WAITING_APPROVAL and not ending
            if other or waits or (turn.ending and ending):
                return None
            turn.ending = ending or turn.ending
            turn.partial_text = partial_text or turn.partial_text
            _resume_clock(turn)
            _take_up(turn)
            watch(transaction, watched, user_id, turn_id)
            transaction.put(key, turn)
            transaction.puts.append(self.checkpoint(turn))
            return turn

        return await self.store.change([key, lane, watched], apply, confirm=[key, lane])

    async def decide(
        self,
        user_id: str,
        turn_id: str,
        decision: Callable[[document_pb2.TurnDocument], bool],
        once: Once | None = None,
    ) -> tuple[document_pb2.TurnDocument, bool]:
        """Decide on calls that wait; gives the turn, and whether this process has to go on with it.

        `decision` changes the turn's calls and says whether it did; a request that had its effect `once` is not judged
        again. Raises NotFoundError, and what `decision` raises.
        """
        once = once or Once()
        key, watched = turn_key(user_id, turn_id), watchlist_key(user_id, turn_id)

        def apply(transaction: Transaction) -> tuple[document_pb2.TurnDocument, bool]:
            turn = transaction.read(key, document_pb2.TurnDocument)
            if turn is None:
                raise NotFoundError("turn", turn_id)
            if once.had(transaction):
                return turn, False
            changed = decision(turn)
            once.note(transaction)
            if not changed:
                return turn, False
            turn.update_time.CopyFrom(now())
            goes_on = turn.status == turn_pb2.TURN_STATUS_WAITING_APPROVAL and not any(
                call.status == _WAITING for call in turn.calls
            )
            if goes_on:
                _resume_clock(turn)
                _take_up(turn)
                watch(transaction, watched, user_id, turn_id)
                transaction.puts.append(self.checkpoint(turn))
            transaction.put(key, turn)
            return turn, goes_on

        return await self.store.change([key, watched, *once.keys], apply, confirm=[key])

    async def claim(self, once: Once) -> None:
        """Note a request whose effect is the same however often it is had. Raises InvalidArgumentError if reused."""

        def apply(transaction: Transaction) -> None:
            if not once.had(transaction):
                once.note(transaction)

        if once.key:
            await self.store.change(once.keys, apply)

    # -- ending

    async def finish(
        self,
        turn: document_pb2.TurnDocument,
        status: "turn_pb2.TurnStatus.ValueType",
        prepare: Callable[[document_pb2.TurnDocument], list[turn_pb2.TurnEvent]],
    ) -> tuple[document_pb2.TurnDocument, str]:
        """End a turn, count it in its session, and hand its lane on; gives also the turn whose time has come.

        `prepare` is given the turn as it lies in the store, and gives the events that its log still lacks. Raises
        LostError.
        """
        user_id = turn.user_id
        key, watched = turn_key(user_id, turn.id), watchlist_key(user_id, turn.id)
        lane = lane_key(user_id, turn.request.conversation_id)
        session = session_key(user_id, turn.request.session_id) if turn.request.session_id else ""

        def apply(transaction: Transaction) -> tuple[document_pb2.TurnDocument, str]:
            current = mine(transaction, key, turn.attempt)
            events = prepare(current)
            self.write_end(transaction, current, status, events)
            document = transaction.read(lane, document_pb2.Lane)
            following = ""
            if document is not None and document.active_turn_id == turn.id:
                following = document.queue.pop(0) if document.queue else ""
                document.active_turn_id = following
                transaction.put(lane, document)
            if session and (counted := undeleted(transaction.read(session, document_pb2.SessionDocument))) is not None:
                usage.add(counted.session.accumulated_usage, current.usage)
                counted.session.last_usage.CopyFrom(current.usage)
                counted.session.turn_count += 1
                payload = event_pb2.SessionUpdatedEvent(changed=["usage"], turn_id=turn.id)
                self._sessions.write(user_id, transaction, counted, {topics.SESSION_UPDATED: payload})
            return current, following

        keys = [key, lane, watched, *([session] if session else [])]
        return await self.store.change(keys, apply, confirm=keys)

    def write_end(
        self,
        transaction: Transaction,
        turn: document_pb2.TurnDocument,
        status: "turn_pb2.TurnStatus.ValueType",
        events: list[turn_pb2.TurnEvent],
    ) -> None:
        """Plan a turn's end: its state, its last event, and that it runs out in time."""
        turn.status = status
        turn.end_time.CopyFrom(now())
        turn.update_time.CopyFrom(turn.end_time)
        turn.ClearField("pending")
        turn.ClearField("ending")
        turn.ClearField("wait_time")
        if not events:
            position = max(turn.position, journal.start_position(max(turn.attempt, 1))) + 1
            events = [turn_pb2.TurnEvent(position=position, ended=ended_event(turn))]
        self.write_log(transaction, turn, events)
        kept = self._settings.turn_retention_days * DAY_SECONDS
        transaction.put(turn_key(turn.user_id, turn.id), turn, ttl_seconds=kept)
        transaction.puts.append(Remove(checkpoint_key(turn.user_id, turn.id, turn.attempt)))
        unwatch(transaction, watchlist_key(turn.user_id, turn.id), turn.user_id, turn.id)

    def write_log(
        self, transaction: Transaction, turn: document_pb2.TurnDocument, events: list[turn_pb2.TurnEvent]
    ) -> None:
        """Plan a row of the log."""
        if not events:
            return
        row = document_pb2.TurnLog(events=events).SerializeToString()
        key = log_key(turn.user_id, turn.id, turn.log_rows)
        transaction.puts.append(Put(key, row, create=True, ttl_seconds=self._kept_seconds))
        turn.log_rows += 1
        turn.position = events[-1].position

    # -- policy and reading

    async def set_policy(self, user_id: str, request: api.SetTurnPolicyRequest) -> None:
        """Say what becomes of a second turn. Raises NotFoundError."""
        once = Once.of(user_id, "SetTurnPolicy", request)
        key = lane_key(user_id, request.conversation_id)

        async def apply(transaction: Transaction) -> bool:
            # A repetition must not undo what was said since, nor miss a conversation that is gone by now.
            if once.had(transaction):
                return False
            await self._conversations.exists(user_id, request.conversation_id)
            once.note(transaction)
            lane = transaction.read(key, document_pb2.Lane) or document_pb2.Lane()
            if lane.policy != request.policy:
                lane.policy = request.policy
                transaction.put(key, lane)
            return True

        _: bool = await self.store.change([key, *once.keys], apply)

    async def get(self, user_id: str, turn_id: str) -> document_pb2.TurnDocument:
        """Read a turn. Raises NotFoundError."""
        turn = await self.store.turn(user_id, turn_id)
        if turn is None:
            raise NotFoundError("turn", turn_id)
        return turn

    async def page(self, user_id: str, request: api.ListTurnsRequest) -> api.ListTurnsResponse:
        """List a conversation's newest turns. Raises NotFoundError if there is no such conversation."""
        size = paging.page_size(request.page_size, default=20, most=RECENT)
        scope = ("ListTurns", user_id, request.conversation_id)
        cursor = paging.decode(request.page_token, *scope)
        lane = await self.store.read(lane_key(user_id, request.conversation_id), document_pb2.Lane)
        if lane is None:
            await self._conversations.exists(user_id, request.conversation_id)
            return api.ListTurnsResponse()
        ids = list(reversed(lane.recent))
        start = ids.index(str(cursor["t"])) + 1 if cursor and cursor["t"] in ids else 0
        wanted = ids[start : start + size]
        keys = [turn_key(user_id, one) for one in wanted]
        found = await self.store.state.get_many(keys, confirm=keys)
        turns = [document_pb2.TurnDocument.FromString(found[key].value) for key in keys if key in found]
        token = paging.encode({"t": wanted[-1]}, *scope) if start + size < len(ids) else ""
        return api.ListTurnsResponse(turns=[describe(one) for one in turns], next_page_token=token)


def mine(transaction: Transaction, key: str, attempt: int) -> document_pb2.TurnDocument:
    """Read a turn that this process works on. Raises LostError if it does no longer."""
    turn = transaction.read(key, document_pb2.TurnDocument)
    if turn is None or turn.attempt != attempt or turn.status != turn_pb2.TURN_STATUS_RUNNING:
        raise LostError
    return turn


def _take_up(turn: document_pb2.TurnDocument) -> None:
    turn.status = turn_pb2.TURN_STATUS_RUNNING
    turn.attempt += 1
    turn.fence = 0
    turn.update_time.CopyFrom(now())
    if not turn.HasField("deadline"):
        ends = turn.update_time.ToDatetime(UTC) + timedelta(seconds=turn.request.options.timeout_seconds)
        turn.deadline.CopyFrom(timestamp(ends))


def _resume_clock(turn: document_pb2.TurnDocument) -> None:
    """The time that a turn waited for a person is not the turn's."""
    if turn.HasField("wait_time"):
        waited = now().ToDatetime(UTC) - turn.wait_time.ToDatetime(UTC)
        turn.deadline.CopyFrom(timestamp(turn.deadline.ToDatetime(UTC) + waited))
        turn.ClearField("wait_time")


def watch(transaction: Transaction, key: str, user_id: str, turn_id: str, due: Timestamp | None = None) -> None:
    """Plan that a turn is looked at; with `due`: not before then."""
    document = transaction.read(key, document_pb2.Watchlist) or document_pb2.Watchlist()
    entry = next((one for one in document.turns if (one.user_id, one.turn_id) == (user_id, turn_id)), None)
    if entry is not None and not entry.HasField("due_time") and due is None:
        return
    if entry is None:
        entry = document.turns.add(user_id=user_id, turn_id=turn_id)
    entry.ClearField("due_time")
    if due is not None:
        entry.due_time.CopyFrom(due)
    transaction.put(key, document)


def unwatch(transaction: Transaction, key: str, user_id: str, turn_id: str) -> None:
    """Plan that a turn is no longer looked at."""
    document = transaction.read(key, document_pb2.Watchlist)
    if document is None:
        return
    kept = [one for one in document.turns if (one.user_id, one.turn_id) != (user_id, turn_id)]
    if len(kept) == len(document.turns):
        return
    if kept:
        transaction.put(key, document_pb2.Watchlist(turns=kept))
    else:
        transaction.remove(key)


def fill_in(request: api.ChatRequest, session: session_pb2.Session) -> None:
    """Take from a session what a request leaves open."""
    settings, options = session.settings, request.options
    request.conversation_id = request.conversation_id or session.conversation_id
    request.model = request.model or settings.model
    if not request.extensions:
        request.extensions.extend(settings.extensions)
    options.system_prompt = options.system_prompt or settings.system_prompt
    if not options.HasField("temperature") and settings.HasField("temperature"):
        options.temperature = settings.temperature
    options.max_steps = options.max_steps or settings.max_steps
    if options.approval.mode == session_pb2.APPROVAL_MODE_UNSPECIFIED and not options.approval.tools:
        options.approval.mode = settings.approval.mode
        options.approval.tools.extend(settings.approval.tools)
    options.approval.expire_seconds = options.approval.expire_seconds or settings.approval.expire_seconds
    if session.working_dir:
        note = f"The working directory is {session.working_dir}."
        options.system_prompt = f"{options.system_prompt}\n\n{note}" if options.system_prompt else note


def request_hash(request: api.ChatRequest) -> bytes:
    """Hash a request without its place in the stream."""
    body = api.ChatRequest()
    body.CopyFrom(request)
    body.after_position = 0
    return body_hash(f"/{_SERVICE}/Chat", body)


def reused() -> GaggleError:
    """Say that a request_id was used for something else."""
    return InvalidArgumentError(
        {"request_id": "was used with another request; take a fresh one"},
        reason=error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED,
    )


def ended_event(turn: document_pb2.TurnDocument, *, unsaved: bool = False) -> turn_pb2.TurnEnded:
    """Write the last event of a turn that has its final state."""
    ended = turn_pb2.TurnEnded(
        status=turn.status,
        usage=turn.usage,
        unsaved=unsaved,
        turn_id=turn.id,
        conversation_id=turn.request.conversation_id,
    )
    if turn.HasField("answer"):
        ended.message.CopyFrom(turn.answer)
    if turn.HasField("error"):
        ended.error.CopyFrom(turn.error)
    return ended


def describe(turn: document_pb2.TurnDocument, partial: str = "") -> turn_pb2.Turn:
    """Give a turn as callers see it; `partial`: what an unfinished step has said."""
    told = turn_pb2.Turn(
        id=turn.id,
        conversation_id=turn.request.conversation_id,
        session_id=turn.request.session_id,
        status=turn.status,
        model=turn.request.model,
        steps=turn.steps,
        usage=turn.usage,
        first_sequence=turn.first_sequence,
        last_sequence=turn.last_sequence,
        position=turn.position,
        create_time=turn.create_time,
        update_time=turn.update_time,
        attempts=turn.attempt,
        text=partial or text_of(turn.answer),
    )
    if turn.HasField("end_time"):
        told.end_time.CopyFrom(turn.end_time)
    if turn.HasField("error"):
        told.error.CopyFrom(turn.error)
    for call in turn.calls:
        shown = told.tool_calls.add(id=call.id, name=call.name, arguments_json=call.arguments_json, status=call.status)
        if call.status == _WAITING:
            shown.expire_time.CopyFrom(call.expire_time)
    return told


def text_of(message: message_pb2.Message) -> str:
    """Give a message's text."""
    return "".join(part.text.text for part in message.content if part.HasField("text"))


def decision_message(call: document_pb2.ToolCallDocument) -> message_pb2.Message:
    """Write down for the conversation what a person, or nobody in time, decided."""
    approved = call.status == turn_pb2.TOOL_CALL_STATUS_APPROVED
    decision = "allow_once" if approved else ("expired" if call.expired else "deny_once")
    data = {"id": call.id, "toolName": call.name, "decision": decision}
    part = message_pb2.ContentPart(
        action_required=message_pb2.ActionRequired(action_type="toolConfirmation", data_json=json.dumps(data))
    )
    return message_pb2.Message(role=message_pb2.ROLE_USER, content=[part], hidden_from_agent=True)
