"""Watching: history, then what comes, and nothing twice."""

import asyncio
from contextlib import aclosing
from typing import Any, Self

import pytest

from gaggle.conversation.v1 import conversation_pb2
from tests.conversation.talking import Talker, numbered, pairs, refused

pytestmark = pytest.mark.mesh


class Watching:
    """One stream, read in the background of the test."""

    def __init__(self, talker: Talker, conversation_id: str, from_sequence: int | None = None) -> None:
        """Watch from a sequence; None: what comes."""
        self._stream = talker.watch(conversation_id, from_sequence)

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leave."""
        await self._stream.aclose()  # type: ignore[attr-defined]

    async def next(self) -> tuple[str, Any]:
        """Wait for the next event: its kind, and what it says. Ends with ("end", None)."""
        async for response in self._stream:
            kind = response.WhichOneof("event")
            if kind == "messages":
                return kind, pairs(response.messages.messages)
            if kind == "truncated":
                return kind, (response.truncated.first, response.truncated.last)
            return kind, response.caught_up.last_sequence if kind == "caught_up" else None
        return "end", None

    async def until(self, wanted: str) -> list[tuple[str, Any]]:
        """Wait for an event of a kind; gives all up to it."""
        seen = [await self.next()]
        while seen[-1][0] != wanted:
            assert seen[-1][0] != "end", seen
            seen.append(await self.next())
        return seen


async def test_history_comes_first(talker: Talker) -> None:
    """A watcher gets the history from its sequence, is told where it stands, and then gets each append as it comes."""
    texts = [f"m{number}" for number in range(1, 301)]
    conversation_id = await talker.create(*texts)
    async with Watching(talker, conversation_id, 41) as watching:
        *history, caught_up = await watching.until("caught_up")
        assert [pair for _, found in history for pair in found] == numbered(*texts[40:], first=41)
        assert caught_up == ("caught_up", 300)
        for number in range(301, 304):
            await talker.say(conversation_id, f"m{number}")
            assert await watching.next() == ("messages", [(number, f"m{number}")])


async def test_only_what_comes(talker: Talker) -> None:
    """Without a sequence a watcher gets only what is appended from then on."""
    conversation_id = await talker.create("old")
    async with Watching(talker, conversation_id) as watching:
        assert await watching.next() == ("caught_up", 1)
        await talker.say(conversation_id, "new")
        assert await watching.next() == ("messages", [(2, "new")])


async def test_a_cut_stream_resumes(talker: Talker) -> None:
    """A client cut off again and again that resumes behind what it saw last gets each message once, in order."""
    conversation_id = await talker.create()
    count = 120

    async def write() -> None:
        for number in range(1, count + 1):
            await talker.say(conversation_id, f"m{number}")

    writing = asyncio.create_task(write())
    seen: list[tuple[int, str]] = []
    cuts = 0
    while len(seen) < count:
        enough = len(seen) + 7
        async with aclosing(talker.watch(conversation_id, len(seen) + 1)) as stream:  # type: ignore[type-var]
            async for response in stream:
                seen += pairs(response.messages.messages)
                if len(seen) >= min(enough, count):
                    break
        cuts += 1
    await writing
    assert cuts > 2
    assert seen == numbered(*(f"m{number}" for number in range(1, count + 1)))


async def test_a_truncation_is_told(talker: Talker) -> None:
    """A watcher hears which of the messages it saw are gone; one that comes later hears of the gap in its place."""
    conversation_id = await talker.create("one", "two", "three")
    async with Watching(talker, conversation_id, 1) as watching:
        await watching.until("caught_up")
        await talker("TruncateConversation", conversation_id=conversation_id, drop_last=2)
        assert await watching.next() == ("truncated", (2, 3))
        await talker.say(conversation_id, "four")
        assert await watching.next() == ("messages", [(4, "four")])
    async with Watching(talker, conversation_id, 1) as later:
        assert await later.until("caught_up") == [
            ("messages", [(1, "one")]),
            ("truncated", (2, 3)),
            ("messages", [(4, "four")]),
            ("caught_up", 4),
        ]


async def test_what_retention_cut_is_told(talker: Talker) -> None:
    """A watcher that starts before what retention left is told of the gap, then gets the rest."""
    conversation_id = await talker.create(retention=conversation_pb2.Retention(max_messages=2))
    await talker.say(conversation_id, *map(str, range(1, 101)))
    async with Watching(talker, conversation_id, 1) as watching:
        assert await watching.until("caught_up") == [
            ("truncated", (1, 98)),
            ("messages", [(99, "99"), (100, "100")]),
            ("caught_up", 100),
        ]


async def test_a_deletion_ends_the_stream(talker: Talker) -> None:
    """Deleting a conversation tells its watchers, and the stream ends in order."""
    conversation_id = await talker.create("one")
    async with Watching(talker, conversation_id) as watching:
        await watching.until("caught_up")
        await talker("DeleteConversation", conversation_id=conversation_id)
        assert await watching.next() == ("deleted", None)
        assert await watching.next() == ("end", None)


async def test_many_watch_one(talker: Talker) -> None:
    """Twenty watchers of one conversation each get every message of concurrent writers, once and in order."""
    conversation_id = await talker.create()
    watching = [asyncio.create_task(talker.watched(conversation_id, 1, until=40)) for _ in range(20)]
    await asyncio.gather(*(talker.say(conversation_id, f"w{number}") for number in range(40)))
    expected = await talker.history(conversation_id)
    assert len(expected) == 40
    for seen in await asyncio.gather(*watching):
        assert seen == expected


async def test_nobody_watches_anothers(talker: Talker, stranger: Talker) -> None:
    """Watching another user's conversation, or none, is NOT_FOUND."""
    conversation_id = await talker.create("secret")
    for wanted in (conversation_id, "none"):
        async with Watching(stranger, wanted, 1) as watching:
            answer = await refused(watching.next())
            assert (answer.code, answer.facts["id"]) == ("NOT_FOUND", wanted)
