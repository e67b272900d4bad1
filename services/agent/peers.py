"""The services that the agent stands on, asked through its own sidecar by tokens of its own."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.rpc import code_pb2

from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.v1 import conversation_pb2, message_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as conversation_api
from gaggle.extension.v1 import extension_pb2
from gaggle.extension.v1 import extension_service_pb2 as extension_api
from services.runtime.errors import DeadlineError, GaggleError, UnavailableError
from services.runtime.invocation import Peer
from services.runtime.requests import valid_id

_TOOL_PAGE = 500
_LOAD_SECONDS = 90.0
_LOST = frozenset(
    {error_reason_pb2.ERROR_REASON_NOT_FOUND, error_reason_pb2.ERROR_REASON_USER_ERASED},
)

IssueToken = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Saved:
    """Where appended messages lie; 0: they were appended before, and where is not known."""

    first_sequence: int
    last_sequence: int


class Conversations:
    """The conversation service, for one turn after another. Raises the errors that it tells."""

    def __init__(self, peer: Peer, issue: IssueToken) -> None:
        """`issue` gives a token for acting for a user."""
        self._peer = peer
        self._issue = issue

    async def exists(self, user_id: str, conversation_id: str) -> None:
        """Raise NotFoundError (told) if there is none."""
        request = conversation_api.GetConversationRequest(conversation_id=conversation_id)
        await self._peer.ask("GetConversation", request, self._issue(user_id))

    async def create(self, user_id: str, conversation_id: str, request_id: str) -> str:
        """Create a conversation; gives its id. One that is there already is fine if it was named."""
        request = conversation_api.CreateConversationRequest(request_id=request_id, conversation_id=conversation_id)
        response = await self._peer.ask("CreateConversation", request, self._issue(user_id))
        return str(response.conversation.id)

    async def create_or_go_on_without(self, user_id: str, request_id: str, max_messages: int, *, seconds: float) -> str:
        """Create a conversation that keeps so many messages; gives its id, or none if that can't be done in time."""
        request = conversation_api.CreateConversationRequest(
            request_id=request_id, retention=conversation_pb2.Retention(max_messages=max_messages)
        )
        try:
            response = await self._peer.ask(
                "CreateConversation", request, self._issue(user_id), timeout_seconds=seconds
            )
        except (UnavailableError, DeadlineError):
            return ""
        return str(response.conversation.id)

    async def newest(self, user_id: str, conversation_id: str, count: int) -> list[message_pb2.Message]:
        """Read the newest messages; none if they can't be had now."""
        request = conversation_api.ListMessagesRequest(conversation_id=conversation_id, page_size=count)
        try:
            response = await self._peer.ask("ListMessages", request, self._issue(user_id))
        except (UnavailableError, DeadlineError):
            return []
        return list(response.messages)

    async def raise_fence(self, user_id: str, conversation_id: str, request_id: str) -> int:
        """Take the conversation: what carries a lower fence is refused from now on."""
        request = conversation_api.RaiseFenceRequest(conversation_id=conversation_id, request_id=request_id)
        response = await self._peer.ask("RaiseFence", request, self._issue(user_id))
        return int(response.fence)

    async def context(self, user_id: str, conversation_id: str, token_budget: int) -> Any:
        """Give what fits a budget: a GetContextResponse."""
        request = conversation_api.GetContextRequest(conversation_id=conversation_id, token_budget=token_budget)
        return await self._peer.ask("GetContext", request, self._issue(user_id))

    async def append(
        self,
        user_id: str,
        conversation_id: str,
        messages: Sequence[message_pb2.Message],
        *,
        request_id: str,
        fence: int,
    ) -> Saved:
        """Append, once for each request_id, whatever attempt did it.

        An earlier attempt of the turn carried another fence, which makes its request another body: REQUEST_ID_REUSED
        says that it was faster. After our fence was raised it can't be slower any more, so that it is one or the other.
        Raises ConflictError (told), STALE_FENCE, once another process has taken over.
        """
        request = conversation_api.AppendMessagesRequest(
            conversation_id=conversation_id, messages=messages, request_id=request_id, fence=fence
        )
        try:
            response = await self._peer.ask("AppendMessages", request, self._issue(user_id))
        except GaggleError as error:
            if error.reason != error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED:
                raise
            return await self._find(user_id, conversation_id, messages)
        return Saved(response.first_sequence, response.last_sequence)

    async def span(self, user_id: str, conversation_id: str, first: int, last: int) -> list[message_pb2.Message]:
        """Read the messages of a stretch of sequences, at most 200 of them, those that are there."""
        request = conversation_api.ListMessagesRequest(
            conversation_id=conversation_id, after_sequence=first - 1, page_size=min(last - first + 1, 200)
        )
        try:
            response = await self._peer.ask("ListMessages", request, self._issue(user_id))
        except GaggleError as error:
            if is_gone(error):
                return []
            raise
        return [one for one in response.messages if one.sequence <= last]

    async def _find(self, user_id: str, conversation_id: str, messages: Sequence[message_pb2.Message]) -> Saved:
        request = conversation_api.ListMessagesRequest(conversation_id=conversation_id, page_size=200)
        response = await self._peer.ask("ListMessages", request, self._issue(user_id))
        sequences = {one.id: one.sequence for one in response.messages}
        return Saved(sequences.get(messages[0].id, 0), sequences.get(messages[-1].id, 0))


def is_gone(error: GaggleError) -> bool:
    """Tell whether the conversation, or its user, is no more."""
    return error.reason in _LOST


class Extensions:
    """The extension service. Raises the errors that it tells."""

    def __init__(self, peer: Peer, issue: IssueToken) -> None:
        """`issue` gives a token for acting for a user."""
        self._peer = peer
        self._issue = issue

    async def find(self, user_id: str, name: str) -> extension_pb2.Extension:
        """Find an extension by its name, else by its id."""
        request = extension_api.GetExtensionRequest(name=name)
        try:
            response = await self._peer.ask("GetExtension", request, self._issue(user_id))
        except GaggleError as error:
            if error.code != code_pb2.NOT_FOUND or not valid_id(name):
                raise
            request.extension_id = name
            response = await self._peer.ask("GetExtension", request, self._issue(user_id))
        extension: extension_pb2.Extension = response.extension
        return extension

    async def load(self, user_id: str, extension_id: str) -> None:
        """Load an extension; one that is loaded stays so."""
        request = extension_api.LoadExtensionRequest(extension_id=extension_id)
        await self._peer.ask("LoadExtension", request, self._issue(user_id), timeout_seconds=_LOAD_SECONDS)

    async def tools(self, user_id: str, extension_id: str) -> list[extension_pb2.Tool]:
        """List a loaded extension's tools."""
        tools: list[extension_pb2.Tool] = []
        request = extension_api.ListToolsRequest(extension_id=extension_id, page_size=_TOOL_PAGE)
        while True:
            response = await self._peer.ask("ListTools", request, self._issue(user_id))
            tools += response.tools
            if not response.next_page_token:
                return tools
            request.page_token = response.next_page_token

    def call(
        self, user_id: str, extension_id: str, tool: str, arguments_json: str, *, call_id: str, timeout_seconds: float
    ) -> AsyncIterator[Any]:
        """Call a tool; gives CallToolResponses, the outcome last."""
        request = extension_api.CallToolRequest(
            call_id=call_id, extension_id=extension_id, tool_name=tool, arguments_json=arguments_json
        )
        return self._peer.stream("CallTool", request, self._issue(user_id), timeout_seconds=timeout_seconds)

    async def cancel(self, user_id: str, extension_id: str, call_id: str) -> None:
        """End a running call."""
        request = extension_api.CancelToolCallRequest(call_id=call_id, extension_id=extension_id)
        await self._peer.ask("CancelToolCall", request, self._issue(user_id))
