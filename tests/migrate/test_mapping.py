"""Rows of a chatbot's tables as the contract's messages."""

import json
from typing import Any

import pytest

from cli.errors import CommandError
from cli.migrate.chats.mapping import ROLES, ConversationRow, MessageRow, chat
from cli.migrate.chats.source import database_url
from gaggle.conversation.v1.message_pb2 import ROLE_ASSISTANT, ROLE_USER, ContentPart, RawContent, TextContent


def message(**changes: Any) -> MessageRow:
    """A row as most are."""
    usual: dict[str, Any] = {
        "id": "1",
        "role": "user",
        "content": "hello",
        "is_json": False,
        "created": 1_750_000_000_123_456,
        "user": "ann",
        "others": "{}",
    }
    return MessageRow(**usual | changes)


def conversation(*messages: MessageRow, **changes: Any) -> ConversationRow:
    """A conversation of those."""
    usual: dict[str, Any] = {"id": "7", "user": "ann", "created": 1_750_000_000_000_000, "title": "", "others": "{}"}
    return ConversationRow(messages=list(messages), **usual | changes)


def test_a_conversation() -> None:
    """Ids, times, texts and the columns of its own are all there."""
    others = json.dumps({"model": "m", "archived": False, "note": None})
    one = chat(conversation(message(others='{"tool_calls": [{"a": null}]}'), title="Shopping", others=others))
    assert (one.conversation_id, one.user, one.title, one.faults) == ("7", "ann", "Shopping", [])
    assert one.metadata == {
        "chat_tables.id": "7",
        "chat_tables.created_at": "2025-06-15T15:06:40Z",
        "chat_tables.model": "m",
        "chat_tables.archived": "false",
    }
    (said,) = one.messages
    assert (said.id, said.role, said.content[0].text.text) == ("1", ROLE_USER, "hello")
    assert said.original_time.ToJsonString() == "2025-06-15T15:06:40.123456Z"
    assert json.loads(said.extra_json) == {"tool_calls": [{"a": None}]}


@pytest.mark.parametrize("name", [*ROLES, "USER", "Assistant"])
def test_roles(name: str) -> None:
    """Roles by the names that chatbots give them, in any case of letters."""
    one = chat(conversation(message(role=name)))
    assert (one.messages[0].role, one.faults) == (ROLES[name.lower()], [])
    assert {ROLES["ai"], ROLES["human"]} == {ROLE_ASSISTANT, ROLE_USER}


@pytest.mark.parametrize("source_id", ["x" * 65, "a b", "ü", "a:b", ""])
def test_ids_that_the_service_does_not_take(source_id: str) -> None:
    """They become ones made from them, always the same."""
    first, second = (chat(conversation(message(id=source_id), id=source_id)) for _ in range(2))
    assert (first.conversation_id, first.messages[0].id) == (second.conversation_id, second.messages[0].id)
    assert first.conversation_id.startswith("chat-")
    assert first.messages[0].id.startswith("msg-")
    assert first.metadata["chat_tables.id"] == source_id


def _text(text: str) -> ContentPart:
    return ContentPart(text=TextContent(text=text))


@pytest.mark.parametrize(
    ("content", "is_json", "parts"),
    [
        pytest.param("", False, [_text("")], id="an empty text"),
        pytest.param('"quoted"', False, [_text('"quoted"')], id="a text that looks like JSON"),
        pytest.param('"hello"', True, [_text("hello")], id="a JSON text"),
        pytest.param("", True, [_text("")], id="no JSON"),
        pytest.param('[{"type": "text", "text": "a"}, "b"]', True, [_text("a"), _text("b")], id="parts"),
        pytest.param(
            '{"type": "image", "url": "x"}',
            True,
            [ContentPart(raw=RawContent(type="image", json='{"type": "image", "url": "x"}'))],
            id="another kind",
        ),
        pytest.param("[]", True, [ContentPart(raw=RawContent(type="json", json='{"value": []}'))], id="no parts"),
        pytest.param("7", True, [ContentPart(raw=RawContent(type="json", json='{"value": 7}'))], id="a number"),
    ],
)
def test_content(content: str, is_json: bool, parts: list[ContentPart]) -> None:  # noqa: FBT001 - a case's own value
    """Text is text; JSON that is no text goes along as it is."""
    one = chat(conversation(message(content=content, is_json=is_json)))
    assert (list(one.messages[0].content), one.faults) == (parts, [])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        pytest.param(conversation(user=None), "user_id", id="nobody's"),
        pytest.param(conversation(user=""), "user_id", id="an empty user"),
        pytest.param(conversation(user="ü" * 65), "user_id", id="a user too long for a key"),
        pytest.param(conversation(created=10**18), "created_at", id="after the year 9999"),
        pytest.param(conversation(others=json.dumps({"n": "x" * 20_000})), "16384 bytes", id="columns too large"),
        pytest.param(
            conversation(others=json.dumps({str(n): "x" for n in range(65)})), "64 entries", id="columns too many"
        ),
        pytest.param(conversation(message(role="wizard")), "message 1: the role 'wizard'", id="an unknown role"),
        pytest.param(conversation(message(role="")), "the role ''", id="no role"),
        pytest.param(conversation(message(content="x" * 1_048_577)), "the limit is 1048576", id="a message too large"),
        pytest.param(conversation(message(created=-(10**18))), "created_at", id="before the year 1"),
        pytest.param(conversation(message(user="bob")), "another user", id="another's message"),
        pytest.param(
            conversation(message(content=json.dumps(["x"] * 257), is_json=True)), "256 parts", id="too many parts"
        ),
    ],
)
def test_faults(row: ConversationRow, why: str) -> None:
    """What the service would refuse is told beforehand, with the reason."""
    assert any(why in fault for fault in chat(row).faults)


def test_a_long_title() -> None:
    """A title over the limit is cut between characters, and kept whole beside it."""
    one = chat(conversation(title="ü" * 600))
    assert len(one.title.encode()) <= 1024
    assert one.title.rstrip("…") == "ü" * 510
    assert (one.metadata["chat_tables.title"], one.faults) == ("ü" * 600, [])


def test_requests_tell_their_bodies_apart() -> None:
    """The same step has the same request id, another one another: repeating a migration has no second effect."""
    one = chat(conversation(*(message(id=str(n), content="x" * 1000) for n in range(1200))))
    steps = [one.append(0, 0), one.append(500, 500), one.append(500, 700), one.append(1000, 1000)]
    ids = {one.creation(0).request_id, one.creation(200).request_id, *(step.request_id for step in steps)}
    assert len(ids) == len(steps) + 2
    assert [len(step.messages) for step in steps] == [500, 500, 500, 200]
    assert one.append(0, 0).request_id == steps[0].request_id
    large = chat(conversation(*(message(id=str(n), content="x" * 1_000_000) for n in range(5))))
    assert len(large.append(0, 0).messages) == 3


@pytest.mark.parametrize(
    "changed",
    [
        conversation(message(), user="bob"),
        conversation(message(), title="Another"),
        conversation(message(content="other")),
        conversation(message(id="2")),
        conversation(message(), message(id="2")),
        conversation(),
    ],
)
def test_digests_tell_conversations_apart(changed: ConversationRow) -> None:
    """Whatever is stored of a conversation is in its digest."""
    assert chat(conversation(message())).digest == chat(conversation(message())).digest
    assert chat(changed).digest != chat(conversation(message())).digest


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+asyncpg"])
def test_urls_of_an_application(scheme: str) -> None:
    """A URL as SQLAlchemy reads it names the same database to libpq; another database's is refused."""
    assert database_url(f"{scheme}://ann@host/app?x=y") == "postgresql://ann@host/app?x=y"
    with pytest.raises(CommandError):
        database_url("sqlite:///app.db")
