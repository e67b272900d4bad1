"""The Chat call: a turn begun or found again, and its stream; or, without a state store, an answer and no more."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import NoReturn

import structlog

from gaggle.agent.state.v1 import document_pb2
from gaggle.agent.v1 import agent_service_pb2 as api
from gaggle.agent.v1 import turn_pb2
from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.v1 import message_pb2
from services.agent import usage
from services.agent.journal import Journal
from services.agent.models.base import Finished, Model, ModelError, Prompt, ThinkingText
from services.agent.models.catalog import Catalog
from services.agent.prompting import prompt_messages
from services.agent.running import told
from services.agent.runs import Runs
from services.agent.settings import AgentSettings
from services.agent.turns import Once, Turns
from services.agent.watching import Watcher
from services.runtime.call import set_deadline
from services.runtime.errors import DeadlineError, FailedPreconditionError, GaggleError, NotFoundError, UnavailableError
from services.runtime.ids import new_id

_WAITING = turn_pb2.TOOL_CALL_STATUS_WAITING_APPROVAL
_log = structlog.get_logger()


class Chats:
    """Serves Chat, and what people decide about its tools."""

    def __init__(self, turns: Turns, runs: Runs, watcher: Watcher, catalog: Catalog, settings: AgentSettings) -> None:
        """All are the process's own."""
        self._turns = turns
        self._runs = runs
        self._watcher = watcher
        self._catalog = catalog
        self._settings = settings

    async def chat(self, user_id: str, request: api.ChatRequest) -> AsyncIterator[turn_pb2.TurnEvent]:
        """Answer, and stream how. Raises what the contract says."""
        model = self._catalog.find(request.model) if request.model else None
        try:
            turn_id = await self._begin(user_id, request)
        except _AwayError as away:
            if request.after_position:
                raise away.error from None
            _log.warning("chat_degraded", error=away.error.message)
            async for event in self._degraded(request, model or self._catalog.find("")):
                yield event
            return
        async with contextlib.aclosing(
            self._watcher.follow(user_id, turn_id, request.after_position)  # type: ignore[type-var]
        ) as events:
            async for event in events:
                yield event

    async def _begin(self, user_id: str, request: api.ChatRequest) -> str:
        """Begin a turn, or find the one that this request began. Raises _AwayError before anything was written."""
        set_deadline(self._settings.degrade_seconds)
        try:
            found = await self._turns.find_begun(user_id, request)
            if found is not None:
                return str(found.id)
            resolved, remember = await self._turns.resolve(user_id, request)
        except (UnavailableError, DeadlineError) as error:
            raise _AwayError(error) from error
        finally:
            set_deadline(None)
        # From here on an error may hide an effect: the caller repeats, and does not get two answers.
        begun = await self._turns.begin(user_id, request, resolved, remember=remember)
        if begun.interrupts:
            await self._runs.end(user_id, begun.interrupts, turn_pb2.TURN_STATUS_INTERRUPTED)
        elif begun.new and begun.turn.status == turn_pb2.TURN_STATUS_RUNNING:
            self._runs.start(begun.turn)
        return str(begun.turn.id)

    # -- without a state store

    async def _degraded(self, request: api.ChatRequest, model: Model) -> AsyncIterator[turn_pb2.TurnEvent]:
        """Answer this message alone: no lease, no tool, no history, nothing saved; and say so."""
        turn_id = request.request_id or new_id()
        journal = Journal(1)
        yield journal.add(
            turn_pb2.TurnEvent(
                started=turn_pb2.TurnStarted(
                    turn_id=turn_id,
                    conversation_id=request.conversation_id,
                    session_id=request.session_id,
                    model=model.name,
                    history=turn_pb2.HISTORY_UNAVAILABLE,
                )
            )
        )
        question = message_pb2.Message(role=message_pb2.ROLE_USER, content=request.message)
        prompt = Prompt(
            prompt_messages(request.options.system_prompt, [question]),
            temperature=request.options.temperature if request.options.HasField("temperature") else None,
            max_output_tokens=request.options.max_output_tokens,
        )
        ended = turn_pb2.TurnEnded(turn_id=turn_id, conversation_id=request.conversation_id, unsaved=True)
        texts: list[str] = []
        try:
            async with asyncio.timeout(request.options.timeout_seconds or self._settings.turn_timeout_seconds):
                async with contextlib.aclosing(model.answer(prompt)) as pieces:  # type: ignore[type-var]
                    async for piece in pieces:
                        if isinstance(piece, Finished):
                            usage.count(ended.usage, piece.usage)
                        elif isinstance(piece, ThinkingText):
                            thinking = turn_pb2.ThinkingDelta(text=piece.text)
                            yield journal.add(turn_pb2.TurnEvent(thinking_delta=thinking))
                        else:
                            texts.append(piece.text)
                            yield journal.add(turn_pb2.TurnEvent(text_delta=turn_pb2.TextDelta(text=piece.text)))
            ended.status = turn_pb2.TURN_STATUS_COMPLETED
        except ModelError as error:
            ended.status = turn_pb2.TURN_STATUS_FAILED
            ended.error.CopyFrom(told(error))
        except TimeoutError:
            ended.status = turn_pb2.TURN_STATUS_FAILED
            ended.error.CopyFrom(told(DeadlineError(model.name)))
        ended.message.role = message_pb2.ROLE_ASSISTANT
        ended.message.content.add().text.text = "".join(texts)
        ended.message.metadata["unsaved"] = "true"
        yield journal.add(turn_pb2.TurnEvent(ended=ended))

    # -- approvals and cancelling

    async def decide(
        self, user_id: str, turn_id: str, call_id: str, *, approve: bool, reason: str = "", once: Once | None = None
    ) -> document_pb2.TurnDocument:
        """Approve or deny a call that waits, and go on with the turn if that was the last one.

        `once`: the request's place in the ledger. Raises NotFoundError, FailedPreconditionError.
        """
        wanted = turn_pb2.TOOL_CALL_STATUS_APPROVED if approve else turn_pb2.TOOL_CALL_STATUS_DENIED

        def decision(turn: document_pb2.TurnDocument) -> bool:
            call = next((one for one in turn.calls if one.id == call_id), None)
            if call is None:
                raise NotFoundError("tool call", call_id)
            if call.status == wanted and not call.expired:
                return False
            if call.status != _WAITING:
                _refuse(call)
            call.status = wanted
            call.deny_reason = reason
            return True

        turn, goes_on = await self._turns.decide(user_id, turn_id, decision, once)
        if goes_on:
            self._runs.start(turn)
        return turn

    async def cancel(self, user_id: str, turn_id: str, once: Once | None = None) -> document_pb2.TurnDocument:
        """End a turn as CANCELLED, and give it as it is then. Raises NotFoundError, InvalidArgumentError if reused."""
        await self._turns.get(user_id, turn_id)
        # Cancelling twice is cancelling once, so the row need not be one commit with the effect.
        await self._turns.claim(once or Once())
        await self._runs.end(user_id, turn_id, turn_pb2.TURN_STATUS_CANCELLED)
        async with contextlib.aclosing(
            self._watcher.follow(user_id, turn_id, 1 << 63)  # type: ignore[type-var]
        ) as events:
            async for _ in events:
                pass
        return await self._turns.get(user_id, turn_id)


class _AwayError(Exception):
    """State or conversation can't be had now, and nothing was written."""

    def __init__(self, error: GaggleError) -> None:
        super().__init__(error.message)
        self.error = error


def _refuse(call: document_pb2.ToolCallDocument) -> NoReturn:
    state = turn_pb2.ToolCallStatus.Name(call.status).removeprefix("TOOL_CALL_STATUS_").lower()
    if call.expired:
        state = "expired"
    raise FailedPreconditionError(
        f"the call does not wait: it is {state}",
        reason=error_reason_pb2.ERROR_REASON_WRONG_STATE,
        metadata={"state": state},
    )
