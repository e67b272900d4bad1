"""Reading events and the text of messages."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaggle.conversation.v1 import message_pb2
from services.audit import domain
from services.runtime import topics

_RECEIVED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def _read(topic: str, body: Any) -> domain.LoggedEvent:
    return domain.read_event(topic, "ce-1", json.dumps(body).encode(), _RECEIVED)


@pytest.mark.parametrize(
    ("topic", "body", "expected"),
    [
        pytest.param(
            topics.CONVERSATION_CREATED,
            {
                "eventId": "e", "eventType": "goose.conversation.created", "entityType": "conversation",
                "entityId": "c", "userId": "u", "timestamp": "2026-01-01T00:00:00.000001Z", "revision": "7",
                "part": 1, "parts": 2, "incarnation": 3, "data": {"title": "t"}, "metadata": {"traceparent": "00"},
            },
            {
                "event_id": "e", "entity_type": "conversation", "entity_id": "c", "user_id": "u", "revision": 7,
                "part": 1, "parts": 2, "incarnation": 3, "data": {"title": "t"}, "metadata": {"traceparent": "00"},
                "timestamp": "2026-01-01T00:00:00.000001+00:00",
            },
            id="our own envelope",
        ),
        pytest.param(
            topics.TASK_EVENTS,
            {"event_id": "test-123", "event_type": "task.created", "task_id": 1, "user_id": 1},
            {
                "event_id": "test-123", "event_type": "task.created", "entity_type": "task", "entity_id": "1",
                "user_id": "1", "data": {"task_id": 1},
            },
            id="an application's own, in snake_case, with numbers for ids",
        ),
        pytest.param(
            topics.TASK_EVENTS,
            {"event_type": "task.completed", "data": {"task_id": "9", "user_id": "u"}},
            {"event_id": "ce-1", "entity_id": "9", "user_id": "u", "timestamp": "2026-01-02T03:04:05+00:00"},
            id="what it does not say comes from its data, the CloudEvent and the arrival",
        ),
        pytest.param(
            topics.TOOL_EXECUTED, {}, {"event_id": "ce-1", "event_type": topics.TOOL_EXECUTED}, id="nothing at all"
        ),
        pytest.param(
            topics.TOOL_EXECUTED,
            {"timestamp": "2026-01-01T02:00:00+02:00"},
            {"timestamp": "2026-01-01T00:00:00+00:00"},
            id="a time in another zone",
        ),
        pytest.param(
            topics.TOOL_EXECUTED,
            {"timestamp": "2026-01-01T00:00:00"},
            {"timestamp": "2026-01-01T00:00:00+00:00"},
            id="a time without a zone is UTC",
        ),
        pytest.param(
            topics.TOOL_EXECUTED,
            {"timestamp": 1_767_225_600_000},
            {"timestamp": "2026-01-01T00:00:00+00:00"},
            id="a time in milliseconds",
        ),
        pytest.param(
            topics.TOOL_EXECUTED,
            {"data": {"a\0": ["x\0y", "\ud800"]}, "metadata": {"n": 1}},
            {"data": {"a\ufffd": ["x\ufffdy", "\ufffd"]}, "metadata": {"n": "1"}},
            id="what PostgreSQL cannot hold is replaced",
        ),
    ],
)  # fmt: skip
def test_reads(topic: str, body: Any, expected: dict[str, Any]) -> None:
    """Both spellings are read, and events of applications without our envelope too."""
    row = _read(topic, body).as_row()
    assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(b"\xff\xfe", "is no JSON", id="not UTF-8"),
        pytest.param(b"{", "is no JSON", id="cut off"),
        pytest.param(b"[]", "must be a JSON object", id="a list"),
        pytest.param(b"null", "must be a JSON object", id="null"),
        pytest.param(b'{"data": {"x": NaN}}', "is no JSON", id="NaN"),
        pytest.param(b'{"data": {"x": 1e999}}', "is no JSON", id="infinite"),
        pytest.param(b'{"data": [1]}', "data: must be an object", id="data no object"),
        pytest.param(b'{"eventType": {}}', "eventType: must be a string", id="type no string"),
        pytest.param(b'{"revision": -1}', "revision: must be a whole number", id="negative revision"),
        pytest.param(b'{"revision": "soon"}', "revision: must be a whole number", id="worded revision"),
        pytest.param(b'{"revision": 1e18}', "revision: must be a whole number", id="endless revision"),
        pytest.param(b'{"part": true}', "part: must be a whole number", id="part no number"),
        pytest.param(b'{"timestamp": "yesterday"}', "timestamp:", id="worded time"),
        pytest.param(b'{"timestamp": []}', "timestamp:", id="time no text"),
        pytest.param(b'{"metadata": "x"}', "metadata: must be an object", id="metadata no object"),
        pytest.param(b'{"entityId": "%s"}' % (b"x" * 600), "entityId: is longer", id="long id"),
        pytest.param(b'{"data": {"x": "%s"}}' % (b"x" * domain.MAX_EVENT_BYTES), "bytes, the limit", id="too large"),
        pytest.param(b"[" * 100_000, "is no JSON", id="endless depth"),
        pytest.param(b'{"data":' * 31 + b"{}" + b"}" * 31, "nested deeper", id="too deep"),
        pytest.param(b'{"data": {"x": 1%s}}' % (b"0" * 400), "is no JSON", id="more than a double"),
    ],
)
def test_refuses(payload: bytes, reason: str) -> None:
    """What is no event is refused with the reason, and kept as a dead letter."""
    with pytest.raises(domain.UnreadableEventError, match=reason):
        domain.read_event(topics.TOOL_EXECUTED, "ce", payload, _RECEIVED)
    letter = domain.dead_letter(topics.TOOL_EXECUTED, "ce", payload, reason)
    assert letter.payload == payload[: domain.MAX_DEAD_LETTER_BYTES]


_NAMES = st.sampled_from(["eventId", "data", "timestamp", "revision", "userId"])
_JSON = st.recursive(
    st.none() | st.text() | st.integers() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(_NAMES, inner),
)


@given(st.binary(max_size=200) | _JSON)
def test_any_bytes_are_read_or_refused(value: Any) -> None:
    """No payload makes reading fail in a way that nobody foresaw."""
    payload = value if isinstance(value, bytes) else json.dumps(value).encode()
    try:
        read = domain.read_event(topics.TOOL_EXECUTED, "ce", payload, _RECEIVED)
    except domain.UnreadableEventError:
        return
    assert "\0" not in json.dumps(read.as_row(), ensure_ascii=False)


def test_a_dead_letter_names_its_user() -> None:
    """A dead letter that says whose it is can be found when that user is erased."""
    assert domain.dead_letter("t", "ce", b'{"userId": "u", "revision": "x"}', "e").user_id == "u"
    assert domain.dead_letter("t", "ce", b"\xff", "e").user_id == ""


def test_topics_of_our_services_are_closed_to_others() -> None:
    """No application can tell of a conversation or an erasure in the owner's name."""
    closed = set(topics.ALL_TOPICS) - domain.OPEN_TOPICS
    assert {topics.CONVERSATION_DELETED, topics.MESSAGE_SENT, topics.USER_ERASED} <= closed
    assert topics.TOOL_EXECUTED in domain.OPEN_TOPICS


def test_the_text_of_a_message() -> None:
    """What was said, asked of tools and answered by them is searched for; hidden reasoning is not."""
    part = message_pb2.ContentPart
    message = message_pb2.Message(
        content=[
            part(text=message_pb2.TextContent(text="said")),
            part(thinking=message_pb2.Thinking(thinking="thought")),
            part(
                tool_request=message_pb2.ToolRequest(call=message_pb2.ToolCall(name="grep", arguments_json='{"a":1}'))
            ),
            part(
                tool_response=message_pb2.ToolResponse(
                    result=message_pb2.ToolResult(content=[part(text=message_pb2.TextContent(text="answered"))])
                )
            ),
            part(image=message_pb2.ImageContent(data=b"\0\1")),
            part(summary=message_pb2.Summary(text="in short")),
        ]
    )
    assert domain.message_text(message) == 'said\ngrep\n{"a":1}\nanswered\nin short'


def test_long_text_is_cut_between_characters() -> None:
    """Text over the limit is cut, never within a character."""
    text = "é" * domain.MAX_TEXT_BYTES
    message = message_pb2.Message(content=[message_pb2.ContentPart(text=message_pb2.TextContent(text="x" + text))])
    cut = domain.message_text(message)
    assert len(cut.encode()) == domain.MAX_TEXT_BYTES - 1
    assert cut == "x" + "é" * (domain.MAX_TEXT_BYTES // 2 - 1)
