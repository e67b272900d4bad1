"""A user's calls of the agent service, and what its streams say."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import grpc.aio
import psutil

from gaggle.agent.v1 import agent_service_pb2 as api
from gaggle.agent.v1 import agent_service_pb2_grpc, turn_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as conversation_api
from gaggle.conversation.v1 import conversation_service_pb2_grpc, message_pb2
from gaggle.extension.v1 import extension_pb2, extension_service_pb2_grpc
from gaggle.extension.v1 import extension_service_pb2 as extension_api
from tests.conditions import eventually
from tests.mcp_servers import servers
from tests.mesh_fixture import Mesh

TIMEOUT_SECONDS = 60.0
SCRIPTED = "scripted:one"
_BETWEEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL})


def said(text: str) -> list[message_pb2.ContentPart]:
    """A message of one text."""
    return [message_pb2.ContentPart(text=message_pb2.TextContent(text=text))]


class Turns:
    """One user's way to the agent: `await user("GetTurn", turn_id=...)`, and turns as lists of events."""

    def __init__(self, mesh: Mesh, user: str, channels: Sequence[grpc.aio.Channel], others: Any) -> None:
        """`channels` lead to the replicas; `others` to conversation and extension."""
        self.mesh = mesh
        self.user = user
        self.metadata = mesh.metadata(user)
        self.stubs: list[Any] = [agent_service_pb2_grpc.AgentServiceStub(channel) for channel in channels]
        self.conversations: Any = conversation_service_pb2_grpc.ConversationServiceStub(others["conversation"])
        self.extensions: Any = (
            extension_service_pb2_grpc.ExtensionServiceStub(others["extension"]) if "extension" in others else None
        )

    async def __call__(self, method: str, *, replica: int = 0, **fields: Any) -> Any:
        """Make a unary call; `fields` are the request's."""
        request = getattr(api, f"{method}Request")(**fields)
        return await getattr(self.stubs[replica], method)(request, metadata=self.metadata, timeout=TIMEOUT_SECONDS)

    async def conversation(self, *texts: str, **fields: Any) -> str:
        """Create a conversation that holds these texts; gives its id."""
        request = conversation_api.CreateConversationRequest(**fields)
        created = await self.conversations.CreateConversation(request, metadata=self.metadata, timeout=TIMEOUT_SECONDS)
        conversation_id = str(created.conversation.id)
        for text in texts:
            message = message_pb2.Message(role=message_pb2.ROLE_USER, content=said(text))
            await self.append(conversation_id, message)
        return conversation_id

    async def append(self, conversation_id: str, message: message_pb2.Message) -> None:
        """Append a message past the agent."""
        append = conversation_api.AppendMessagesRequest(conversation_id=conversation_id, messages=[message])
        await self.conversations.AppendMessages(append, metadata=self.metadata, timeout=TIMEOUT_SECONDS)

    async def messages(self, conversation_id: str) -> list[message_pb2.Message]:
        """Read a conversation's newest thousand messages."""
        request = conversation_api.ListMessagesRequest(conversation_id=conversation_id, page_size=1000)
        response = await self.conversations.ListMessages(request, metadata=self.metadata, timeout=TIMEOUT_SECONDS)
        return list(response.messages)

    async def stream(self, *, replica: int = 0, seconds: float = TIMEOUT_SECONDS, **fields: Any) -> AsyncIterator[Any]:
        """Chat; close the iterator to leave."""
        call = self.stubs[replica].Chat(api.ChatRequest(**fields), metadata=self.metadata, timeout=seconds)
        try:
            async for response in call:
                yield response.event
        finally:
            call.cancel()

    async def chat(self, text: str, *, replica: int = 0, **fields: Any) -> list[turn_pb2.TurnEvent]:
        """Chat to the stream's end; gives all events."""
        return [event async for event in self.stream(replica=replica, message=said(text), **fields)]

    async def until(self, kind: str, **fields: Any) -> list[turn_pb2.TurnEvent]:
        """Chat until an event of a kind has come, then leave."""
        events = []
        async with aclosing(self.stream(**fields)) as stream:  # type: ignore[type-var]
            async for event in stream:
                events.append(event)
                if event.WhichOneof("event") == kind:
                    return events
        raise AssertionError(f"the stream ended without {kind}: {events}")

    async def watch(self, turn_id: str, *, after: int = 0, replica: int = 0) -> list[turn_pb2.TurnEvent]:
        """Watch a turn to the stream's end; gives all events."""
        request = api.WatchTurnRequest(turn_id=turn_id, after_position=after)
        call = self.stubs[replica].WatchTurn(request, metadata=self.metadata, timeout=TIMEOUT_SECONDS)
        return [response.event async for response in call]

    async def persist(self, *, replica: int = 0, within: float = 60.0, **fields: Any) -> list[turn_pb2.TurnEvent]:
        """Chat as a client does that comes back after every fault, with its place in the stream."""
        events: list[turn_pb2.TurnEvent] = []
        position = int(fields.pop("after_position", 0))
        ends = asyncio.get_running_loop().time() + within
        while True:
            left = max(ends - asyncio.get_running_loop().time(), 0.1)
            try:
                async for event in self.stream(replica=replica, seconds=left, after_position=position, **fields):
                    events.append(event)
                    position = max(position, event.position)
                    if event.WhichOneof("event") == "ended":
                        return events
            except grpc.aio.AioRpcError as error:
                if error.code() not in _BETWEEN or asyncio.get_running_loop().time() > ends:
                    raise
                await asyncio.sleep(0.05)
            if asyncio.get_running_loop().time() > ends:
                raise AssertionError(f"the turn has not ended: {events}")

    async def status(self, turn_id: str, wanted: "turn_pb2.TurnStatus.ValueType", *, within: float = 30.0) -> Any:
        """Wait until a turn is in a state; gives it."""

        async def there() -> bool:
            return bool((await self("GetTurn", turn_id=turn_id)).turn.status == wanted)

        await eventually(there, within=within, what=turn_pb2.TurnStatus.Name(wanted))
        return (await self("GetTurn", turn_id=turn_id)).turn

    async def load_odd(self) -> None:
        """Register and load the odd MCP server as extension `odd`."""
        command, *args = servers.ODD
        config = extension_pb2.ExtensionConfig(name="odd", stdio=extension_pb2.StdioConfig(cmd=command, args=args))
        register = extension_api.RegisterExtensionRequest(config=config)
        await self.extensions.RegisterExtension(register, metadata=self.metadata, timeout=TIMEOUT_SECONDS)
        load = extension_api.LoadExtensionRequest(name="odd")
        await self.extensions.LoadExtension(load, metadata=self.metadata, timeout=TIMEOUT_SECONDS)


def kinds(events: Sequence[turn_pb2.TurnEvent]) -> list[str]:
    """What kinds of events there were, text of several pieces counted once."""
    found: list[str] = []
    for event in events:
        kind = str(event.WhichOneof("event"))
        if kind == "tool_progress" or (found and found[-1] == kind == "text_delta"):
            continue
        found.append(kind)
    return found


def text(events: Sequence[turn_pb2.TurnEvent]) -> str:
    """What a client shows: the text of the newest step, begun anew where the stream says so."""
    shown: list[str] = []
    for event in events:
        kind = event.WhichOneof("event")
        if kind == "text_delta":
            shown.append(event.text_delta.text)
        elif kind in {"restarted", "tool_result"}:
            shown.clear()
    return "".join(shown)


def ended(events: Sequence[turn_pb2.TurnEvent]) -> turn_pb2.TurnEnded:
    """How the turn ended."""
    assert events[-1].WhichOneof("event") == "ended", events
    return events[-1].ended


def spoken(messages: Sequence[message_pb2.Message]) -> list[tuple[str, str]]:
    """Role and gist of each message."""
    return [(message_pb2.Role.Name(one.role).removeprefix("ROLE_").lower(), _gist(one)) for one in messages]


def _gist(message: message_pb2.Message) -> str:
    parts = []
    for part in message.content:
        kind = str(part.WhichOneof("kind"))
        if kind == "text":
            parts.append(part.text.text)
        elif kind == "tool_request":
            parts.append(f"call {part.tool_request.call.name}")
        elif kind == "tool_response":
            response = part.tool_response
            result = response.result.content
            parts.append(response.error or (result[0].text.text if result else ""))
        else:
            parts.append(kind)
    return " | ".join(parts)


@contextmanager
def store_away(mesh: Mesh) -> Iterator[None]:
    """Stop PostgreSQL with all its processes, as a store that hangs."""
    parent = psutil.Process(mesh.pid("postgres"))
    stopped = [parent, *parent.children(recursive=True)]
    for process in stopped:
        process.suspend()
    try:
        yield
    finally:
        for process in reversed(stopped):
            process.resume()
