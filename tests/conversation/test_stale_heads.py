"""What another replica lets go of between the read of a head and that of what the head names."""

from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import patch

import pytest

from gaggle.conversation.v1 import conversation_service_pb2 as api
from gaggle.conversation.v1 import message_pb2
from services.conversation.index import UserIndexes
from services.conversation.reading import Reader
from services.conversation.store import PAGE_CLEAN_UP, ConversationStore, WindowCache, head_key
from services.conversation.writing import Writer
from services.runtime.errors import StateMissingError
from services.runtime.state import Item
from tests.conversation.test_layout_model import SETTINGS, SMALL, USER
from tests.runtime.memory import MemoryBroker, MemoryState, make_outbox, settled

_KEY = head_key(USER, "c")


class _Stale(MemoryState):
    """Gives an old head once before the one that is there."""

    old: Item | None = None

    async def get(self, key: str) -> Item | None:
        if key == _KEY and self.old is not None:
            old, self.old = self.old, None
            return old
        return await super().get(key)


class _Replica:
    """A conversation of forty messages in pages, and its head as it was before all of them were truncated."""

    def __init__(self) -> None:
        self.state = _Stale()
        clean_ups: dict[str, Any] = {}
        self.outbox = make_outbox(self.state, MemoryBroker(), clean_ups=clean_ups)
        self.store = ConversationStore(self.state, self.outbox, WindowCache(100_000, 5))  # type: ignore[arg-type]
        clean_ups[PAGE_CLEAN_UP] = self.store.clean_up
        indexes = UserIndexes(self.state)  # type: ignore[arg-type]
        self.writer = Writer(self.store, indexes, SETTINGS)
        self.reader = Reader(self.store, indexes, SETTINGS)

    async def prepare(self) -> Item:
        """Fill it; gives the head as it is then."""
        await self.outbox.start()
        await self.writer.create(USER, api.CreateConversationRequest(conversation_id="c"))
        part = message_pb2.ContentPart(text=message_pb2.TextContent(text="x"))
        messages = [message_pb2.Message(role=message_pb2.ROLE_USER, content=[part]) for _ in range(40)]
        await self.writer.append(USER, api.AppendMessagesRequest(conversation_id="c", messages=messages))
        return self.state.items[_KEY]

    async def truncate(self) -> None:
        """Let everything go, and wait until its pages are gone, but the first, in which the truncation begins."""
        await self.writer.truncate(USER, api.TruncateConversationRequest(conversation_id="c", all=True))
        await settled(lambda: sum(":p" in key for key in self.state.items) == 1)

    async def listed(self) -> int:
        """How many messages a page from the beginning has."""
        request = api.ListMessagesRequest(conversation_id="c", page_size=100, after_sequence=0)
        return len(api.ListMessagesResponse.FromString(await self.reader.messages(USER, request)).messages)


@pytest.fixture
async def replica() -> AsyncIterator[_Replica]:
    """With small pages."""
    with patch.multiple("services.conversation.domain", **SMALL):
        one = _Replica()
        yield one
        await one.outbox.stop()


async def test_a_read_goes_on_with_the_newer_head(replica: _Replica) -> None:
    """A page that a truncation took away meanwhile is no lost data: what is there now is answered."""
    old = await replica.prepare()
    assert await replica.listed() == 40
    await replica.truncate()
    replica.state.old = old
    assert await replica.listed() == 0
    replica.state.old = old
    context = await replica.reader.context(USER, api.GetContextRequest(conversation_id="c"))
    assert not api.GetContextResponse.FromString(context).messages


async def test_a_change_begins_again_with_the_newer_head(replica: _Replica) -> None:
    """A change that meets such a page is made to what is there now."""
    old = await replica.prepare()
    await replica.truncate()
    replica.state.old = old
    request = api.TruncateConversationRequest(conversation_id="c", drop_last=30)
    await replica.writer.truncate(USER, request)
    assert await replica.listed() == 0


async def test_lost_data_are_told(replica: _Replica) -> None:
    """A page that is missing although nothing has changed is an error, for readers and writers."""
    await replica.prepare()
    for key in [key for key in replica.state.items if ":p" in key]:
        del replica.state.items[key]
    with pytest.raises(StateMissingError):
        await replica.listed()
    with pytest.raises(StateMissingError):
        await replica.writer.truncate(USER, api.TruncateConversationRequest(conversation_id="c", drop_last=30))
