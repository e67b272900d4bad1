"""One process's work on one turn.

    raise the fence -> save the question -> { context -> model -> save -> tools -> save }* -> end

What a step brings is first recorded in the turn, then appended to the conversation under an id of its own, so that
whoever goes on after a death appends the same once. Appends carry the fence, and changes of the turn are made over its
attempt: a process that lost the turn while it was stalled changes nothing any more, and stops.
"""

import asyncio
import contextlib
import contextvars
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, timedelta
from typing import Any, TypeVar

import jsonschema
import structlog
from google.protobuf import json_format
from google.rpc import code_pb2
from opentelemetry.trace import SpanKind

from gaggle.agent.state.v1 import document_pb2
from gaggle.agent.v1 import event_pb2, session_pb2, turn_pb2
from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.v1 import message_pb2
from services.agent import journal, usage
from services.agent.metrics import AgentMetrics
from services.agent.models.base import CalledTool, Finished, Model, ModelError, Prompt, ThinkingText
from services.agent.models.catalog import Catalog
from services.agent.peers import Conversations, Extensions, is_gone
from services.agent.prompting import (
    argument_fault,
    cut,
    json_text,
    needs_approval,
    prompt_messages,
    token_budget,
)
from services.agent.sessions import Sessions, usage_entry
from services.agent.settings import AgentSettings
from services.agent.store import Transaction, day_key, now, timestamp, today, turn_key, watchlist_key
from services.agent.toolbox import Toolbox, open_toolbox
from services.agent.turns import (
    ENDED,
    LostError,
    Turns,
    decision_message,
    digest,
    ended_event,
    mine,
    watch,
)
from services.runtime import topics
from services.runtime.call import trace_metadata
from services.runtime.errors import ConflictError, DeadlineError, GaggleError, UnavailableError
from services.runtime.events import Change, build_events
from services.runtime.state import CommitFailedError, Put
from services.runtime.telemetry import current_trace, part

MAX_RESULT_BYTES = 256 * 1024
MAX_RESULTS_BYTES = 2 * 1024 * 1024
MAX_MESSAGE_BYTES = 1000 * 1000
_MOST_BACKOFF_SECONDS = 30.0
_SCHEMA_ATTEMPTS = 3
_TOOL_SECONDS = 3600.0
_REASON_PREFIX = "ERROR_REASON_"

_ANSWERED = turn_pb2.TOOL_CALL_STATUS_ANSWERED
_WAITING = turn_pb2.TOOL_CALL_STATUS_WAITING_APPROVAL
_DENIED = turn_pb2.TOOL_CALL_STATUS_DENIED
_APPROVED = turn_pb2.TOOL_CALL_STATUS_APPROVED
_COMPLETED = turn_pb2.TURN_STATUS_COMPLETED
_FAILED = turn_pb2.TURN_STATUS_FAILED

_BUSY = frozenset(
    {error_reason_pb2.ERROR_REASON_CONTENTION, error_reason_pb2.ERROR_REASON_TOO_MANY_REQUESTS},
)

T = TypeVar("T")
_log = structlog.get_logger()


class TurnFailedError(Exception):
    """The turn ends as FAILED."""

    def __init__(self, error: turn_pb2.TurnError) -> None:
        """`error` is what the caller is told."""
        super().__init__(error.message)
        self.error = error


class PausedError(Exception):
    """The turn waits for a person; this process has nothing more to do."""


class Signal:
    """Wakes all who wait. Take `next` before looking at what it tells of: what happens meanwhile is then not missed."""

    def __init__(self) -> None:
        """Nobody waits yet."""
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake them."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    @property
    def next(self) -> asyncio.Event:
        """What will be set from now on."""
        return self._event


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait until it is set, or so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class Parts:
    """What all turns of a process share."""

    def __init__(
        self,
        turns: Turns,
        sessions: Sessions,
        conversations: Conversations,
        extensions: Extensions,
        catalog: Catalog,
        settings: AgentSettings,
        metrics: AgentMetrics,
    ) -> None:
        """Passed on to each turn."""
        self.turns = turns
        self.sessions = sessions
        self.conversations = conversations
        self.extensions = extensions
        self.catalog = catalog
        self.settings = settings
        self.metrics = metrics


class TurnRun:
    """An attempt at a turn, in this process."""

    def __init__(self, parts: Parts, turn: document_pb2.TurnDocument, ended: "Callable[[TurnRun, str], None]") -> None:
        """`ended` is told when this process has nothing more to do, with the turn whose time has come."""
        self._parts = parts
        self._settings = parts.settings
        self._ended = ended
        self.turn = turn
        self.journal = journal.Journal(turn.attempt)
        self.changed = Signal()
        self.over = False
        self.unsaved_answer: message_pb2.Message | None = None
        """A whole answer that could not be saved so far, and has waited for that too long."""

        self._name = digest(turn.user_id, turn.id)
        self._model: Model = parts.catalog.find(turn.request.model)
        self._toolbox: Toolbox | None = None
        self._reading: asyncio.Task[Any] | None = None
        self._responses: dict[str, message_pb2.ToolResponse] = {}
        self._asked: message_pb2.Message | None = None
        self._saved_question = bool(turn.first_sequence)
        self._saved_pending = False
        self._held_events: list[turn_pb2.TurnEvent] = []
        self._committing = asyncio.Lock()
        self._step_text: list[str] = []
        self._following = ""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in a context of its own: the caller's deadline has no say here, only its trace."""
        context = contextvars.Context()
        context.run(current_trace.set, current_trace.get())
        self._task = asyncio.get_running_loop().create_task(self._run(), context=context)

    async def stop(self) -> None:
        """Stop without an end: another process goes on with the turn."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def partial_text(self) -> str:
        """What the unfinished step has said."""
        return "".join(self._step_text)

    async def hand_over(self) -> None:
        """Let the lease run out now, so that others need not wait for that."""
        checkpoint = self._parts.turns.checkpoint(self.turn, self.journal.unsaved())
        document = document_pb2.Checkpoint.FromString(checkpoint.value)
        document.expire_time.CopyFrom(now())
        store = self._parts.turns.store.state
        with contextlib.suppress(GaggleError, CommitFailedError):
            await store.commit([Put(checkpoint.key, document.SerializeToString(), ttl_seconds=86_400)])

    # -- the whole of it

    async def _run(self) -> None:
        turn = self.turn
        if turn.attempt > 1:
            self._emit(restarted=turn_pb2.StepRestarted(reason="taken up again"))
        heart = asyncio.create_task(self._beat(asyncio.current_task()))
        try:
            await self._work_and_end()
        except (LostError, PausedError, asyncio.CancelledError) as stop:
            _log.info("turn_left", turn=turn.id, attempt=turn.attempt, why=type(stop).__name__)
        except GaggleError as error:
            # The store stayed away for longer than this process has patience. Whoever looks at the turn next goes on.
            _log.error("turn_given_up", turn=turn.id, attempt=turn.attempt, error=error.message)
        finally:
            heart.cancel()
            self.over = True
            self.changed.set()
            self._ended(self, self._following)

    async def _work_and_end(self) -> None:
        try:
            await self._work()
        except ConflictError as error:
            raise self._lost(error) from error
        except TurnFailedError as failure:
            await self._fail(failure.error)
        except GaggleError as error:
            if error.reason == error_reason_pb2.ERROR_REASON_STALE_FENCE:
                raise self._lost(error) from error
            if isinstance(error, UnavailableError | DeadlineError):
                raise
            await self._fail(told(error))
        except (LostError, PausedError):
            raise
        except Exception as error:  # noqa: BLE001 - a turn never hangs because of a fault of ours
            _log.exception("turn_failed", turn=self.turn.id)
            reason = error_reason_pb2.ERROR_REASON_INTERNAL
            await self._fail(failure_of(code_pb2.INTERNAL, reason, f"an internal fault: {type(error).__name__}"))

    def _lost(self, error: GaggleError) -> LostError:
        reason = error_reason_pb2.ErrorReason.Name(error.reason).removeprefix(_REASON_PREFIX)
        _log.warning("turn_lost", turn=self.turn.id, attempt=self.turn.attempt, reason=reason)
        return LostError()

    async def _work(self) -> None:
        turn = self.turn
        try:
            seconds = (turn.deadline.ToDatetime(UTC) - now().ToDatetime(UTC)).total_seconds()
            limit = None if turn.ending else seconds
            async with asyncio.timeout(limit):
                try:
                    await self._take()
                    if not turn.ending:
                        await self._answer()
                finally:
                    await self._stop_reading()
        except TimeoutError:
            limit_text = str(turn.request.options.timeout_seconds)
            reason = error_reason_pb2.ERROR_REASON_TURN_LIMIT_REACHED
            error = failure_of(code_pb2.FAILED_PRECONDITION, reason, f"the turn's {limit_text} seconds are over")
            raise TurnFailedError(error) from None
        if turn.ending:
            await self._close(turn.ending)

    async def _take(self) -> None:
        """Raise the fence first; then make sure of what an earlier attempt was about to append."""
        turn = self.turn
        turn.fence = await self._patiently(
            lambda: self._parts.conversations.raise_fence(
                turn.user_id, turn.request.conversation_id, f"turn-{self._name}-f{turn.attempt}"
            )
        )
        if not turn.first_sequence and turn.request.message:
            if not turn.ending:
                # What was there before the question can be read while that is saved.
                before = _tokens(self._question_message())
                self._reading = asyncio.create_task(self._context(less_tokens=before))
            await self._save_question()
        if turn.HasField("pending"):
            await self._append_pending()

    async def _answer(self) -> None:
        if self.turn.status in ENDED:
            return
        while True:
            if self.turn.calls:
                await self._call_tools()
            if self.turn.steps >= self.turn.request.options.max_steps:
                limit = str(self.turn.request.options.max_steps)
                reason = error_reason_pb2.ERROR_REASON_TURN_LIMIT_REACHED
                text = f"the turn has used its {limit} steps"
                raise TurnFailedError(failure_of(code_pb2.FAILED_PRECONDITION, reason, text))
            if await self._step():
                return

    # -- saving

    async def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None

    def _question_message(self) -> message_pb2.Message:
        request = self.turn.request
        return message_pb2.Message(
            id=f"{self._name}-q",
            role=message_pb2.ROLE_USER,
            content=request.message,
            metadata=request.options.metadata,
        )

    async def _save_question(self) -> None:
        turn = self.turn
        self._asked = message = self._question_message()
        saved = await self._append([message], "q")
        turn.first_sequence = turn.last_sequence = saved.first_sequence
        self._saved_question = True
        event = turn_pb2.MessageSaved(message_id=message.id, sequence=saved.first_sequence, role=message.role)
        self._held_events.append(turn_pb2.TurnEvent(saved=event))

    async def _append_pending(self) -> None:
        """Append what the turn's document says is next, and end the turn if that was its last word."""
        turn = self.turn
        pending = turn.pending
        saved = await self._append(pending.messages, pending.request_id)
        last = saved.last_sequence
        for index, message in enumerate(pending.messages):
            sequence = last - len(pending.messages) + 1 + index if last else 0
            self._emit(saved=turn_pb2.MessageSaved(message_id=message.id, sequence=sequence, role=message.role))
        turn.last_sequence = max(last, turn.last_sequence)
        then = pending.then
        self._saved_pending = True
        if then:
            await self._finish(then)

    async def _append(self, messages: Sequence[message_pb2.Message], name: str) -> Any:
        turn = self.turn
        return await self._patiently(
            lambda: self._parts.conversations.append(
                turn.user_id,
                turn.request.conversation_id,
                messages,
                request_id=f"turn-{self._name}-{name}",
                fence=turn.fence,
            )
        )

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Do something that may be repeated, until it is done: what a turn said is not given up lightly."""
        began = time.monotonic()
        pause = 0.05
        while True:
            try:
                return await attempt()
            except GaggleError as error:
                if not isinstance(error, UnavailableError | DeadlineError) and error.reason not in _BUSY:
                    raise
                waited = time.monotonic() - began
                if waited > self._settings.patience_seconds:
                    raise
                if waited > self._settings.unsaved_seconds and self.turn.HasField("answer"):
                    self.unsaved_answer = self.turn.answer
                    self.changed.set()
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)

    async def _commit(
        self,
        change: Callable[[Transaction, document_pb2.TurnDocument], None],
        *keys: str,
        event: turn_pb2.TurnEvent | None = None,
        closing: turn_pb2.TurnEvent | None = None,
    ) -> None:
        """Change the turn as it lies in the store, and note there what has been saved since. Raises LostError.

        `event` goes to the row of the log that this commit writes, and to no other; `closing` goes there if the turn
        waits from here on.
        """
        key = turn_key(self.turn.user_id, self.turn.id)
        fence, first, last = self.turn.fence, self.turn.first_sequence, self.turn.last_sequence

        def apply(transaction: Transaction) -> document_pb2.TurnDocument:
            turn = mine(transaction, key, self.turn.attempt)
            turn.fence, turn.first_sequence, turn.last_sequence = fence, first, last
            if self._saved_question:
                del turn.request.message[:]
            if self._saved_pending:
                turn.ClearField("pending")
            change(transaction, turn)
            events = self.journal.unsaved()
            if closing is not None and turn.status == turn_pb2.TURN_STATUS_WAITING_APPROVAL:
                events.append(closing)
            if events:
                self._parts.turns.write_log(transaction, turn, events)
            turn.update_time.CopyFrom(now())
            transaction.put(key, turn)
            return turn

        async with self._committing:
            if event is not None:
                self.journal.add(event)
                self.changed.set()
            self.turn = await self._patiently(
                lambda: self._parts.turns.store.change([key, *keys], apply, confirm=[key])
            )
            self._saved_pending = False
            self.journal.saved(self.turn.position)

    def _emit(self, **event: Any) -> None:
        self.journal.add(turn_pb2.TurnEvent(**event))
        self.changed.set()

    # -- the model

    async def _step(self) -> bool:
        """Ask the model once; gives whether that was the end."""
        turn = self.turn
        options = turn.request.options
        if self._reading is not None:
            context = await self._reading
            self._reading = None
            if self._asked is not None and all(one.id != self._asked.id for one in context.messages):
                context.messages.append(self._asked)
        else:
            context = await self._context()
        assert self._toolbox is not None
        offered = self._toolbox.offered
        if not turn.steps and not turn.log_rows:
            self._emit(started=self._started(incomplete=context.incomplete))
        for event in self._held_events:
            self._emit(**{str(event.WhichOneof("event")): event.saved})
        self._held_events.clear()
        prompt = Prompt(
            prompt_messages(options.system_prompt, context.messages),
            offered,
            options.temperature if options.HasField("temperature") else None,
            options.max_output_tokens,
            options.response_schema_json,
        )
        text, thinking, finished = await self._ask(prompt)
        return await self._record(text, thinking, finished)

    async def _context(self, *, less_tokens: int = 0) -> Any:
        """Open the tools, and read what the model is to be given: a GetContextResponse."""
        turn, options = self.turn, self.turn.request.options
        if self._toolbox is None:
            self._toolbox = await self._open_toolbox()
        budget = token_budget(
            self._model.context_tokens,
            options.context_budget,
            options.max_output_tokens,
            options.system_prompt,
            self._toolbox.offered,
        )
        left = max(budget - less_tokens, 1)
        return await self._patiently(
            lambda: self._parts.conversations.context(turn.user_id, turn.request.conversation_id, left)
        )

    def _started(self, *, incomplete: bool) -> turn_pb2.TurnStarted:
        request = self.turn.request
        return turn_pb2.TurnStarted(
            turn_id=self.turn.id,
            conversation_id=request.conversation_id,
            session_id=request.session_id,
            model=request.model,
            history=turn_pb2.HISTORY_AVAILABLE,
            context_incomplete=incomplete,
        )

    async def _open_toolbox(self) -> Toolbox:
        request = self.turn.request
        if not self._model.tools or request.options.approval.mode == session_pb2.APPROVAL_MODE_CHAT:
            return Toolbox()
        if not request.extensions:
            return Toolbox()
        user_id, extensions = self.turn.user_id, self._parts.extensions
        own = self._settings.chat_extensions
        return await self._for_a_while(lambda: open_toolbox(extensions, user_id, request.extensions, own))

    async def _for_a_while(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Do something that needs the extension service, which may be starting again."""
        ends = time.monotonic() + self._settings.tool_patience_seconds
        pause = 0.1
        while True:
            try:
                return await attempt()
            except UnavailableError as error:
                if time.monotonic() > ends:
                    raise TurnFailedError(told(error)) from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    async def _ask(self, prompt: Prompt) -> tuple[str, str, Finished]:
        """Stream an answer; again from the start if the provider is busy or breaks off. Raises TurnFailedError."""
        for number in range(1, self._settings.model_attempts + 1):
            self._step_text = []
            try:
                return await self._ask_once(prompt)
            except ModelError as error:
                if error.reason == error_reason_pb2.ERROR_REASON_MODEL_KEY_REJECTED:
                    self._parts.catalog.forget_key(self._model.provider)
                if not error.may_be_repeated or number == self._settings.model_attempts:
                    raise TurnFailedError(told(error)) from error
                if self._step_text or self.journal.unsaved():
                    self.journal.drop_unsaved_text()
                    self._emit(restarted=turn_pb2.StepRestarted(reason=told(error).reason))
                backoff = self._settings.model_backoff_seconds * 2 ** (number - 1)
                pause = backoff if error.retry_after_seconds is None else error.retry_after_seconds
                _log.warning("model_asked_again", turn=self.turn.id, reason=told(error).reason, seconds=pause)
                await asyncio.sleep(min(pause, _MOST_BACKOFF_SECONDS))
        raise AssertionError

    async def _ask_once(self, prompt: Prompt) -> tuple[str, str, Finished]:
        label, began, outcome = self._parts.catalog.label(self._model), time.perf_counter(), "failed"
        try:
            with part(f"model {label}", kind=SpanKind.CLIENT):
                answer = await self._ask_model(prompt)
            outcome = "ok"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        else:
            return answer
        finally:
            self._parts.metrics.model.labels(label, outcome).observe(time.perf_counter() - began)

    async def _ask_model(self, prompt: Prompt) -> tuple[str, str, Finished]:
        thinking: list[str] = []
        size = 0
        async with contextlib.aclosing(self._model.answer(prompt)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                if isinstance(piece, Finished):
                    return "".join(self._step_text), "".join(thinking), piece
                size += len(piece.text)
                if size > MAX_MESSAGE_BYTES // 2:
                    reason = error_reason_pb2.ERROR_REASON_MODEL_RESPONSE_INVALID
                    raise ModelError(reason, "the answer is longer than a message may be")
                if isinstance(piece, ThinkingText):
                    thinking.append(piece.text)
                    if piece.text:
                        self._emit(thinking_delta=turn_pb2.ThinkingDelta(text=piece.text))
                elif piece.text:
                    self._step_text.append(piece.text)
                    self._emit(text_delta=turn_pb2.TextDelta(text=piece.text))
        raise ModelError(error_reason_pb2.ERROR_REASON_MODEL_UNAVAILABLE, "the answer broke off")

    async def _record(self, text: str, thinking: str, finished: Finished) -> bool:
        """Record a step, then append it; gives whether it was the last one."""
        counted = finished.usage
        if not counted.HasField("cost") and (cost := self._model.cost(counted)) is not None:
            counted.cost = cost
        model = finished.resolved_model or self._model.requested
        number = self.turn.steps
        calls = self._calls(finished.calls)
        message = self._assistant_message(text, thinking, calls, counted, model)
        if finished.truncated:
            message.metadata["finish_reason"] = "length"
        fault = "" if calls else self._schema_fault(text)
        messages = [message, *self._after_fault(number, fault), *self._confirmations(number, calls)]
        self._emit(usage=turn_pb2.UsageReported(model=self._model.name, usage=counted))
        self._emit_calls(calls)
        last = not calls and not fault
        ending, error = self.turn.ending, self.turn.error
        day = today()
        entry = usage_entry(
            model=self._model.name,
            turn_id=self.turn.id,
            conversation_id=self.turn.request.conversation_id,
            session_id=self.turn.request.session_id,
            counted=counted,
        )

        def change(transaction: Transaction, turn: document_pb2.TurnDocument) -> None:
            turn.steps = number + 1
            turn.schema_failures += bool(fault)
            usage.count(turn.usage, counted)
            del turn.calls[:]
            turn.calls.extend(calls)
            turn.answer.CopyFrom(message)
            turn.pending.request_id = f"s{number}"
            del turn.pending.messages[:]
            turn.pending.messages.extend(messages)
            if last:
                turn.pending.then = _COMPLETED
            elif ending:
                turn.pending.then = ending
                turn.error.CopyFrom(error)
            self._parts.sessions.note_usage(turn.user_id, transaction, day, entry)

        self.turn.answer.CopyFrom(message)
        await self._commit(change, day_key(self.turn.user_id, day))
        self._parts.metrics.count(self._parts.catalog.label(self._model), counted)
        self._step_text = []
        await self._append_pending()
        return last or bool(ending)

    def _emit_calls(self, calls: Sequence[document_pb2.ToolCallDocument]) -> None:
        for call in calls:
            told_call = turn_pb2.ToolCallRequested(call_id=call.id, name=call.name, arguments_json=call.arguments_json)
            self._emit(tool_call=told_call)
        for call in calls:
            if call.status == _WAITING:
                self._emit(approval_requested=self._approval_request(call))

    def _after_fault(self, number: int, fault: str) -> list[message_pb2.Message]:
        """Ask for an answer that meets the schema; or, once that was asked for often enough, end the turn."""
        if not fault:
            return []
        if self.turn.schema_failures + 1 < _SCHEMA_ATTEMPTS:
            return [self._schema_reminder(number, fault)]
        reason = error_reason_pb2.ERROR_REASON_MODEL_RESPONSE_INVALID
        self.turn.ending = _FAILED
        self.turn.error.CopyFrom(failure_of(code_pb2.FAILED_PRECONDITION, reason, fault))
        return []

    def _calls(self, asked: Sequence[CalledTool]) -> list[document_pb2.ToolCallDocument]:
        """Enter the calls that a model asks for; each gets an id that is unique in its turn."""
        assert self._toolbox is not None
        calls: list[document_pb2.ToolCallDocument] = []
        step = self.turn.steps
        approval = self.turn.request.options.approval
        for index, one in enumerate(asked):
            call_id = one.id if one.id and len(one.id) <= 64 else f"call-{step}-{index}"  # noqa: PLR2004
            # Some providers count their calls from 0 in every answer; in the history that would join the wrong pairs.
            call_id = f"{call_id}.{self._name[:8]}.{step}.{index}" if not _looks_unique(call_id) else call_id
            tool = self._toolbox.find(one.name)
            call = document_pb2.ToolCallDocument(
                id=call_id,
                name=one.name,
                arguments_json=one.arguments_json or "{}",
                status=turn_pb2.TOOL_CALL_STATUS_PENDING,
                idempotency_key=f"{self._name}-{step}-{index}",
                fault=argument_fault(one.arguments_json),
            )
            if tool is not None:
                call.extension, call.tool = tool.extension_id, tool.name
                if not call.fault and needs_approval(approval, one.name, read_only=tool.read_only):
                    call.status = _WAITING
                    expires = now().ToDatetime(UTC) + timedelta(seconds=approval.expire_seconds)
                    call.expire_time.CopyFrom(timestamp(expires))
            calls.append(call)
        return calls

    def _assistant_message(
        self,
        text: str,
        thinking: str,
        calls: Sequence[document_pb2.ToolCallDocument],
        counted: message_pb2.TokenUsage,
        model: str,
    ) -> message_pb2.Message:
        message = message_pb2.Message(
            id=f"{self._name}-s{self.turn.steps}",
            role=message_pb2.ROLE_ASSISTANT,
            usage=counted,
            inference=message_pb2.Inference(
                provider=self._model.provider, requested_model=self._model.requested, resolved_model=model
            ),
        )
        if thinking:
            message.content.add().thinking.thinking = thinking
        if text or not calls:
            message.content.add().text.text = text
        for call in calls:
            request = message.content.add().tool_request
            request.id = call.id
            request.call.name, request.call.arguments_json = call.name, call.arguments_json
        if message.ByteSize() > MAX_MESSAGE_BYTES:
            reason = error_reason_pb2.ERROR_REASON_MODEL_RESPONSE_INVALID
            text = "the answer is larger than a message may be"
            raise TurnFailedError(failure_of(code_pb2.FAILED_PRECONDITION, reason, text))
        return message

    def _schema_fault(self, text: str) -> str:
        """Say what is wrong with an answer that was to meet a schema."""
        schema = self.turn.request.options.response_schema_json
        if not schema:
            return ""
        try:
            jsonschema.validate(json.loads(json_text(text)), json.loads(schema))
        except ValueError as error:
            return f"the answer is not JSON: {error}"
        except jsonschema.ValidationError as error:
            return f"the answer does not meet the schema: {error.json_path}: {error.message}"[:1000]
        return ""

    def _schema_reminder(self, number: int, fault: str) -> message_pb2.Message:
        text = f"{fault}. Answer again, with nothing but JSON that meets the schema."
        part = message_pb2.ContentPart(text=message_pb2.TextContent(text=text))
        return message_pb2.Message(
            id=f"{self._name}-r{number}", role=message_pb2.ROLE_USER, content=[part], hidden_from_user=True, steer=True
        )

    # -- tools

    def _confirmations(self, number: int, calls: Sequence[document_pb2.ToolCallDocument]) -> list[message_pb2.Message]:
        """Write what a person is asked: goose's toolConfirmationRequest."""
        parts = [
            message_pb2.ContentPart(
                tool_confirmation_request=message_pb2.ToolConfirmationRequest(
                    id=call.id, tool_name=call.name, arguments_json=call.arguments_json, prompt=_question(call)
                )
            )
            for call in calls
            if call.status == _WAITING
        ]
        if not parts:
            return []
        role = message_pb2.ROLE_ASSISTANT
        return [message_pb2.Message(id=f"{self._name}-c{number}", role=role, content=parts, hidden_from_agent=True)]

    def _approval_request(self, call: document_pb2.ToolCallDocument) -> turn_pb2.ApprovalRequested:
        return turn_pb2.ApprovalRequested(
            turn_id=self.turn.id,
            call_id=call.id,
            name=call.name,
            arguments_json=call.arguments_json,
            prompt=_question(call),
            expire_time=call.expire_time,
        )

    async def _call_tools(self) -> None:
        """Run what may run; then give all answers to the conversation, or wait for a person. Raises PausedError."""
        told_decisions: set[str] = set()
        while True:
            for call in self.turn.calls:
                decided = call.status in {_APPROVED, _DENIED} and call.HasField("expire_time")
                if decided and call.id not in told_decisions:
                    told_decisions.add(call.id)
                    approved = call.status == _APPROVED
                    self._emit(
                        approval_decided=turn_pb2.ToolCallDecided(
                            call_id=call.id, approved=approved, expired=call.expired
                        )
                    )
            open_calls = [call for call in self.turn.calls if call.status not in {_ANSWERED, _WAITING}]
            if open_calls:
                slots = asyncio.Semaphore(self._settings.parallel_tools)
                try:
                    async with asyncio.TaskGroup() as group:
                        for call in open_calls:
                            group.create_task(self._call_tool(call, slots))
                except BaseExceptionGroup as several:
                    raise _first(several) from several
                continue
            if any(call.status == _WAITING for call in self.turn.calls):
                await self._pause()
                continue
            break
        await self._record_answers()

    async def _call_tool(self, call: document_pb2.ToolCallDocument, slots: asyncio.Semaphore) -> None:
        async with slots:
            started = now()
            began = time.perf_counter()
            response, outcome, reason = await self._response(call)
            milliseconds = int((time.perf_counter() - began) * 1000)
        limit = min(MAX_RESULT_BYTES, MAX_RESULTS_BYTES // max(len(self.turn.calls), 1))
        response = cut(response, limit)
        response.id = call.id
        answered = turn_pb2.ToolCallAnswered(
            call_id=call.id, name=call.name, response=response, duration_ms=milliseconds
        )
        payload = event_pb2.ToolExecutedEvent(
            turn_id=self.turn.id,
            conversation_id=self.turn.request.conversation_id,
            session_id=self.turn.request.session_id,
            call_id=call.id,
            tool_name=call.name,
            extension=call.extension,
            outcome=outcome,
            duration_ms=milliseconds,
            start_time=started,
            result_size=response.ByteSize(),
            error_reason=reason,
        )
        change_told = Change(
            entity_type="turn",
            entity_id=self.turn.id,
            user_id=self.turn.user_id,
            revision=0,
            incarnation=0,
            time=now().ToDatetime(UTC),
            traceparent=dict(trace_metadata()).get("traceparent", ""),
        )
        events = build_events(
            change_told,
            {topics.TOOL_EXECUTED: json_format.MessageToDict(payload)},
            id_prefix=f"tool.{call.idempotency_key}",
        )

        def change(transaction: Transaction, turn: document_pb2.TurnDocument) -> None:
            entry = next(one for one in turn.calls if one.id == call.id)
            if entry.status == _ANSWERED:
                return
            if entry.HasField("expire_time"):
                decision = decision_message(entry)
                decision.id = f"{call.idempotency_key}-d"
                turn.decisions.append(decision)
            entry.status = _ANSWERED
            # The row that this very commit writes.
            entry.log_row = turn.log_rows
            transaction.events += events

        self._responses[call.id] = response
        await self._commit(change, event=turn_pb2.TurnEvent(tool_result=answered))
        name = event_pb2.ToolOutcome.Name(outcome).removeprefix("TOOL_OUTCOME_").lower()
        self._parts.metrics.tools.labels(name).inc()

    async def _response(
        self, call: document_pb2.ToolCallDocument
    ) -> "tuple[message_pb2.ToolResponse, event_pb2.ToolOutcome.ValueType, str]":
        response = message_pb2.ToolResponse(id=call.id)
        if call.status == _DENIED:
            why = f": {call.deny_reason}" if call.deny_reason else ""
            response.error = "nobody approved the call in time" if call.expired else f"the user denied the call{why}"
            expired, denied = event_pb2.TOOL_OUTCOME_EXPIRED, event_pb2.TOOL_OUTCOME_DENIED
            return response, expired if call.expired else denied, ""
        if call.fault or not call.extension:
            response.error = call.fault or f"there is no tool {call.name!r}"
            return response, event_pb2.TOOL_OUTCOME_FAILED, "INVALID_FIELD" if call.fault else "NOT_FOUND"
        try:
            return await self._run_tool(call, response)
        except GaggleError as error:
            reason = error_reason_pb2.ErrorReason.Name(error.reason).removeprefix(_REASON_PREFIX)
            response.error = f"the tool could not be run: {error.message}"
            return response, event_pb2.TOOL_OUTCOME_FAILED, reason

    async def _run_tool(
        self, call: document_pb2.ToolCallDocument, response: message_pb2.ToolResponse
    ) -> "tuple[message_pb2.ToolResponse, event_pb2.ToolOutcome.ValueType, str]":
        """Call the tool, under its own key again while the extension service is away."""
        ends = time.monotonic() + self._settings.tool_patience_seconds
        pause = 0.1
        while True:
            try:
                return await self._run_tool_once(call, response)
            except UnavailableError:
                if time.monotonic() > ends:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    async def _run_tool_once(
        self, call: document_pb2.ToolCallDocument, response: message_pb2.ToolResponse
    ) -> "tuple[message_pb2.ToolResponse, event_pb2.ToolOutcome.ValueType, str]":
        stream = self._parts.extensions.call(
            self.turn.user_id,
            call.extension,
            call.tool,
            call.arguments_json,
            call_id=call.idempotency_key,
            timeout_seconds=_TOOL_SECONDS,
        )
        async with contextlib.aclosing(stream) as told_events:  # type: ignore[type-var]
            async for one in told_events:
                kind = one.WhichOneof("event")
                if kind == "progress":
                    progress = turn_pb2.ToolProgress(
                        call_id=call.id, progress=one.progress.progress, message=one.progress.message
                    )
                    if one.progress.HasField("total"):
                        progress.total = one.progress.total
                    self._emit(tool_progress=progress)
                elif kind == "result":
                    response.result.CopyFrom(one.result)
                    failed = one.result.is_error
                    outcome = event_pb2.TOOL_OUTCOME_TOOL_ERROR if failed else event_pb2.TOOL_OUTCOME_SUCCEEDED
                    return response, outcome, ""
                elif kind == "error":
                    response.error = one.error.message
                    return response, event_pb2.TOOL_OUTCOME_FAILED, f"JSON_RPC_{one.error.code}"
        raise UnavailableError("extension")

    async def _pause(self) -> None:
        """Let go of the turn until a person has decided, unless one just has. Raises PausedError."""
        waiting = [call.id for call in self.turn.calls if call.status == _WAITING]
        told_waiting = turn_pb2.TurnEvent(
            position=self.journal.position + 1, waiting=turn_pb2.TurnWaiting(turn_id=self.turn.id, call_ids=waiting)
        )
        watched = watchlist_key(self.turn.user_id, self.turn.id)

        def change(transaction: Transaction, turn: document_pb2.TurnDocument) -> None:
            due = [call.expire_time for call in turn.calls if call.status == _WAITING]
            if not due:
                return
            turn.status = turn_pb2.TURN_STATUS_WAITING_APPROVAL
            turn.wait_time.CopyFrom(now())
            first = min(due, key=lambda one: one.ToNanoseconds())
            watch(transaction, watched, turn.user_id, turn.id, first)

        # Told once it is so: who hears of it may decide at once.
        await self._commit(change, watched, closing=told_waiting)
        if self.turn.status == turn_pb2.TURN_STATUS_WAITING_APPROVAL:
            self.journal.add(told_waiting)
            self.changed.set()
            raise PausedError

    async def _record_answers(self) -> None:
        responses = await self._answers(self.turn.calls)
        number = self.turn.steps - 1

        def change(_transaction: Transaction, turn: document_pb2.TurnDocument) -> None:
            turn.pending.request_id = f"t{number}"
            del turn.pending.messages[:]
            turn.pending.messages.extend(turn.decisions)
            turn.pending.messages.extend(self._tool_messages(responses, number))
            del turn.decisions[:]
            del turn.calls[:]

        await self._commit(change)
        await self._append_pending()

    async def _answers(self, calls: Sequence[document_pb2.ToolCallDocument]) -> list[message_pb2.ToolResponse]:
        """Give the answers of these calls in their order: from this process, or from the ledger."""
        missing = [call for call in calls if call.status == _ANSWERED and call.id not in self._responses]
        if missing:
            rows = sorted({call.log_row for call in missing})
            store = self._parts.turns.store
            for event in await self._patiently(lambda: store.log(self.turn.user_id, self.turn.id, rows)):
                if event.HasField("tool_result"):
                    self._responses.setdefault(event.tool_result.call_id, event.tool_result.response)
        lost = message_pb2.ToolResponse(error="the turn ended before the tool had answered")
        answers = []
        for call in calls:
            answer = message_pb2.ToolResponse()
            answer.CopyFrom(self._responses.get(call.id, lost) if call.status == _ANSWERED else lost)
            answer.id = call.id
            answers.append(answer)
        return answers

    def _tool_messages(self, responses: Sequence[message_pb2.ToolResponse], number: int) -> list[message_pb2.Message]:
        return [
            message_pb2.Message(
                id=f"{self._name}-t{number}-{index}",
                role=message_pb2.ROLE_TOOL,
                content=[message_pb2.ContentPart(tool_response=response)],
            )
            for index, response in enumerate(responses)
        ]

    # -- the end

    async def _fail(self, error: turn_pb2.TurnError) -> None:
        self.turn.error.CopyFrom(error)
        self.turn.ending = _FAILED
        self.turn.partial_text = self.partial_text
        await self._close(_FAILED)

    async def _close(self, status: "turn_pb2.TurnStatus.ValueType") -> None:
        """End a turn early: what it said so far is kept, and calls that have no answer get one that says so."""
        turn = self.turn
        if turn.fence == 0:
            # The conversation could not be taken: it is gone.
            await self._finish(status, unsaved=True)
            return
        messages: list[message_pb2.Message] = []
        if turn.calls:
            await self._cancel_tools()
            messages += turn.decisions
            messages += self._tool_messages(await self._answers(turn.calls), turn.steps - 1)
        if turn.partial_text:
            message = self._assistant_message(turn.partial_text, "", (), message_pb2.TokenUsage(), "")
            message.ClearField("usage")
            message.id = f"{self._name}-p"
            message.metadata["incomplete"] = turn_pb2.TurnStatus.Name(status).removeprefix("TURN_STATUS_").lower()
            messages.append(message)
            turn.answer.CopyFrom(message)
        if not messages:
            await self._finish(status)
            return
        error, partial, answer = turn.error, turn.partial_text, turn.answer
        failed = turn.HasField("error")
        answered = turn.HasField("answer")

        def change(_transaction: Transaction, current: document_pb2.TurnDocument) -> None:
            current.ending = status
            current.partial_text = partial
            if failed:
                current.error.CopyFrom(error)
            if answered:
                current.answer.CopyFrom(answer)
            current.pending.request_id = "end"
            current.pending.then = status
            del current.pending.messages[:]
            current.pending.messages.extend(messages)
            del current.decisions[:]
            del current.calls[:]

        await self._commit(change)
        try:
            await self._append_pending()
        except GaggleError as failure:
            if not is_gone(failure):
                raise
            await self._finish(status, unsaved=True)

    async def _cancel_tools(self) -> None:
        """Tell servers that nobody waits for these calls any more, as far as they can be told."""
        for call in self.turn.calls:
            if call.extension and call.status not in {_ANSWERED, _WAITING, _DENIED}:
                with contextlib.suppress(GaggleError):
                    await self._parts.extensions.cancel(self.turn.user_id, call.extension, call.idempotency_key)

    async def _finish(self, status: "turn_pb2.TurnStatus.ValueType", *, unsaved: bool = False) -> None:
        source = self.turn
        error = source.error if source.HasField("error") else None
        answer = source.answer if source.HasField("answer") else None
        marked: list[turn_pb2.TurnEvent] = []

        def prepare(turn: document_pb2.TurnDocument) -> list[turn_pb2.TurnEvent]:
            turn.first_sequence, turn.last_sequence = source.first_sequence, source.last_sequence
            turn.fence = source.fence
            del turn.request.message[:]
            if error is not None and status == _FAILED:
                turn.error.CopyFrom(error)
            if answer is not None:
                turn.answer.CopyFrom(answer)
            turn.status = status
            if not marked:
                event = turn_pb2.TurnEvent(ended=ended_event(turn, unsaved=unsaved))
                event.position = self.journal.position + 1
                marked.append(event)
            return [*self.journal.unsaved(), *marked]

        async with self._committing:
            self.turn, self._following = await self._patiently(
                lambda: self._parts.turns.finish(source, status, prepare)
            )
        self._parts.metrics.ended(status)
        self.journal.add(marked[0])
        self.changed.set()

    # -- alive

    async def _beat(self, work: "asyncio.Task[None] | None") -> None:
        """Save what is streamed, say that this process lives, and look whether the turn is still its own."""
        store = self._parts.turns.store
        looked = told_at = time.monotonic()
        position = self.journal.position
        while True:
            await asyncio.sleep(self._settings.checkpoint_seconds)
            moment = time.monotonic()
            with contextlib.suppress(GaggleError, CommitFailedError):
                if moment - looked >= self._settings.lease_seconds / 4:
                    looked = moment
                    turn = await store.turn(self.turn.user_id, self.turn.id)
                    if turn is None or turn.attempt != self.turn.attempt:
                        _log.warning("turn_lost", turn=self.turn.id, attempt=self.turn.attempt, reason="TAKEN_OVER")
                        if work is not None:
                            work.cancel()
                        return
                if self.journal.position != position or moment - told_at >= self._settings.lease_seconds / 4:
                    position, told_at = self.journal.position, moment
                    await store.state.commit([self._parts.turns.checkpoint(self.turn, self.journal.unsaved())])


def _tokens(message: message_pb2.Message) -> int:
    """Count as the conversation service does where nobody has: a quarter of the bytes."""
    return -(-message.ByteSize() // 4)


def _looks_unique(call_id: str) -> bool:
    """Tell a provider's random id from a counter."""
    return len(call_id) >= 16  # noqa: PLR2004


def _question(call: document_pb2.ToolCallDocument) -> str:
    return f"Allow {call.name} to run?"


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    one = several.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one


def failure_of(code: int, reason: "error_reason_pb2.ErrorReason.ValueType", message: str) -> turn_pb2.TurnError:
    """Write why a turn failed."""
    name = error_reason_pb2.ErrorReason.Name(reason).removeprefix(_REASON_PREFIX)
    return turn_pb2.TurnError(code=code, reason=name, message=message)


def told(error: GaggleError) -> turn_pb2.TurnError:
    """Write an error as a turn tells it."""
    return failure_of(error.code, error.reason, error.message)
