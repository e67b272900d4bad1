"""Messages: appended once, in order, and given back as they came."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gaggle.conversation.v1 import message_pb2 as pb
from tests.conversation.talking import Talker, numbered, pairs, refused, text_message

pytestmark = pytest.mark.mesh

_MIB = 1024 * 1024


def every_kind() -> pb.Message:
    """A message in which every field of every kind of content is set."""
    text = pb.TextContent(text="Grüße 🪿\0\n", annotations_json='{"audience": ["user"]}', meta_json='{"a":1}')
    image = pb.ImageContent(
        data=bytes(range(256)), mime_type="image/png", detail="low", annotations_json="{}", meta_json='{"b": 2}'
    )
    call = pb.ToolCall(name="shell", arguments_json='{"z":1,  "a":1.0}', extra_json='{"x":null}')
    result = pb.ToolResult(
        content=[pb.ContentPart(text=text), pb.ContentPart(image=image), pb.ContentPart(raw=pb.RawContent(type="r"))],
        is_error=False,
        structured_content_json="[1, 2]",
        extra_json='{"y":0}',
        bare=True,
    )
    parts = [
        pb.ContentPart(text=text),
        pb.ContentPart(image=image),
        pb.ContentPart(image=pb.ImageContent(uri="https://example.org/goose.png")),
        pb.ContentPart(
            tool_request=pb.ToolRequest(
                id="t1", call=call, frontend=True, metadata_json='{"m":1}', tool_meta_json='{"n":1}'
            )
        ),
        pb.ContentPart(tool_request=pb.ToolRequest(id="t2", error="not JSON")),
        pb.ContentPart(tool_response=pb.ToolResponse(id="t1", result=result, metadata_json='{"o":1}')),
        pb.ContentPart(tool_response=pb.ToolResponse(id="t2", error="no such tool")),
        pb.ContentPart(
            tool_confirmation_request=pb.ToolConfirmationRequest(
                id="t3", tool_name="rm", arguments_json='{"r":true}', prompt=""
            )
        ),
        pb.ContentPart(action_required=pb.ActionRequired(action_type="elicitation", data_json='{"id":"e"}')),
        pb.ContentPart(thinking=pb.Thinking(thinking="hm", signature="s1g")),
        pb.ContentPart(redacted_thinking=pb.RedactedThinking(data="AAAA")),
        pb.ContentPart(
            system_notification=pb.SystemNotification(notification_type="inlineMessage", message="!", data_json="7")
        ),
        pb.ContentPart(summary=pb.Summary(text="so far", first_sequence=1, last_sequence=2)),
        pb.ContentPart(raw=pb.RawContent(type="resource", json='{"uri":"file:///x"}')),
    ]
    message = pb.Message(
        id="Own.id_1-x",
        role=pb.ROLE_TOOL,
        content=parts,
        hidden_from_user=True,
        hidden_from_agent=True,
        name="Ada",
        metadata={"k": "v", "empty": ""},
        usage=pb.TokenUsage(
            input_tokens=1,
            output_tokens=0,
            total_tokens=2**40,
            cache_read_input_tokens=3,
            cache_write_input_tokens=4,
            cost=0.1,
        ),
        inference=pb.Inference(provider="p", requested_model="m", resolved_model="m-1"),
        steer=True,
        extra_json='{"toolChoice":  "auto"}',
    )
    message.original_time.FromDatetime(datetime(2001, 2, 3, 4, 5, 6, 789012, UTC))
    return message


async def test_every_kind_of_content_comes_back(talker: Talker) -> None:
    """A message with all kinds of content and all fields comes back equal to the byte, from window, page and watch."""
    sent = every_kind()
    assert {part.WhichOneof("kind") for part in sent.content} == {
        one.name for one in pb.ContentPart.DESCRIPTOR.oneofs_by_name["kind"].fields
    }, "a kind is missing here"
    conversation_id = await talker.create()
    appended = await talker("AppendMessages", conversation_id=conversation_id, messages=[sent])
    assert list(appended.message_ids) == [sent.id]
    sent.sequence = 1
    sent.create_time.CopyFrom(appended.create_time)
    expected = sent.SerializeToString(deterministic=True)
    (first,) = (await talker("ListMessages", conversation_id=conversation_id)).messages
    assert first.SerializeToString(deterministic=True) == expected
    await talker.say(conversation_id, *map(str, range(200)))
    paged = (await talker("ListMessages", conversation_id=conversation_id, after_sequence=0, page_size=1)).messages
    assert paged[0].SerializeToString(deterministic=True) == expected
    async for response in talker.watch(conversation_id, 1):
        assert response.messages.messages[0].SerializeToString(deterministic=True) == expected
        break


async def test_an_append_has_consecutive_sequences(talker: Talker) -> None:
    """Messages get consecutive sequences in the order given, one time, and ids where they bring none."""
    conversation_id = await talker.create()
    before = datetime.now(UTC)
    first = await talker.say(conversation_id, "one", "two")
    second = await talker.say(conversation_id, *(f"m{number}" for number in range(500)))
    assert (first.first_sequence, first.last_sequence) == (1, 2)
    assert (second.first_sequence, second.last_sequence) == (3, 502)
    assert len(set(first.message_ids) | set(second.message_ids)) == 502
    assert await talker.history(conversation_id) == numbered("one", "two", *(f"m{number}" for number in range(500)))
    now = await talker.get(conversation_id)
    assert (now.last_sequence, now.message_count, now.etag, now.update_time) == (
        502,
        502,
        second.etag,
        second.create_time,
    )
    assert abs(second.create_time.ToDatetime(UTC) - before) < timedelta(minutes=1)


async def test_a_repeated_append_has_one_effect(talker: Talker) -> None:
    """The same request_id gives the first answer, later appends or not, even with an expected_sequence long past."""
    conversation_id = await talker.create()
    calls = [talker.say(conversation_id, "one", "two", request_id="r", expected_sequence=0) for _ in range(8)]
    answers = await asyncio.gather(*calls)
    assert all(one == answers[0] for one in answers)
    await talker.say(conversation_id, "three")
    assert await talker.say(conversation_id, "one", "two", request_id="r", expected_sequence=0) == answers[0]
    assert await talker.history(conversation_id) == numbered("one", "two", "three")


async def test_a_request_id_is_not_used_twice(talker: Talker) -> None:
    """A request_id with another body is refused, be it another text, another conversation or another method."""
    conversation_id = await talker.create()
    other = await talker.create()
    await talker.say(conversation_id, "one", request_id="r")
    for call in (
        talker.say(conversation_id, "two", request_id="r"),
        talker.say(other, "one", request_id="r"),
        talker("RaiseFence", conversation_id=conversation_id, request_id="r"),
    ):
        answer = await refused(call)
        assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    assert await talker.history(conversation_id) == numbered("one")
    assert await talker.history(other) == []


async def test_an_expected_sequence_guards_an_append(talker: Talker) -> None:
    """An append that expects another last sequence than there is is ABORTED, says both, and adds nothing."""
    conversation_id = await talker.create("one", "two")
    for expected in (0, 1, 3):
        answer = await refused(talker.say(conversation_id, "x", expected_sequence=expected))
        assert (answer.code, answer.reason) == ("ABORTED", "STALE_SEQUENCE")
        assert answer.facts == {"expected_sequence": str(expected), "last_sequence": "2"}
    await talker.say(conversation_id, "three", expected_sequence=2)
    assert await talker.history(conversation_id) == numbered("one", "two", "three")


async def test_a_fence_shuts_out_an_earlier_worker(talker: Talker) -> None:
    """After RaiseFence an append with a lower fence is ABORTED; each fence is higher than the last; none is made up."""
    conversation_id = await talker.create("one")
    earlier = await talker("RaiseFence", conversation_id=conversation_id)
    later = await talker("RaiseFence", conversation_id=conversation_id)
    assert later.fence > earlier.fence > 0
    assert (later.last_sequence, (await talker.get(conversation_id)).fence) == (1, later.fence)
    stale = await refused(talker.say(conversation_id, "x", fence=earlier.fence))
    assert (stale.code, stale.reason) == ("ABORTED", "STALE_FENCE")
    assert stale.facts == {"fence": str(earlier.fence), "current": str(later.fence)}
    invented = await refused(talker.say(conversation_id, "x", fence=later.fence + 1))
    assert (invented.code, invented.fields) == ("INVALID_ARGUMENT", ("fence",))
    await talker.say(conversation_id, "two", fence=later.fence)
    await talker.say(conversation_id, "three")
    assert await talker.history(conversation_id) == numbered("one", "two", "three")


async def test_the_default_is_the_newest_fifty(talker: Talker) -> None:
    """Without more said the newest 50 come, oldest of them first, and page tokens lead to all the older ones."""
    texts = [f"m{number}" for number in range(1, 181)]
    conversation_id = await talker.create(*texts)
    expected = numbered(*texts)
    page = await talker("ListMessages", conversation_id=conversation_id)
    assert pairs(page.messages) == expected[-50:]
    assert page.last_sequence == 180
    found = pairs(page.messages)
    while page.next_page_token:
        page = await talker("ListMessages", conversation_id=conversation_id, page_token=page.next_page_token)
        found = pairs(page.messages) + found
    assert found == expected


SLICES: dict[str, tuple[dict[str, int], range]] = {
    "newest": ({"page_size": 3}, range(98, 101)),
    "more-than-there-are": ({"page_size": 1000}, range(1, 101)),
    "more-than-allowed": ({"page_size": 2**31 - 1}, range(1, 101)),
    "after": ({"after_sequence": 10, "page_size": 4}, range(11, 15)),
    "after-none": ({"after_sequence": 0, "page_size": 2}, range(1, 3)),
    "after-the-last": ({"after_sequence": 100}, range(0)),
    "after-what-is-to-come": ({"after_sequence": 2**64 - 1}, range(0)),
    "before": ({"before_sequence": 10, "page_size": 4}, range(6, 10)),
    "before-the-first": ({"before_sequence": 1}, range(0)),
    "before-none": ({"before_sequence": 0}, range(0)),
    "before-what-is-to-come": ({"before_sequence": 2**64 - 1, "page_size": 2}, range(99, 101)),
    "across-pages-after": ({"after_sequence": 20, "page_size": 70}, range(21, 91)),
    "across-pages-before": ({"before_sequence": 91, "page_size": 70}, range(21, 91)),
}


@pytest.fixture(scope="module")
def hundred() -> list[str]:
    """Texts m1 to m100."""
    return [f"m{number}" for number in range(1, 101)]


async def test_slices_of_the_history(talker: Talker, hundred: list[str], subtests: pytest.Subtests) -> None:
    """After a sequence, before one, or the newest: the messages asked for, ascending, at most page_size."""
    conversation_id = await talker.create(*hundred)
    for name, (fields, expected) in SLICES.items():
        with subtests.test(name):
            page = await talker("ListMessages", conversation_id=conversation_id, **fields)
            assert pairs(page.messages) == [(number, f"m{number}") for number in expected]
            assert page.last_sequence == 100


WALKS: dict[str, dict[str, int]] = {
    "newest-first": {},
    "after": {"after_sequence": 0},
    "before": {"before_sequence": 101},
}


@pytest.mark.parametrize("fields", WALKS.values(), ids=WALKS.keys())
async def test_page_tokens_survive_appends(talker: Talker, hundred: list[str], fields: dict[str, int]) -> None:
    """Pages read while others append hold each message once, in order, whatever the direction."""
    conversation_id = await talker.create(*hundred)
    found: list[tuple[int, str]] = []
    token, pages = "", 0
    while True:
        page = await talker("ListMessages", conversation_id=conversation_id, page_size=17, page_token=token, **fields)
        pages += 1
        found = found + pairs(page.messages) if "after_sequence" in fields else pairs(page.messages) + found
        token = page.next_page_token
        if not token:
            break
        if pages <= 4:
            await talker.say(conversation_id, *(f"m{100 + pages * 20 - 19 + number}" for number in range(20)))
    last = 180 if "after_sequence" in fields else 100
    assert found == [(number, f"m{number}") for number in range(1, last + 1)]


async def test_a_known_sequence_is_never_missing(talker: Talker) -> None:
    """A read that names the sequence of one's own last append always reaches it, cached windows or not."""
    conversation_id = await talker.create()
    for number in range(1, 30):
        await talker.say(conversation_id, f"m{number}")
        page = await talker("ListMessages", conversation_id=conversation_id, min_sequence=number, page_size=3)
        assert pairs(page.messages)[-1] == (number, f"m{number}")
    page = await talker("ListMessages", conversation_id=conversation_id, min_sequence=10_000, page_size=1)
    assert pairs(page.messages) == [(29, "m29")]


async def test_a_response_ends_at_three_mebibytes(talker: Talker) -> None:
    """Messages of up to 1 MiB are kept; a response holds at most 3 MiB and leads on, in both directions."""
    overhead = len(text_message("x" * _MIB).SerializeToString()) - _MIB
    large = "x" * (_MIB - overhead)
    assert text_message(large).ByteSize() == _MIB
    conversation_id = await talker.create(large, large, large)
    await talker.say(conversation_id, *["y" * 900_000] * 3, "small")
    for fields in ({}, {"after_sequence": 0}):
        found: list[int] = []
        token = ""
        while True:
            page = await talker("ListMessages", conversation_id=conversation_id, page_token=token, **fields)
            assert page.ByteSize() <= 3 * _MIB + 1024
            sequences = [one.sequence for one in page.messages]
            assert sequences
            found = found + sequences if fields else sequences + found
            token = page.next_page_token
            if not token:
                break
        assert found == list(range(1, 8))
    whole = await talker("ListMessages", conversation_id=conversation_id, before_sequence=2)
    assert whole.messages[0].content[0].text.text == large


TOO_LARGE: dict[str, tuple[list[pb.Message], str]] = {
    "message": ([text_message("x" * _MIB)], str(_MIB)),
    "append": ([text_message("x" * (800 * 1024))] * 4, str(3 * _MIB)),
}


@pytest.mark.parametrize(("messages", "limit"), TOO_LARGE.values(), ids=TOO_LARGE.keys())
async def test_what_is_too_large_is_refused(talker: Talker, messages: list[pb.Message], limit: str) -> None:
    """A message over 1 MiB, or an append over 3 MiB, is RESOURCE_EXHAUSTED with the limit, and adds nothing."""
    conversation_id = await talker.create()
    answer = await refused(talker("AppendMessages", conversation_id=conversation_id, messages=messages))
    assert (answer.code, answer.reason, answer.facts["limit"]) == ("RESOURCE_EXHAUSTED", "TOO_LARGE", limit)
    assert int(answer.facts["size"]) > int(limit)
    assert await talker.history(conversation_id) == []


async def test_foreign_page_tokens_are_refused(talker: Talker, stranger: Talker, hundred: list[str]) -> None:
    """A damaged page token, another conversation's, another list's or another user's is INVALID_PAGE_TOKEN."""
    ids = {"conversation_id": "the-one"}
    for one in (talker, stranger):
        await one.create(*hundred, **ids)
        await one.create(*hundred, conversation_id="another")
    good = (await talker("ListMessages", page_size=1, **ids)).next_page_token
    listed = (await talker("ListConversations", page_size=1)).next_page_token
    calls: dict[str, Any] = {
        "damaged": talker("ListMessages", page_token=good[:-2] + ("A" if good[-2] != "A" else "B") + good[-1], **ids),
        "no-base64": talker("ListMessages", page_token="💥", **ids),
        "nonsense": talker("ListMessages", page_token="AAAAAAAAAAAAAAAAAAAA", **ids),
        "another-conversation": talker("ListMessages", page_token=good, conversation_id="another"),
        "another-user": stranger("ListMessages", page_token=good, **ids),
        "another-list": talker("ListMessages", page_token=listed, **ids),
        "of-messages": talker("ListConversations", page_token=good),
    }
    for name, call in calls.items():
        answer = await refused(call)
        assert (answer.code, answer.reason, answer.fields) == (
            "INVALID_ARGUMENT",
            "INVALID_PAGE_TOKEN",
            ("page_token",),
        ), name
    assert (await talker("ListMessages", page_token=good, **ids)).messages
