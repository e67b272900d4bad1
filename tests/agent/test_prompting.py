"""A conversation as models take it."""

import json
from typing import Any

import pytest

from gaggle.agent.v1 import session_pb2
from gaggle.conversation.v1 import message_pb2
from services.agent import prompting
from services.agent.models.base import OfferedTool

_USER, _ASSISTANT, _TOOL = message_pb2.ROLE_USER, message_pb2.ROLE_ASSISTANT, message_pb2.ROLE_TOOL


def _message(role: "message_pb2.Role.ValueType", *parts: message_pb2.ContentPart) -> message_pb2.Message:
    return message_pb2.Message(role=role, content=parts)


def _text(text: str) -> message_pb2.ContentPart:
    return message_pb2.ContentPart(text=message_pb2.TextContent(text=text))


def _call(call_id: str) -> message_pb2.ContentPart:
    call = message_pb2.ToolCall(name="t", arguments_json="{}")
    return message_pb2.ContentPart(tool_request=message_pb2.ToolRequest(id=call_id, call=call))


def _answer(call_id: str, text: str) -> message_pb2.ContentPart:
    result = message_pb2.ToolResult(content=[_text(text)])
    return message_pb2.ContentPart(tool_response=message_pb2.ToolResponse(id=call_id, result=result))


def test_answers_follow_their_calls() -> None:
    """Whatever lies between a call and its answer, the answer comes right after it; orphans are left out."""
    messages = [
        _message(_TOOL, _answer("cut", "its call was cut off by the budget")),
        _message(_USER, _text("do it")),
        _message(_ASSISTANT, _text("ok"), _call("a"), _call("b")),
        _message(_USER, _text("hurry")),
        _message(_TOOL, _answer("a", "one")),
    ]
    prompt = prompting.prompt_messages("system", messages)
    assert [(one.role, one.text) for one in prompt] == [
        ("system", "system"),
        ("user", "do it"),
        ("assistant", "ok"),
        ("tool", "one"),
        ("tool", "The tool has not answered."),
        ("user", "hurry"),
    ]


def test_summary_stands_first() -> None:
    """A summary is told as one."""
    summary = message_pb2.ContentPart(summary=message_pb2.Summary(text="they met"))
    (prompt,) = prompting.prompt_messages("", [_message(_ASSISTANT, summary)])
    assert (prompt.role, prompt.text) == ("system", "Summary of the conversation so far:\nthey met")


def test_goose_keeps_answers_with_the_user() -> None:
    """Tool answers within a user's message, as goose writes them, reach the model too."""
    messages = [_message(_ASSISTANT, _call("a")), _message(_USER, _answer("a", "seen"))]
    prompt = prompting.prompt_messages("", messages)
    assert [(one.role, one.text) for one in prompt] == [("assistant", ""), ("tool", "seen")]


@pytest.mark.parametrize("size", [1000, 5000, 300_000])
def test_cut(size: int) -> None:
    """An answer over the limit is cut to it, at a character, and says so."""
    response = message_pb2.ToolResponse(id="x")
    response.result.content.append(_text("ü" * size))
    cut = prompting.cut(response, 4096)
    assert cut.ByteSize() <= 4096
    if size > 2048:
        assert "[cut:" in prompting.response_text(cut)
    else:
        assert cut == response


FAULTS = {"object": ('{"a": 1}', ""), "empty": ("", ""), "list": ("[]", "object"), "half": ('{"a', "not JSON")}


@pytest.mark.parametrize(("arguments", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_argument_faults(arguments: str, fault: str) -> None:
    """What a model gives as arguments must be a JSON object."""
    found = prompting.argument_fault(arguments)
    assert (fault in found) if fault else found == ""


POLICIES: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "auto": ({"mode": session_pb2.APPROVAL_MODE_AUTO}, False, False),
    "unsaid": ({}, False, False),
    "all": ({"mode": session_pb2.APPROVAL_MODE_APPROVE}, True, True),
    "smart-reads": ({"mode": session_pb2.APPROVAL_MODE_SMART_APPROVE}, True, False),
    "smart-writes": ({"mode": session_pb2.APPROVAL_MODE_SMART_APPROVE}, False, True),
    "named": ({"tools": ["files__*"]}, True, True),
    "other-named": ({"tools": ["files__read"]}, False, False),
}


@pytest.mark.parametrize(("policy", "read_only", "waits"), POLICIES.values(), ids=POLICIES.keys())
def test_approval(policy: dict[str, Any], *, read_only: bool, waits: bool) -> None:
    """Mode and names say which tools wait for a person."""
    made = session_pb2.ApprovalPolicy(**policy)
    assert prompting.needs_approval(made, "files__write", read_only=read_only) is waits


def test_budget() -> None:
    """What the conversation gets is what answer, system prompt and tools leave."""
    tools = [OfferedTool("t", "d" * 400, json.dumps({"type": "object"}))]
    free = prompting.token_budget(8000, 0, 0, "", [])
    assert free == 6000
    assert prompting.token_budget(8000, 0, 1000, "s" * 400, tools) < 8000 - 1000 - 100 - 100
    assert prompting.token_budget(8000, 4000, 0, "", []) == 3000
    assert prompting.token_budget(256, 0, 0, "s" * 10_000, []) == 1


def test_json_text() -> None:
    """JSON is found in a fenced block, too."""
    assert json.loads(prompting.json_text('```json\n{"a": 1}\n```')) == {"a": 1}
    assert json.loads(prompting.json_text(' {"a": 1} ')) == {"a": 1}
