"""goose's messages and sessions go into the contract and come out as they were."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from bench import goose_sessions
from cli.errors import Refused
from cli.goose.database import ChangedMeanwhileError, GooseDatabase, NoGooseDatabaseError
from cli.goose.messages import read_message, write_message, write_messages
from cli.goose.sessions import (
    Fields,
    export_of,
    extra_of_export,
    extra_of_row,
    fields_of_export,
    fields_of_row,
    ledger_line,
    new_export,
    row_of,
    same_session,
    usage_entry,
)
from cli.goose.transfer import read_session
from cli.migrate.goose_state import Entry, Phase, State
from cli.transcripts import Document, TranscriptError
from gaggle.agent.v1.session_pb2 import Session
from gaggle.conversation.v1.message_pb2 import ROLE_ASSISTANT, ROLE_TOOL, ROLE_USER, Message
from services.agent.validation import MAX_EXTRA_BYTES

VISIBLE = {"userVisible": True, "agentVisible": True}

PARTS: dict[str, Any] = {
    "text": {"type": "text", "text": "a"},
    "text-annotated": {"type": "text", "text": "a", "annotations": {"priority": 0.5}, "_meta": {"a": None}},
    "text-unknown-member": {"type": "text", "text": "a", "colour": "red"},
    "image": {"type": "image", "data": "AAEC", "mimeType": "image/png"},
    "image-odd-base64": {"type": "image", "data": "AAE", "mimeType": "image/png"},
    "tool-request": {
        "type": "toolRequest",
        "id": "c1",
        "toolCall": {"status": "success", "value": {"name": "a__b", "arguments": {"x": 1.0, "y": [None, True]}}},
    },
    "tool-request-no-arguments": {
        "type": "toolRequest",
        "id": "c1",
        "toolCall": {"status": "success", "value": {"name": "a"}},
        "metadata": {"thoughtSignature": "s"},
        "_meta": {"title": "t"},
    },
    "tool-request-failed": {"type": "toolRequest", "id": "c1", "toolCall": {"status": "error", "error": "no JSON"}},
    "tool-response": {
        "type": "toolResponse",
        "id": "c1",
        "toolResult": {
            "status": "success",
            "value": {
                "content": [{"type": "text", "text": "r"}, {"type": "resource", "resource": {"uri": "file:///a"}}],
                "structuredContent": {"n": 1},
                "isError": False,
                "_meta": {"k": 1},
            },
        },
    },
    "tool-response-bare": {
        "type": "toolResponse",
        "id": "c1",
        "toolResult": {"status": "success", "value": [{"type": "text", "text": "r"}]},
    },
    "tool-response-failed": {
        "type": "toolResponse",
        "id": "c1",
        "toolResult": {"status": "error", "error": "-32603: x"},
    },
    "confirmation": {
        "type": "toolConfirmationRequest",
        "id": "c1",
        "toolName": "a",
        "arguments": {"x": 1},
        "prompt": None,
    },
    "action-required": {
        "type": "actionRequired",
        "data": {"actionType": "elicitation", "id": "e", "message": "?", "requestedSchema": {"type": "object"}},
    },
    "frontend-request": {
        "type": "frontendToolRequest",
        "id": "c1",
        "toolCall": {"status": "success", "value": {"name": "a", "arguments": {}}},
    },
    "thinking": {"type": "thinking", "thinking": "hm", "signature": "s"},
    "reasoning": {"type": "reasoning", "text": "hm"},
    "redacted": {"type": "redactedThinking", "data": "xyz"},
    "notification": {"type": "systemNotification", "notificationType": "thinkingMessage", "msg": "m", "data": {"a": 1}},
    "legacy-compacted": {"type": "conversationCompacted", "msg": "m"},
    "of-a-later-goose": {"type": "hologram", "voxels": [1, 2]},
    "half-a-surrogate": {"type": "text", "text": "\ud800"},
    "no-object": 7,
    "no-kind": {"text": "a"},
}


def back(wanted: Any) -> Any:
    """What comes out, by way of the wire."""
    return write_message(Message.FromString(read_message(wanted).SerializeToString()))


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_every_kind_of_content_comes_back(part: Any) -> None:
    """What a message holds comes out value for value, whether it is known here or not."""
    wanted = {"id": "m1", "role": "assistant", "created": 1_767_225_600, "content": [part], "metadata": VISIBLE}
    assert json.dumps(back(wanted), sort_keys=True) == json.dumps(wanted, sort_keys=True)


MESSAGES: dict[str, Any] = {
    "all-kinds": {"id": "m", "role": "user", "created": 5, "content": list(PARTS.values()), "metadata": VISIBLE},
    "no-id": {"role": "user", "created": 5, "content": [PARTS["text"]], "metadata": VISIBLE},
    "id-not-ours": {"id": "a/b c" * 40, "role": "user", "created": 5, "content": [PARTS["text"]], "metadata": VISIBLE},
    "no-metadata": {"id": "m", "role": "user", "created": 5, "content": [PARTS["text"]]},
    "hidden": {
        "id": "m",
        "role": "user",
        "created": 5,
        "content": [PARTS["text"]],
        "metadata": {
            "userVisible": False,
            "agentVisible": False,
            "steer": True,
            "inference": {"provider": "p", "requestedModel": "a", "resolvedModel": "b", "more": 1},
            "later": [],
        },
    },
    "milliseconds": {"id": "m", "role": "user", "created": 1_767_225_600_123, "content": [], "metadata": None},
    "beyond-time": {"id": "m", "role": "user", "created": 10**30, "content": [PARTS["text"]], "metadata": VISIBLE},
    "no-time": {"id": "m", "role": "user", "content": [PARTS["text"]], "metadata": VISIBLE},
    "other-role": {"id": "m", "role": "system", "created": 5, "content": [PARTS["text"]], "metadata": VISIBLE},
    "tokens": {"id": "m", "role": "user", "created": 5, "content": [PARTS["text"]], "metadata": VISIBLE, "tokens": 3},
    "content-is-none": {"id": "m", "role": "user", "created": 5, "content": {"x": 1}, "metadata": VISIBLE},
    "more-parts-than-stored": {
        "id": "m",
        "role": "user",
        "created": 5,
        "content": [{"type": "text", "text": str(number)} for number in range(700)],
        "metadata": VISIBLE,
    },
}


@pytest.mark.parametrize("wanted", MESSAGES.values(), ids=MESSAGES)
def test_every_message_comes_back(wanted: Any) -> None:
    """A message comes out value for value, within what the conversation service stores."""
    assert json.dumps(back(wanted), sort_keys=True) == json.dumps(wanted, sort_keys=True)
    assert 1 <= len(read_message(wanted).content) <= 256


def test_messages_have_the_contracts_fields() -> None:
    """What the contract has fields for is in them, not only kept for the way back."""
    message = read_message(MESSAGES["hidden"])
    assert (message.role, message.hidden_from_user, message.hidden_from_agent, message.steer) == (
        ROLE_USER,
        True,
        True,
        True,
    )
    assert (message.inference.provider, message.inference.resolved_model) == ("p", "b")
    answer = read_message({"role": "user", "created": 5, "content": [PARTS["tool-response"]]})
    assert answer.role == ROLE_TOOL
    assert answer.content[0].tool_response.result.content[0].text.text == "r"
    assert answer.original_time.seconds == 5
    asked = read_message({"role": "assistant", "created": 5, "content": [PARTS["tool-request"]]})
    assert asked.role == ROLE_ASSISTANT
    assert json.loads(asked.content[0].tool_request.call.arguments_json) == {"x": 1.0, "y": [None, True]}


def test_repeated_ids_are_kept_apart() -> None:
    """goose stores one streamed answer as several messages of one id; each is a message here, and comes back."""
    wanted = [{"id": "m", "role": "assistant", "created": 5, "content": [{"type": "text", "text": t}]} for t in "ab"]
    taken: set[str] = set()
    read = [read_message(one, taken=taken) for one in wanted]
    assert [one.id for one in read] == ["m", ""]
    read[1].id = "0198-given-by-the-service"
    assert list(write_messages(read)) == wanted


def test_times_never_go_back() -> None:
    """goose orders by time: what the mesh's clock puts before its predecessor is written with that one's time."""
    read = [read_message({"role": "user", "created": at, "content": []}) for at in (9, 5, 11)]
    assert [one["created"] for one in write_messages(read)] == [9, 9, 11]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Thirty sessions."""
    path = tmp_path / "sessions.db"
    goose_sessions.make(path, 30, sizes=(0, 30))
    return path


def test_generated_sessions_come_back(file: Path) -> None:
    """Every row, message and line of usage of the file is the same after its way through the contract."""
    database = GooseDatabase(file)
    names = list(database.quick())
    assert len(names) == 30
    for name in names:
        local = database.session(name)
        assert local is not None
        fields = fields_of_row(local.row)
        session = _session(name, fields, extra_of_row(local.row))
        assert same_session(row_of(session), local.row) == []
        assert row_of(session)["created_at"] == local.row["created_at"]
        assert list(write_messages(map(read_message, local.messages))) == local.messages
        for line in local.ledger:
            made = ledger_line(usage_entry(line)) | {"id": line["id"], "session_id": name}
            assert made == line
        assert new_export(local.row, local.messages)["accumulated_cost"] == local.row.get("accumulated_cost")
    database.close()


def _session(name: str, fields: Fields, extra: str) -> Session:
    return Session(
        id=name,
        name=fields.name,
        working_dir=fields.working_dir,
        session_type=fields.session_type,
        last_usage=fields.last_usage,
        accumulated_usage=fields.accumulated_usage,
        extra_json=extra,
    )


def test_what_the_mesh_changed_is_written() -> None:
    """A name or a sum that changed in the mesh is written as it is there; all else stays the original's."""
    row = {
        "id": "20260101_1",
        "name": "old",
        "working_dir": "/w",
        "input_tokens": 0,
        "project_id": "p",
        "recipe_json": "{}",
    }
    session = _session("20260101_1", fields_of_row(row), extra_of_row(row))
    assert row_of(session)["input_tokens"] == 0
    session.name = "new"
    session.accumulated_usage.input_tokens = 7
    session.accumulated_usage.cost = 0.25
    changed = {"name": "new", "accumulated_input_tokens": 7, "accumulated_cost": 0.25, "session_type": "user"}
    assert row_of(session) == row | changed


EXPORTS: dict[str, Any] = {
    "current": {
        "id": "20260101_1",
        "working_dir": "/w",
        "name": "n",
        "user_set_name": True,
        "session_type": "acp",
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:05Z",
        "extension_data": {"todo.v0": {"content": "x"}},
        "usage": {"input_tokens": 1, "output_tokens": None, "total_tokens": 3, "cache_read_input_tokens": 0},
        "accumulated_usage": {"input_tokens": 10, "output_tokens": 20, "total_tokens": 30},
        "accumulated_cost": 0.5,
        "schedule_id": None,
        "recipe": {"title": "t"},
        "user_recipe_values": {"a": "b"},
        "conversation": [MESSAGES["all-kinds"], MESSAGES["hidden"]],
        "message_count": 1,
        "last_message_at": "1970-01-01T00:00:05Z",
        "provider_name": "p",
        "model_config": {"model_name": "m"},
        "goose_mode": "approve",
        "archived_at": None,
        "project_id": None,
        "parent_session_id": None,
        "last_message_snippet": "s",
        "of_a_later_goose": {"a": 1},
    },
    "older": {
        "id": "20250101_1",
        "working_dir": "/w",
        "description": "n",
        "created_at": "2025-01-01T00:00:00Z",
        "updated_at": "2025-01-01T00:00:05Z",
        "extension_data": {},
        "total_tokens": 3,
        "input_tokens": 1,
        "output_tokens": 2,
        "accumulated_total_tokens": 30,
        "accumulated_input_tokens": 10,
        "accumulated_output_tokens": 20,
        "conversation": [MESSAGES["no-id"]],
        "message_count": 1,
        "last_message_at": None,
        "last_message_snippet": None,
    },
}


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS)
def test_exports_come_back(export: Any) -> None:
    """A session export comes out value for value, usage included, whichever goose wrote it."""
    session = _session(export["id"], fields_of_export(export), extra_of_export(export))
    assert session.accumulated_usage.total_tokens == 30
    written = export_of(session, list(write_messages(map(read_message, export["conversation"]))))
    assert written.pop("last_message_at")
    assert written == {name: value for name, value in export.items() if name != "last_message_at"}


FAULTS = {
    "no-json": ("{", "not JSON"),
    "no-object": ("[]", "must be an object"),
    "no-name": ('{"working_dir": "/", "created_at": ""}', '"name"'),
    "role": (
        '{"working_dir": "/", "created_at": "", "name": "", "conversation": [\n{"role": "system"}]}',
        ":2:10: conversation[0].role must be",
    ),
    "created": (
        '{"working_dir": "/", "created_at": "", "name": "", "conversation": [{"role": "user", "created": "x"}]}',
        "conversation[0].created must be",
    ),
    "content": (
        '{"working_dir":"","created_at":"","name":"","conversation":[{"role":"user","created":1,"content":1}]}',
        "conversation[0].content must be an array",
    ),
}


@pytest.mark.parametrize(("text", "why"), FAULTS.values(), ids=FAULTS)
def test_faulty_exports_are_refused(text: str, why: str) -> None:
    """A file that is no session export is refused with line and column."""
    with pytest.raises(TranscriptError) as refusal:
        read_session(Document("session.json", text.encode()))
    assert why.replace(" must", ": must") in str(refusal.value) or why in str(refusal.value)


def test_writes_look_first(file: Path) -> None:
    """What goose has changed meanwhile is not written over, nor deleted."""
    database = GooseDatabase(file)
    name = next(iter(database.quick()))
    local = database.session(name)
    assert local is not None
    with sqlite3.connect(file) as other:
        other.execute("UPDATE sessions SET name = 'changed' WHERE id = ?", [name])
    other.close()
    with pytest.raises(ChangedMeanwhileError):
        database.write(name, local.digest, row=local.row, keep=0, messages=[], lines=[])
    with pytest.raises(ChangedMeanwhileError):
        database.delete(name, local.digest)
    now = database.session(name)
    assert now is not None
    assert (now.row["name"], now.messages) == ("changed", local.messages)
    database.close()


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A file that is not there, no database, or another program's, is named as such."""
    with pytest.raises(NoGooseDatabaseError, match="no file"):
        GooseDatabase(tmp_path / "none.db")
    text = tmp_path / "text.db"
    text.write_text("hello, this is no database at all" * 100)
    with pytest.raises(NoGooseDatabaseError, match="no SQLite database"):
        GooseDatabase(text)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE sessions (id TEXT)")
    connection.close()
    with pytest.raises(NoGooseDatabaseError, match="working_dir"):
        GooseDatabase(other)


def test_state_is_for_one_process_and_one_user(tmp_path: Path) -> None:
    """Two processes never work on one migration, and it stays with the user whom it was begun for."""
    first, second = State(tmp_path / "sessions.db"), State(tmp_path / "sessions.db")
    first.open()
    second.open()
    with first.alone(), pytest.raises(Refused, match="Another process"), second.alone():
        pass
    first.claim("ann")
    with pytest.raises(Refused, match="ann"):
        second.claim("bob")
    first.phase = Phase.SWITCHED
    assert second.phase.reads_from_mesh
    first.keep_level(Entry("a", "a", "a", quick="q"))
    assert second.levels() == {"a": "q"}
    first.close()
    second.close()


def test_extra_fits() -> None:
    """What a session keeps for the way back is bounded by the agent service, far above what goose writes."""
    row = {"id": "a", "working_dir": "/", "extension_data": json.dumps({"x": "y" * 100_000})}
    assert len(extra_of_row(row)) < MAX_EXTRA_BYTES
