"""Items of OpenAI's Responses API as messages of a conversation, and back to the letter.

https://platform.openai.com/docs/api-reference/responses/create (input). One item is one message. What a message has no
field for lies in its `extra_json`, texts left out; an item that would not come back as it was is kept whole.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from gaggle.conversation.v1.message_pb2 import (
    ROLE_ASSISTANT,
    ROLE_DEVELOPER,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    ContentPart,
    Message,
    RawContent,
    Role,
    TextContent,
    ToolCall,
    ToolRequest,
    ToolResponse,
    ToolResult,
)

Item = dict[str, Any]

_OURS = "openai_agents"
_MOST_PARTS = 256
_ROLES: "dict[str, Role.ValueType]" = {
    "user": ROLE_USER,
    "assistant": ROLE_ASSISTANT,
    "system": ROLE_SYSTEM,
    "developer": ROLE_DEVELOPER,
}
_NAMES = {role: name for name, role in _ROLES.items()}
_Pieces = tuple["Role.ValueType", list[ContentPart], Any]
"""Role, content, and what is left of the item; None: nothing."""


def to_message(item: Mapping[str, Any]) -> Message:
    """Write an item as a message. Raises TypeError or ValueError for what JSON has no words for."""
    plain: Item = json.loads(json.dumps(item))
    write = _WRITERS.get(str(plain.get("type", "message")))
    if write is not None:
        try:
            role, content, rest = write(plain)
            message = Message(role=role, content=content)
        except (KeyError, TypeError, AttributeError):
            return _whole(plain)
        if rest is not None:
            message.extra_json = json.dumps({_OURS: rest}, ensure_ascii=False)
        if 0 < len(content) <= _MOST_PARTS and to_items(message) == [plain]:
            return message
    return _whole(plain)


def to_items(message: Message) -> list[Item]:
    """Read a message as items: one, if an item was written as it; of other origin none or several."""
    if message.hidden_from_agent:
        return []
    kind = message.content[0].WhichOneof("kind") if message.content else None
    if kind == "raw" and message.content[0].raw.type == _OURS:
        return [json.loads(message.content[0].raw.json)]
    if (rest := _rest(message)) is not None:
        return [_restored(message, rest)]
    return _plain(message)


def _whole(item: Item) -> Message:
    raw = RawContent(type=_OURS, json=json.dumps(item, ensure_ascii=False))
    role = _ROLES.get(str(item.get("role", "")), ROLE_ASSISTANT)
    return Message(role=role, content=[ContentPart(raw=raw)])


# -- writing


def _write_message(item: Item) -> _Pieces:
    role, content = _ROLES[item["role"]], item["content"]
    rest = {name: value for name, value in item.items() if name not in {"role", "content"}}
    if isinstance(content, str):
        return role, [_text(content)], rest or None
    parts: list[ContentPart] = []
    left: list[Item | None] = []
    for part in content:
        if isinstance(part.get("text"), str):
            parts.append(_text(part["text"]))
            left.append({name: value for name, value in part.items() if name != "text"})
        else:
            parts.append(ContentPart(raw=RawContent(type=str(part["type"]), json=json.dumps(part))))
            left.append(None)
    return role, parts, {**rest, "content": left}


def _write_call(item: Item) -> _Pieces:
    call = ToolCall(name=item["name"], arguments_json=item["arguments"])
    rest = {name: value for name, value in item.items() if name not in {"type", "call_id", "name", "arguments"}}
    return ROLE_ASSISTANT, [ContentPart(tool_request=ToolRequest(id=item["call_id"], call=call))], rest or None


def _write_output(item: Item) -> _Pieces:
    result = ToolResult(content=[_text(item["output"])])
    rest = {name: value for name, value in item.items() if name not in {"type", "call_id", "output"}}
    return ROLE_TOOL, [ContentPart(tool_response=ToolResponse(id=item["call_id"], result=result))], rest or None


_WRITERS: Mapping[str, Callable[[Item], _Pieces]] = {
    "message": _write_message,
    "function_call": _write_call,
    "function_call_output": _write_output,
}


# -- reading


def _rest(message: Message) -> Item | None:
    if not message.extra_json:
        return None
    try:
        found = json.loads(message.extra_json)
    except ValueError:
        return None
    rest = found.get(_OURS) if isinstance(found, dict) else None
    return rest if isinstance(rest, dict) else None


def _restored(message: Message, rest: Item) -> Item:
    part = message.content[0]
    if part.HasField("tool_request"):
        return {**_call(part.tool_request), **rest}
    if part.HasField("tool_response"):
        return {**_output(part.tool_response), **rest}
    role = _NAMES.get(message.role, "user")
    if "content" not in rest:
        return {"role": role, "content": part.text.text, **rest}
    parts = [
        json.loads(one.raw.json) if left is None else {**left, "text": one.text.text}
        for one, left in zip(message.content, rest["content"], strict=True)
    ]
    return {**rest, "role": role, "content": parts}


def _plain(message: Message) -> list[Item]:
    items: list[Item] = []
    texts: list[str] = []
    for part in message.content:
        if part.HasField("text"):
            texts.append(part.text.text)
        elif part.HasField("summary"):
            texts.append(part.summary.text)
        elif part.HasField("tool_request") and part.tool_request.HasField("call"):
            items.append(_call(part.tool_request))
        elif part.HasField("tool_response"):
            items.append(_output(part.tool_response))
    if texts:
        items.insert(0, {"role": _NAMES.get(message.role, "user"), "content": "".join(texts)})
    return items


def _call(request: ToolRequest) -> Item:
    call = request.call
    return {"type": "function_call", "call_id": request.id, "name": call.name, "arguments": call.arguments_json}


def _output(response: ToolResponse) -> Item:
    texts = [part.text.text for part in response.result.content if part.HasField("text")]
    return {"type": "function_call_output", "call_id": response.id, "output": response.error or "\n".join(texts)}


def _text(text: str) -> ContentPart:
    return ContentPart(text=TextContent(text=text))
