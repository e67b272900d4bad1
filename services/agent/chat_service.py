"""A chatbot's one call: a turn, waited for."""

from contextlib import aclosing
from typing import Any

from gaggle.agent.v1 import agent_service_pb2 as api
from gaggle.agent.v1 import chat_service_pb2 as chat_api
from gaggle.agent.v1 import chat_service_pb2_grpc as chat_grpc
from gaggle.agent.v1 import turn_pb2
from gaggle.common.v1 import error_reason_pb2
from services.agent import validation
from services.agent.chatting import Chats
from services.agent.peers import Conversations
from services.agent.prompting import response_text
from services.agent.settings import AgentSettings
from services.agent.turns import digest, text_of
from services.runtime.call import set_deadline
from services.runtime.errors import GaggleError
from services.runtime.identity import current_caller
from services.runtime.ids import new_id


class ChatServicer(chat_grpc.ChatServiceServicer):
    """Serves gaggle.agent.v1.ChatService."""

    def __init__(self, chats: Chats, conversations: Conversations, settings: AgentSettings) -> None:
        """`settings` has the window, and the tools where a request names none."""
        self._chats = chats
        self._conversations = conversations
        self._settings = settings

    async def Chat(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """See the contract."""
        user_id = current_caller().user_id
        # How long a model may take is the caller's to say.
        set_deadline(None)
        asked = await self._asked(user_id, request)
        answer = _Answer(asked)
        async with aclosing(self._chats.chat(user_id, asked)) as events:  # type: ignore[type-var]
            async for event in events:
                answer.take(event)
        response = answer.response
        if response.history_state != turn_pb2.HISTORY_UNAVAILABLE:
            window = self._settings.chat_window_messages
            response.history.extend(await self._conversations.newest(user_id, response.conversation_id, window))
        return response

    async def _asked(self, user_id: str, request: Any) -> api.ChatRequest:
        asked = api.ChatRequest(
            request_id=request.request_id or new_id(),
            conversation_id=request.conversation_id,
            model=request.model,
            extensions=request.extensions or self._settings.chat_extensions,
        )
        if request.message:
            asked.message.add().text.text = request.message
        validation.chat(asked)
        if not asked.conversation_id:
            key = f"turn-{digest(user_id, asked.request_id)}"
            asked.conversation_id = await self._conversations.create_or_go_on_without(
                user_id, key, self._settings.chat_kept_messages, seconds=self._settings.degrade_seconds
            )
        return asked


class _Answer:
    """A turn's events put together."""

    def __init__(self, asked: api.ChatRequest) -> None:
        self.response = chat_api.ChatServiceChatResponse(
            conversation_id=asked.conversation_id,
            turn_id=asked.request_id,
            history_state=turn_pb2.HISTORY_AVAILABLE,
        )
        self._arguments: dict[str, str] = {}

    def take(self, event: turn_pb2.TurnEvent) -> None:
        """Take an event. Raises GaggleError as the turn's error says."""
        kind = event.WhichOneof("event")
        if kind == "started":
            self.response.history_state = event.started.history
        elif kind == "tool_call":
            self._arguments[event.tool_call.call_id] = event.tool_call.arguments_json
        elif kind == "tool_result":
            result = event.tool_result
            self.response.tool_calls.add(
                id=result.call_id,
                name=result.name,
                arguments_json=self._arguments.get(result.call_id, ""),
                response=response_text(result.response),
                is_error=bool(result.response.error) or result.response.result.is_error,
            )
        elif kind == "waiting":
            self.response.waiting_call_ids.extend(event.waiting.call_ids)
        elif kind == "ended":
            self._end(event.ended)

    def _end(self, ended: turn_pb2.TurnEnded) -> None:
        if ended.status == turn_pb2.TURN_STATUS_FAILED:
            name = f"ERROR_REASON_{ended.error.reason}"
            known = name in error_reason_pb2.ErrorReason.keys()  # noqa: SIM118 - protobuf's enums are no dict
            number = error_reason_pb2.ErrorReason.Value(name if known else "ERROR_REASON_INTERNAL")
            error = GaggleError(ended.error.message, reason=number, metadata={"turn_id": ended.turn_id})
            error.code = ended.error.code  # type: ignore[misc]
            raise error
        self.response.response = text_of(ended.message)
        self.response.unsaved = ended.unsaved
