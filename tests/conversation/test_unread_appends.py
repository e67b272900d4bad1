"""Appends that follow on the head last seen: without a read where nobody else writes, never over what others wrote."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import pytest

from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.state.v1 import document_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as api
from gaggle.conversation.v1 import message_pb2
from services.conversation import store as stores
from services.conversation.index import UserIndexes
from services.conversation.owning import Owner
from services.conversation.reading import Reader
from services.conversation.store import PAGE_CLEAN_UP, ConversationStore, WindowCache, head_key
from services.conversation.writing import Writer
from services.runtime.errors import ConflictError, InvalidArgumentError, NotFoundError, UnavailableError
from services.runtime.state import CommitFailedError, Put, Remove
from tests.conversation.test_layout_model import SETTINGS, USER, pairs
from tests.runtime.memory import MemoryBroker, MemoryState, make_outbox

_CACHE_BYTES = 1024 * 1024


class Replica:
    """A process of the service, with memory of its own, on a store that it shares."""

    def __init__(self, state: MemoryState, name: str) -> None:
        self.state = state
        self.windows = WindowCache(_CACHE_BYTES, 5)
        clean_ups: dict[str, Any] = {}
        self.broker = MemoryBroker()
        self.outbox = make_outbox(state, self.broker, holder=name, clean_ups=clean_ups)
        self.store = ConversationStore(state, self.outbox, self.windows)  # type: ignore[arg-type]
        clean_ups[PAGE_CLEAN_UP] = self.store.clean_up
        indexes = UserIndexes(state)  # type: ignore[arg-type]
        self.writer = Writer(self.store, indexes, SETTINGS)
        self.reader = Reader(self.store, indexes, SETTINGS)
        self.owner = Owner(self.store, indexes, self.writer, "conversation")

    async def append(self, text: str, *, conversation_id: str = "c", **fields: Any) -> api.AppendMessagesResponse:
        part = message_pb2.ContentPart(text=message_pb2.TextContent(text=text))
        message = message_pb2.Message(role=message_pb2.ROLE_USER, content=[part])
        request = api.AppendMessagesRequest(conversation_id=conversation_id, messages=[message], **fields)
        return api.AppendMessagesResponse.FromString(await self.writer.append(USER, request))

    async def reads_of(self, text: str, **fields: Any) -> int:
        """How often an append asked the store."""
        before = self.state.reads
        await self.append(text, **fields)
        return self.state.reads - before

    async def history(self) -> list[tuple[int, str]]:
        request = api.ListMessagesRequest(conversation_id="c", page_size=1000, after_sequence=0)
        return pairs(api.ListMessagesResponse.FromString(await self.reader.messages(USER, request)))


@contextlib.contextmanager
def later(seconds: float) -> Iterator[None]:
    """Have replicas think that so much time has passed."""
    now = WindowCache.now()
    with patch.object(WindowCache, "now", staticmethod(lambda: now + seconds)):
        yield


@pytest.fixture
async def two() -> AsyncIterator[list[Replica]]:
    """Two replicas, and a conversation that the first has made."""
    state = MemoryState()
    replicas = [Replica(state, name) for name in ("one", "two")]
    for replica in replicas:
        await replica.outbox.start()
    await replicas[0].writer.create(USER, api.CreateConversationRequest(conversation_id="c"))
    yield replicas
    for replica in replicas:
        await replica.outbox.stop()


async def test_one_writer_reads_nothing(two: list[Replica]) -> None:
    """Who made the conversation, wrote to it or read it last appends without asking the store."""
    assert [await two[0].reads_of(text) for text in "abc"] == [0, 0, 0]
    await two[1].history()
    assert await two[1].reads_of("d") == 0
    assert await two[0].history() == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]


async def test_a_turn_reads_once(two: list[Replica]) -> None:
    """Who has looked at a conversation takes it and writes to it without asking the store again."""
    await two[1].store.head(USER, "c")
    before = two[1].state.reads
    for fence in (1, 2):
        request = api.RaiseFenceRequest(conversation_id="c", request_id=f"f{fence}")
        assert api.RaiseFenceResponse.FromString(await two[1].writer.raise_fence(USER, request)).fence == fence
        await two[1].append("a", fence=fence, request_id=f"a{fence}")
    assert two[1].state.reads == before
    again = await two[1].writer.raise_fence(USER, api.RaiseFenceRequest(conversation_id="c", request_id="f1"))
    assert api.RaiseFenceResponse.FromString(again).fence == 1
    assert (await two[0].store.head(USER, "c")).fence == 2


async def test_who_lost_reads_for_a_while(two: list[Replica]) -> None:
    """A head that somebody else has followed on is not written over; its replica then reads before each append."""
    await two[0].append("a")
    await two[1].append("b")
    await two[0].append("c")
    assert await two[0].reads_of("d") == 1
    with later(11):
        assert await two[0].reads_of("e") == 0
    assert [text for _, text in await two[1].history()] == ["a", "b", "c", "d", "e"]


async def test_replicas_that_share_the_callers_read_first(two: list[Replica]) -> None:
    """Where a balancer spreads the callers, nearly all appends soon read first; with luck they cease to."""

    async def lost(conversations: range) -> int:
        """How many of so many conversations, each written to by turns, were followed on in vain."""
        commits = 0

        def count(operations: Sequence[Put | Remove]) -> None:
            nonlocal commits
            commits += sum(":r" in one.key and one.key.startswith("chat:") for one in operations)

        two[0].state.before_commit = count
        for number in conversations:
            name = f"n{number}"
            await two[0].writer.create(USER, api.CreateConversationRequest(conversation_id=name))
            await two[1].append("a", conversation_id=name)
            await two[0].append("b", conversation_id=name)
        return commits - 3 * len(conversations)

    assert 6 <= await lost(range(40)) <= 12
    assert await lost(range(40, 104)) == 2
    for _ in range(2000):
        await two[0].append("c")
    assert await two[0].reads_of("d") == 0


async def test_an_old_head_is_read_anew(two: list[Replica]) -> None:
    """A head is followed on for a minute, which is far less than revisions' rows stay."""
    await two[0].append("a")
    with later(61):
        assert await two[0].reads_of("b") == 1


async def test_many_writers_at_two_replicas(two: list[Replica]) -> None:
    """However two replicas follow on old heads, each message is there once, where its answer says."""
    with patch.object(stores, "_RIVALS_SECONDS", 0.0):
        texts = [f"{replica}-{number}" for number in range(40) for replica in (0, 1)]
        given: dict[int, str] = {}

        async def write(text: str) -> None:
            while True:
                try:
                    answer = await two[int(text[0])].append(text, request_id=text)
                except ConflictError:
                    continue
                given[answer.first_sequence] = text
                return

        await asyncio.gather(*map(write, texts))
    found = await two[1].history()
    assert [sequence for sequence, _ in found] == list(range(1, len(texts) + 1))
    assert dict(found) == given
    assert sorted(given.values()) == sorted(texts)


async def test_a_repeated_request_gets_its_first_answer(two: list[Replica]) -> None:
    """A request_id has one effect and one answer, though its row is not read, and though its sequence has passed."""
    first = await two[0].append("a", request_id="r", expected_sequence=0)
    assert await two[0].append("a", request_id="r", expected_sequence=0) == first
    assert await two[1].append("a", request_id="r", expected_sequence=0) == first
    await two[0].append("b")
    assert await two[0].append("a", request_id="r", expected_sequence=0) == first
    with pytest.raises(InvalidArgumentError) as refused:
        await two[0].append("other", request_id="r", expected_sequence=0)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED
    assert await two[0].history() == [(1, "a"), (2, "b")]


async def test_a_request_without_conditions_is_not_done_twice(two: list[Replica]) -> None:
    """A request_id alone keeps an append from happening twice, whatever the head in memory would take."""
    first = await two[0].append("a", request_id="r")
    assert await two[0].append("a", request_id="r") == first
    assert await two[1].append("a", request_id="r") == first
    assert await two[0].history() == [(1, "a")]


async def test_conditions_are_those_of_the_newest(two: list[Replica]) -> None:
    """expected_sequence and fence are judged by what is there, not by what was seen."""
    await two[0].append("a")
    await two[1].append("b")
    assert (await two[0].append("c", expected_sequence=2)).first_sequence == 3
    await two[1].history()
    await two[0].writer.raise_fence(USER, api.RaiseFenceRequest(conversation_id="c"))
    with pytest.raises(ConflictError) as refused:
        await two[1].append("d", fence=0)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_STALE_FENCE
    with pytest.raises(ConflictError) as refused:
        await two[1].append("d", expected_sequence=2)
    assert refused.value.reason == error_reason_pb2.ERROR_REASON_STALE_SEQUENCE
    assert refused.value.metadata == {"expected_sequence": "2", "last_sequence": "3"}
    assert (await two[1].append("d", fence=1, expected_sequence=3)).first_sequence == 4


CHANGES: dict[str, tuple[str, Any]] = {
    "title": ("update", api.UpdateConversationRequest(conversation_id="c", title="new")),
    "truncation": ("truncate", api.TruncateConversationRequest(conversation_id="c", all=True)),
    "summary": ("compact", api.CompactConversationRequest(conversation_id="c", summary="s")),
    "fork": ("fork", api.ForkConversationRequest(conversation_id="c", new_conversation_id="f")),
    "fence": ("raise_fence", api.RaiseFenceRequest(conversation_id="c")),
}


@pytest.mark.parametrize(("method", "request_"), CHANGES.values(), ids=CHANGES.keys())
async def test_no_change_is_written_over(two: list[Replica], method: str, request_: Any) -> None:
    """Whatever another replica has changed is there after an append by one that had seen what was before."""
    await two[0].append("a")
    await two[1].history()
    await getattr(two[0].writer, method)(USER, request_)
    changed = await two[0].store.head(USER, "c")
    await two[1].append("b")
    head = await two[0].store.head(USER, "c")
    assert head.revision == changed.revision + 1
    assert head.next_sequence == changed.next_sequence + 1
    assert head.message_count == changed.message_count + 1
    for name in ("title", "metadata", "retention"):
        assert getattr(head.conversation, name) == getattr(changed.conversation, name)
    for name in ("fence", "summary_sequence", "first_sequence", "lineage_id", "truncated"):
        assert getattr(head, name) == getattr(changed, name)


async def test_nothing_comes_back_from_the_dead(two: list[Replica]) -> None:
    """A conversation that another replica has deleted is not found, and stays away."""
    await two[0].append("a")
    await two[1].history()
    await two[0].writer.delete(USER, api.DeleteConversationRequest(conversation_id="c"))
    for replica in two:
        with pytest.raises(NotFoundError):
            await replica.append("b")
        with pytest.raises(NotFoundError):
            await replica.history()


async def test_what_has_run_out_takes_nothing_more(two: list[Replica]) -> None:
    """A conversation past its time to live is not found, though its head is at hand."""
    await two[0].append("a")
    with patch.object(stores, "expired", return_value=True), pytest.raises(NotFoundError):
        await two[0].append("b")
    assert await two[0].history() == [(1, "a")]


async def test_a_store_that_was_away_is_read(two: list[Replica]) -> None:
    """After an answer that never came nothing in memory is believed; what was committed all the same counts once."""
    away = False

    def lose(_operations: Any) -> None:
        nonlocal away
        if away:
            away = False
            raise CommitFailedError(UnavailableError("statestore"))

    two[0].state.after_commit = lose
    await two[0].append("a")
    away = True
    # The outbox finds its row: it was committed.
    assert (await two[0].append("b", request_id="r")).first_sequence == 2
    two[0].state.before_commit = lose
    with patch.object(two[0].outbox, "_settle", side_effect=UnavailableError("statestore")):
        away = True
        with pytest.raises(UnavailableError):
            await two[0].append("c")
    assert two[0].windows.latest(head_key(USER, "c")) is None
    await two[0].append("d")
    assert [text for _, text in await two[0].history()] == ["a", "b", "d"]


async def test_a_reader_notices_that_the_store_was_away(two: list[Replica]) -> None:
    """A read that fails is enough for nothing in memory to be believed."""
    await two[0].append("a")
    with (
        patch.object(two[0].state, "get", side_effect=UnavailableError("statestore")),
        pytest.raises(UnavailableError),
    ):
        await two[0].history()
    assert await two[0].reads_of("b") == 1


async def test_a_caller_who_gives_up_costs_one_conversation(two: list[Replica]) -> None:
    """What became of an append that was given up is read, and the other conversations are followed on."""
    await two[0].writer.create(USER, api.CreateConversationRequest(conversation_id="d"))
    with (
        patch.object(two[0].outbox, "commit_reserved", side_effect=asyncio.CancelledError),
        pytest.raises(asyncio.CancelledError),
    ):
        await two[0].append("a")
    assert await two[0].reads_of("b") == 1
    assert await two[0].reads_of("c", conversation_id="d") == 0


async def test_every_revision_names_its_events(two: list[Replica]) -> None:
    """What tells of each revision can be published again, by whatever replica it was written."""
    for number in range(150):
        await two[number % 2].append(str(number))
    head = await two[0].store.head(USER, "c")
    references = await two[1].owner._references(USER, head, range(1, head.revision + 2))
    assert [one.revision for one in references] == list(range(1, head.revision + 1))
    assert len({(one.slot, one.epoch, one.number) for one in references}) == head.revision


async def test_a_read_that_was_overtaken_is_not_followed(two: list[Replica]) -> None:
    """A head that was read while a newer one was written does not take its place in memory."""
    await two[0].append("a")
    key = head_key(USER, "c")
    old = await two[0].store.head(USER, "c")
    began = WindowCache.now()
    await two[0].append("b")
    for seen_at in (began, WindowCache.now()):
        two[0].windows.put(key, old, old.SerializeToString(), seen_at)
        assert await two[0].reads_of("c") == 0
    # What a store shows that has lost its newest state is believed in the end.
    two[0].windows.put(key, old, old.SerializeToString(), WindowCache.now() + 11)
    window = two[0].windows.get(key, 0)
    assert window is not None
    assert window.revision == old.revision


async def test_the_memory_is_bounded() -> None:
    """Windows and what was answered from them stay within their bytes, the oldest going first."""
    windows = WindowCache(1000, 5)
    head = document_pb2.Head(next_sequence=1)
    for number in range(10):
        windows.put(f"k{number}", head, b"x" * 300, WindowCache.now())
    assert [number for number in range(10) if windows.get(f"k{number}", 0)] == [7, 8, 9]
    window = windows.get("k9", 0)
    assert window is not None
    windows.answered("k9", window, 50, b"y" * 300)
    assert windows.get("k7", 0) is None
    for size in range(10):
        windows.answered("k9", window, size, b"")
    assert len(window.answers) == 4
    windows.put("big", head, b"x" * 2000, WindowCache.now())
    assert windows.get("big", 0) is None
    nothing = WindowCache(0, 5)
    nothing.put("k", head, b"x", WindowCache.now())
    assert nothing.get("k", 0) is None
