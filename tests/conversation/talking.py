"""A user's calls of the conversation service, and what a refusal says."""

from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gaggle.conversation.v1 import conversation_service_pb2 as api
from gaggle.conversation.v1 import conversation_service_pb2_grpc, message_pb2

TIMEOUT_SECONDS = 20.0
Metadata = tuple[tuple[str, str], ...]


class Talker:
    """One user's way to the service: `await talker("GetConversation", conversation_id=...)`."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata, *, timeout: float = TIMEOUT_SECONDS) -> None:
        """`metadata` goes with every call; `timeout` in seconds."""
        self.channel = channel
        self.metadata = metadata
        self.timeout = timeout
        self._stub: Any = conversation_service_pb2_grpc.ConversationServiceStub(channel)

    async def __call__(self, method: str, **fields: Any) -> Any:
        """Make a unary call; `fields` are the request's."""
        request = getattr(api, f"{method}Request")(**fields)
        return await getattr(self._stub, method)(request, metadata=self.metadata, timeout=self.timeout)

    async def create(self, *texts: str, **fields: Any) -> str:
        """Create a conversation that holds these texts; gives its id."""
        created = await self("CreateConversation", **fields)
        if texts:
            await self.say(created.conversation.id, *texts)
        return str(created.conversation.id)

    async def say(self, conversation_id: str, *texts: str, **fields: Any) -> Any:
        """Append one message a text, by the user."""
        messages = [text_message(text) for text in texts]
        return await self("AppendMessages", conversation_id=conversation_id, messages=messages, **fields)

    async def get(self, conversation_id: str) -> Any:
        """Read a conversation."""
        return (await self("GetConversation", conversation_id=conversation_id)).conversation

    async def history(self, conversation_id: str) -> list[tuple[int, str]]:
        """Read all messages: sequence and text, ascending."""
        found: list[tuple[int, str]] = []
        token = ""
        while True:
            page = await self(
                "ListMessages", conversation_id=conversation_id, after_sequence=0, page_size=1000, page_token=token
            )
            found += pairs(page.messages)
            token = page.next_page_token
            if not token:
                return found

    async def watch(self, conversation_id: str, from_sequence: int | None = None) -> AsyncIterator[Any]:
        """Watch a conversation; close the iterator to leave."""
        request = api.WatchRequest(conversation_id=conversation_id, from_sequence=from_sequence)
        stream = self._stub.Watch(request, metadata=self.metadata, timeout=self.timeout)
        try:
            async for response in stream:
                yield response
        finally:
            stream.cancel()

    async def watched(self, conversation_id: str, from_sequence: int | None, *, until: int) -> list[tuple[int, str]]:
        """Watch until the message with the sequence `until` has come; gives all that came."""
        seen: list[tuple[int, str]] = []
        async with aclosing(self.watch(conversation_id, from_sequence)) as stream:  # type: ignore[type-var]
            async for response in stream:
                seen += pairs(response.messages.messages)
                if seen and seen[-1][0] >= until:
                    return seen
        raise AssertionError(f"the stream ended before {until}: {seen}")


def text_message(
    text: str, role: "message_pb2.Role.ValueType" = message_pb2.ROLE_USER, **fields: Any
) -> message_pb2.Message:
    """Make a message of one text."""
    part = message_pb2.ContentPart(text=message_pb2.TextContent(text=text))
    return message_pb2.Message(role=role, content=[part], **fields)


def pairs(messages: Iterable[message_pb2.Message]) -> list[tuple[int, str]]:
    """Sequence and text of each message."""
    return [(one.sequence, one.content[0].text.text or one.content[0].summary.text) for one in messages]


def numbered(*texts: str, first: int = 1) -> list[tuple[int, str]]:
    """What `pairs` gives for these texts from a sequence on."""
    return list(enumerate(texts, start=first))


@dataclass(frozen=True)
class Refusal:
    """An error, as the contract describes it."""

    code: str
    reason: str
    message: str
    facts: dict[str, str] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    """Those that BadRequest names."""

    retry_after: float | None = None
    """Seconds, from RetryInfo."""


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """Read the details of an error."""
    reason, facts, fields, retry_after = "", {}, [], None
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            assert info.domain == "gaggle"
            reason, facts = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            fields = [one.field for one in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    return Refusal(error.code().name, reason, str(error.details()), facts, tuple(fields), retry_after)


async def refused(call: Awaitable[Any]) -> Refusal:
    """Make a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return refusal_of(raised.value)
