"""Events written by hand against the contracts that they must keep."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from gaggle.common.v1 import event_pb2
from gaggle.conversation.state.v1 import document_pb2
from gaggle.conversation.v1 import event_pb2 as conversation_events
from gaggle.conversation.v1 import message_pb2
from services.conversation.writing import _appended
from services.runtime import topics
from services.runtime.events import Change, Telling, build_events, envelope, json_time

_TIME = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
_CHANGE = Change("conversation", "c1", "ann", 7, 3, _TIME, traceparent="00-1-2-01")
_TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)


@pytest.mark.parametrize("topic", topics.ALL_TOPICS)
def test_the_envelope_is_the_contract(topic: str) -> None:
    """The JSON written by hand is gaggle.common.v1.Event, every field right, in the spelling of its topic."""
    body = envelope(_CHANGE, topic, "e1", {"title": "t"}, part=1, parts=2)
    parsed = json_format.Parse(body, event_pb2.Event())
    expected = event_pb2.Event(
        event_id="e1",
        event_type=topic,
        entity_type="conversation",
        entity_id="c1",
        user_id="ann",
        revision=7,
        part=1,
        parts=2,
        incarnation=3,
        metadata={"traceparent": "00-1-2-01"},
    )
    expected.timestamp.FromDatetime(_TIME)
    expected.data["title"] = "t"
    assert parsed == expected
    snake = topic in {"task-events", "reminders"}
    printed = json_format.MessageToDict(expected, preserving_proto_field_name=snake)
    written = json.loads(body)
    assert set(written) == set(printed)
    assert {name: value for name, value in written.items() if name != "timestamp"} == {
        name: value for name, value in printed.items() if name != "timestamp"
    }


@given(
    entity=_TEXTS, user=_TEXTS, revision=st.integers(0, 2**64 - 1), incarnation=st.integers(0, 2**32 - 1), text=_TEXTS
)
def test_any_value_passes(entity: str, user: str, revision: int, incarnation: int, text: str) -> None:
    """Ids, numbers and texts of any kind come through as they were."""
    change = Change("task", entity, user, revision, incarnation, _TIME)
    event = json_format.Parse(envelope(change, "task-events", "e", {"a": text}), event_pb2.Event())
    assert (event.entity_id, event.user_id, event.revision, event.incarnation) == (entity, user, revision, incarnation)
    assert event.data["a"] == text
    assert not event.metadata


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(_TIME, id="UTC"),
        pytest.param(datetime(2026, 1, 1, tzinfo=UTC), id="no fraction"),
        pytest.param(datetime(2026, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=5, minutes=45))), id="another zone"),
    ],
)
def test_times(moment: datetime) -> None:
    """A time is written in UTC, so that protobuf reads the same moment."""
    event = json_format.ParseDict({"timestamp": json_time(moment)}, event_pb2.Event())
    assert event.timestamp.ToDatetime(UTC) == moment


def _build(change: Change) -> list[Any]:
    return build_events(change, {topics.MESSAGE_RECEIVED: {"a": 1}, topics.CONVERSATION_UPDATED: {"b": 2}})


def test_events_of_one_change() -> None:
    """The events of a change are numbered parts in the order given, under the entity's one ordering key."""
    built = _build(_CHANGE)
    parsed = [json_format.Parse(one.payload, event_pb2.Event()) for one in built]
    assert [(one.part, one.parts) for one in parsed] == [(1, 2), (2, 2)]
    assert [one.topic for one in built] == [topics.MESSAGE_RECEIVED, topics.CONVERSATION_UPDATED]
    assert [one.event_id for one in built] == [one.event_id for one in parsed]
    assert len({one.ordering_key for one in built}) == 1
    assert _build(_CHANGE) == built


def test_a_topic_with_several_types() -> None:
    """Two events of one change may share a topic; each says what happened, under an id of its own."""
    told = [Telling(topics.TASK_EVENTS, kind, {"task_id": "t"}) for kind in ("task.created", "task.updated")]
    built = build_events(_CHANGE, told)
    parsed = [json_format.Parse(one.payload, event_pb2.Event()) for one in built]
    assert [(one.event_type, one.part, one.parts) for one in parsed] == [("task.created", 1, 2), ("task.updated", 2, 2)]
    assert {one.topic for one in built} == {topics.TASK_EVENTS}
    assert len({one.event_id for one in built}) == len(built)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Change("task", "c1", "ann", 7, 3, _TIME), id="type"),
        pytest.param(Change("conversation", "c2", "ann", 7, 3, _TIME), id="id"),
        pytest.param(Change("conversation", "c1", "bob", 7, 3, _TIME), id="user"),
        pytest.param(Change("conversation", "c1", "ann", 8, 3, _TIME), id="revision"),
        pytest.param(Change("conversation", "c1", "ann", 7, 4, _TIME), id="incarnation"),
    ],
)
def test_ids_are_of_one_change_alone(other: Change) -> None:
    """No two changes share an event id, not even of two users who chose the same id in the same second."""
    assert not {one.event_id for one in _build(_CHANGE)} & {one.event_id for one in _build(other)}


@given(
    roles=st.lists(st.sampled_from(message_pb2.Role.values()[1:]), min_size=1, max_size=6),
    first=st.integers(1, 2**53),
    tokens=st.integers(0, 2**31 - 1),
)
def test_appended_messages_keep_their_contract(roles: list[Any], first: int, tokens: int) -> None:
    """What an append tells is MessagesAppendedEvent: assistant messages sent, others received, each exactly once."""
    head = document_pb2.Head()
    head.conversation.id = "c1"
    messages = [message_pb2.Message(role=role) for role in roles]
    messages[0].usage.input_tokens = tokens
    ids = [f"m{n}" for n in range(len(roles))]
    told = _appended(head, messages, ids, [b"x" * n for n in range(len(roles))], first)
    seen: dict[int, message_pb2.Role.ValueType] = {}
    for topic, payload in told.items():
        event = json_format.ParseDict(payload, conversation_events.MessagesAppendedEvent())
        assert (event.conversation_id, event.first_sequence) == ("c1", first)
        assert event.last_sequence == first + len(roles) - 1
        for one in event.messages:
            index = one.sequence - first
            assert (one.id, one.size, one.role) == (ids[index], index, roles[index])
            assert (topic == topics.MESSAGE_SENT) == (one.role == message_pb2.ROLE_ASSISTANT)
            assert one.usage == messages[index].usage
            seen[one.sequence] = one.role
        assert [one.sequence for one in event.messages] == sorted(one.sequence for one in event.messages)
    assert len(seen) == len(roles)
