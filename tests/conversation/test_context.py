"""What a model is given, summaries, and search."""

from typing import Any

import pytest

from gaggle.conversation.v1 import message_pb2
from tests.conditions import eventually
from tests.conversation.talking import Talker, numbered, pairs, refused, text_message

pytestmark = pytest.mark.mesh

_WITHIN = 30.0


async def _counted(talker: Talker, *tokens: int) -> str:
    """A conversation whose messages m1, m2, ... count so many tokens."""
    conversation_id = await talker.create()
    messages = [
        text_message(f"m{number}", usage=message_pb2.TokenUsage(output_tokens=count))
        for number, count in enumerate(tokens, start=1)
    ]
    await talker("AppendMessages", conversation_id=conversation_id, messages=messages)
    return conversation_id


BUDGETS: dict[str, tuple[int, list[int], int, bool]] = {
    "all": (100, [1, 2, 3, 4], 100, False),
    "one-short": (99, [2, 3, 4], 90, True),
    "last": (40, [4], 40, True),
    "none": (39, [], 0, True),
    "default": (0, [1, 2, 3, 4], 100, False),
}


@pytest.mark.parametrize(("budget", "expected", "tokens", "incomplete"), BUDGETS.values(), ids=BUDGETS.keys())
async def test_a_context_fits_its_budget(
    talker: Talker, budget: int, expected: list[int], tokens: int, *, incomplete: bool
) -> None:
    """The newest messages whose recorded usage fits the budget come, ascending, and it is told if older ones do not."""
    conversation_id = await _counted(talker, 10, 20, 30, 40)
    context = await talker("GetContext", conversation_id=conversation_id, token_budget=budget)
    assert pairs(context.messages) == [(number, f"m{number}") for number in expected]
    assert (context.tokens, context.incomplete, context.last_sequence) == (tokens, incomplete, 4)


async def test_without_usage_bytes_count(talker: Talker) -> None:
    """A message without recorded usage counts a quarter of its bytes."""
    conversation_id = await talker.create("x" * 4000, "y" * 4000)
    one = await talker("GetContext", conversation_id=conversation_id, token_budget=1100)
    assert [message.sequence for message in one.messages] == [2]
    assert 1000 <= one.tokens <= 1030
    assert one.incomplete
    two = await talker("GetContext", conversation_id=conversation_id, token_budget=2100)
    assert len(two.messages) == 2


async def test_what_is_hidden_from_the_agent_stays_out(talker: Talker) -> None:
    """Messages hidden from the agent are in the list, and neither in the context nor in its count."""
    conversation_id = await talker.create()
    messages = [
        text_message("seen", usage=message_pb2.TokenUsage(output_tokens=1)),
        text_message("hidden", hidden_from_agent=True, usage=message_pb2.TokenUsage(output_tokens=1000)),
        text_message("user", hidden_from_user=True, usage=message_pb2.TokenUsage(output_tokens=1)),
    ]
    await talker("AppendMessages", conversation_id=conversation_id, messages=messages)
    context = await talker("GetContext", conversation_id=conversation_id, token_budget=2)
    assert pairs(context.messages) == [(1, "seen"), (3, "user")]
    assert (context.tokens, context.incomplete) == (2, False)
    assert len(await talker.history(conversation_id)) == 3


async def test_a_summary_stands_for_what_it_covers(talker: Talker) -> None:
    """After a compaction the context is the summary and what it does not cover; the originals stay readable."""
    texts = [f"m{number}" for number in range(1, 101)]
    conversation_id = await talker.create(*texts)
    compacted = await talker(
        "CompactConversation",
        conversation_id=conversation_id,
        summary="they counted",
        through_sequence=97,
        usage=message_pb2.TokenUsage(output_tokens=7),
    )
    assert (compacted.sequence, compacted.covered.first, compacted.covered.last) == (101, 1, 97)
    await talker.say(conversation_id, "m102")
    expected = [(101, "they counted"), (98, "m98"), (99, "m99"), (100, "m100"), (102, "m102")]
    context = await talker("GetContext", conversation_id=conversation_id)
    assert pairs(context.messages) == expected
    assert context.messages[0].content[0].summary.last_sequence == 97
    assert not context.incomplete
    tight = await talker("GetContext", conversation_id=conversation_id, token_budget=8)
    assert pairs(tight.messages) == expected[:1]
    assert tight.incomplete
    ignored = await talker("GetContext", conversation_id=conversation_id, ignore_summary=True, token_budget=10**6)
    assert pairs(ignored.messages) == [*numbered(*texts), (102, "m102")]
    history = await talker.history(conversation_id)
    assert history == [*numbered(*texts), (101, "they counted"), (102, "m102")]
    described = await talker.get(conversation_id)
    assert (described.summary_sequence, described.message_count) == (101, 102)


async def test_the_newest_summary_counts(talker: Talker) -> None:
    """A later summary replaces the earlier one in the context; truncating it away leaves the messages."""
    conversation_id = await talker.create("one", "two")
    await talker("CompactConversation", conversation_id=conversation_id, summary="first")
    await talker.say(conversation_id, "three")
    await talker("CompactConversation", conversation_id=conversation_id, summary="second")
    context = await talker("GetContext", conversation_id=conversation_id)
    assert pairs(context.messages) == [(5, "second")]
    await talker("TruncateConversation", conversation_id=conversation_id, drop_last=1)
    context = await talker("GetContext", conversation_id=conversation_id)
    assert [text for _, text in pairs(context.messages)][-1] == "three"
    assert not context.incomplete


async def test_nothing_is_not_summed_up(talker: Talker) -> None:
    """A conversation without messages up to the sequence can't be compacted: FAILED_PRECONDITION."""
    conversation_id = await talker.create()
    empty = await refused(talker("CompactConversation", conversation_id=conversation_id, summary="x"))
    assert (empty.code, empty.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    await talker.say(conversation_id, "one")
    for through in (0, 2):
        call = talker("CompactConversation", conversation_id=conversation_id, summary="x", through_sequence=through)
        assert (await refused(call)).code == "FAILED_PRECONDITION"


async def test_messages_are_found_by_their_words(talker: Talker, stranger: Talker) -> None:
    """Search finds a user's own messages soon after, in one conversation or all, paged, best first, escaped."""
    first = await talker.create("Geese <b>migrate</b> in formation", "Nothing of the kind", conversation_id="first")
    second = await talker.create("a goose, more geese, all geese", conversation_id="second")

    async def hits(by: Talker = talker, **fields: Any) -> list[tuple[str, int]]:
        found = (await by("SearchMessages", **fields)).hits
        return [(one.conversation_id, one.sequence) for one in found]

    async def both() -> bool:
        return sorted(await hits(query="geese")) == [(first, 1), (second, 1)]

    await eventually(both, within=_WITHIN, what="both messages found")
    assert await hits(query="geese", conversation_id=second) == [(second, 1)]
    assert await hits(query='"geese migrate"') == [(first, 1)]
    assert await hits(query="geese -formation") == [(second, 1)]
    assert sorted(await hits(query="migrate or nothing")) == [(first, 1), (first, 2)]
    assert await hits(stranger, query="geese") == []
    (hit,) = (await talker("SearchMessages", query="formation")).hits
    assert hit.snippet == "Geese &lt;b&gt;migrate&lt;/b&gt; in <b>formation</b>"
    assert hit.message_id == (await talker("ListMessages", conversation_id=first)).messages[0].id
    one = await talker("SearchMessages", query="geese", page_size=1)
    two = await talker("SearchMessages", query="geese", page_size=1, page_token=one.next_page_token)
    assert one.hits[0].rank >= two.hits[0].rank
    assert {one.hits[0].conversation_id, two.hits[0].conversation_id} == {first, second}
