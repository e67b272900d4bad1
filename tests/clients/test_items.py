"""Items of the Responses API as messages: back to the letter, and readable to others."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaggle.conversation.v1.message_pb2 import (
    ROLE_ASSISTANT,
    ROLE_TOOL,
    ROLE_USER,
    ContentPart,
    Message,
    Summary,
    TextContent,
    Thinking,
    ToolCall,
    ToolRequest,
    ToolResponse,
    ToolResult,
)
from gaggle_client._items import to_items, to_message

ITEMS: dict[str, dict[str, Any]] = {
    "plain": {"role": "user", "content": "Grüße"},
    "empty": {"role": "user", "content": ""},
    "system": {"role": "system", "content": "Be kind."},
    "developer": {"role": "developer", "content": "Be kinder."},
    "typed": {"type": "message", "role": "user", "content": "hello"},
    "output": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [
            {"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []},
            {"type": "refusal", "refusal": "No."},
            {"type": "output_text", "text": "there", "annotations": [{"type": "x"}]},
        ],
    },
    "image": {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "What is this?"},
            {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "auto"},
        ],
    },
    "no-content": {"role": "user", "content": []},
    "call": {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'},
    "call-with-id": {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "c1",
        "name": "add",
        "arguments": "not json",
        "status": "completed",
    },
    "answer": {"type": "function_call_output", "call_id": "c1", "output": "3"},
    "answer-in-parts": {
        "type": "function_call_output",
        "call_id": "c1",
        "output": [{"type": "input_text", "text": "3"}],
    },
    "reasoning": {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
    "unknown": {"type": "computer_call", "id": "x", "action": {"type": "click", "x": 1}},
    "unknown-role": {"role": "narrator", "content": "Once"},
    "nothing": {},
}


@pytest.mark.parametrize("item", ITEMS.values(), ids=ITEMS)
def test_back_to_the_letter(item: dict[str, Any]) -> None:
    """An item comes back as it was, by way of the bytes that are stored; one item is one message."""
    message = Message.FromString(to_message(item).SerializeToString())
    assert message.role
    assert 1 <= len(message.content) <= 256
    assert to_items(message) == [item]


_json: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab_", max_size=4), inner, max_size=3),
    max_leaves=8,
)
_names = st.sampled_from(["role", "type", "content", "text", "call_id", "name", "arguments", "output", "id"])
_values = _json | st.sampled_from(["user", "assistant", "message", "function_call", "function_call_output"])


@given(st.dictionaries(_names, _values, max_size=6))
def test_whatever_it_is(item: dict[str, Any]) -> None:
    """No JSON object is lost or changed, whatever it means."""
    assert to_items(Message.FromString(to_message(item).SerializeToString())) == [item]


def test_others_can_read_it() -> None:
    """Texts, calls and answers are what every reader of conversations knows; a text is stored once."""
    text = to_message(ITEMS["output"])
    assert [one.text.text for one in text.content if one.HasField("text")] == ["Hi", "there"]
    assert "there" not in text.extra_json
    call = to_message(ITEMS["call"])
    assert (call.role, call.content[0].tool_request.call.name) == (ROLE_ASSISTANT, "add")
    answer = to_message(ITEMS["answer"])
    assert (answer.role, answer.content[0].tool_response.result.content[0].text.text) == (ROLE_TOOL, "3")


def test_what_others_wrote() -> None:
    """A message of the agent service becomes text, calls and outputs; what is not for a model is left out."""
    request = ToolRequest(id="c1", call=ToolCall(name="add", arguments_json="{}"))
    parts = [
        ContentPart(thinking=Thinking(thinking="Hm")),
        ContentPart(text=TextContent(text="Let me see.")),
        ContentPart(tool_request=request),
    ]
    assert to_items(Message(role=ROLE_ASSISTANT, content=parts)) == [
        {"role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
    ]
    failed = ContentPart(tool_response=ToolResponse(id="c1", error="broke"))
    assert to_items(Message(role=ROLE_TOOL, content=[failed])) == [
        {"type": "function_call_output", "call_id": "c1", "output": "broke"}
    ]
    result = ToolResult(content=[parts[1], parts[1]])
    several = ContentPart(tool_response=ToolResponse(id="c1", result=result))
    assert to_items(Message(role=ROLE_TOOL, content=[several]))[0]["output"] == "Let me see.\nLet me see."
    summary = Message(role=ROLE_USER, content=[ContentPart(summary=Summary(text="In short."))])
    assert to_items(summary) == [{"role": "user", "content": "In short."}]
    assert to_items(Message(role=ROLE_USER, content=[parts[1]], hidden_from_agent=True)) == []
    foreign = Message(role=ROLE_USER, content=[parts[1]], extra_json=json.dumps({"goose": {"x": 1}}))
    assert to_items(foreign) == [{"role": "user", "content": "Let me see."}]
