"""Chat messages as OpenAI's API takes them, as JSON or JSON Lines.

https://platform.openai.com/docs/api-reference/chat/create (messages), and the fine-tuning file, one conversation a
line: https://platform.openai.com/docs/guides/supervised-fine-tuning
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from cli.transcripts._limits import MESSAGE_ID
from cli.transcripts._source import Document, Node
from cli.transcripts._transcript import Transcript, Written, dump, envelope_of, keep, kept, restore
from gaggle.conversation.v1.message_pb2 import (
    ROLE_ASSISTANT,
    ROLE_DEVELOPER,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    ContentPart,
    ImageContent,
    Message,
    RawContent,
    Role,
    TextContent,
    ToolCall,
    ToolRequest,
    ToolResponse,
    ToolResult,
)

_DIALECT = "openai"
_ROLES: "dict[str, Role.ValueType]" = {
    "user": ROLE_USER,
    "assistant": ROLE_ASSISTANT,
    "system": ROLE_SYSTEM,
    "developer": ROLE_DEVELOPER,
    "tool": ROLE_TOOL,
    "function": ROLE_TOOL,
}
_NAMES = {role: name for name, role in reversed(_ROLES.items())}
_LEGACY_CALL_ID = "function-call"


@dataclass(frozen=True)
class OpenAIFormat:
    """`lines` tells JSON Lines from JSON; both read and write the same messages."""

    name: str
    summary: str
    lines: bool

    def recognises(self, document: Document) -> bool:
        """A message or a list of them anywhere near the top."""
        if document.is_lines != self.lines:
            return False
        values = [node.value for node in document.lines[:1]] if self.lines else [document.root.value]
        if values and isinstance(values[0], list):
            values = values[0][:1]
        return bool(values) and isinstance(values[0], dict) and bool({"role", "messages"} & values[0].keys())

    def read(self, document: Document) -> list[Transcript]:
        """A document holds one conversation, or several as objects with `messages`."""
        if self.lines:
            nodes = document.lines
            if any(node.has("messages") for node in nodes):
                return [_conversation(node, "object") for node in nodes]
            return [_transcript(document, nodes, "list", None)]
        root = document.root
        if isinstance(root.value, list):
            nodes = list(root.elements())
            if any(node.has("messages") for node in nodes):
                return [_conversation(node, "object-in-list") for node in nodes]
            return [_transcript(document, nodes, "list", None)]
        return [_conversation(root, "object")]

    def write(self, messages: list[Message]) -> Written:
        """A list of messages, or the object that it was read from."""
        omitted: dict[str, None] = {}
        values = [_write_message(message, omitted) for message in messages]
        envelope = kept(messages[0], _DIALECT).get("envelope") if messages else None
        shape, members = envelope_of(envelope, "list")
        one_value: Any = values
        if shape.startswith("object"):
            one_value = {"messages": values} | members
        if self.lines:
            lines = values if one_value is values else [one_value]
            text = "".join(dump(line) + "\n" for line in lines)
        else:
            value = [one_value] if shape == "object-in-list" else one_value
            text = dump(value, indent=2) + "\n"
        return Written(text, tuple(omitted))


def _conversation(node: Node, shape: str) -> Transcript:
    members = {name: value for name, value in node.object().items() if name != "messages"}
    found = node.field("messages")
    transcript = _transcript(found, list(found.elements()), shape, members)
    transcript.source = node.value
    transcript.note_id(members)
    return transcript


def _transcript(whole: Document | Node, nodes: list[Node], shape: str, members: dict[str, Any] | None) -> Transcript:
    if not nodes:
        raise whole.error("has no messages")
    envelope = {"shape": shape, "members": members} if members is not None else None
    messages: list[Message] = []
    seen: set[str] = set()
    for node in nodes:
        message = _read_message(node, envelope if not messages else None)
        identity = node.value.get("id")
        if isinstance(identity, str) and MESSAGE_ID.fullmatch(identity) and identity not in seen:
            message.id = identity
            seen.add(identity)
        messages.append(message)
    return Transcript(messages, nodes, source=[node.value for node in nodes])


def _read_message(node: Node, envelope: dict[str, Any] | None) -> Message:
    role = node.field("role")
    if role.value not in _ROLES:
        raise role.error(f"must be one of {', '.join(_ROLES)}")
    message = Message(role=_ROLES[role.value])
    name = node.optional("name")
    if name is not None and name.value is not None:
        message.name = name.text()
    content = node.optional("content")
    parts = _read_content(content) if content is not None else []
    if message.role == ROLE_TOOL:
        call = node.optional("tool_call_id") if role.value == "tool" else None
        identity = call.text() if call is not None else _LEGACY_CALL_ID
        message.content.add(tool_response=ToolResponse(id=identity, result=ToolResult(content=parts)))
    else:
        message.content.extend(parts)
        message.content.extend(_read_calls(node))
        if not message.content:
            message.content.add(text=TextContent())
    # The form of the content is a mark of its own: as a difference it would hold the text a second time.
    as_parts = content is not None and isinstance(content.value, list)
    if as_parts and not isinstance(_content(parts, {}, as_parts=False), str):
        as_parts = False
    keep(
        message,
        _DIALECT,
        _plain(message, {}, as_parts=as_parts),
        node.value,
        parts=as_parts,
        envelope=envelope,
    )
    return message


def _read_content(node: Node) -> list[ContentPart]:
    if node.value is None:
        return []
    if isinstance(node.value, str):
        return [ContentPart(text=TextContent(text=node.text()))]
    if not isinstance(node.value, list):
        raise node.error("must be a string, an array of parts, or null")
    return [_read_part(part) for part in node.elements()]


def _read_part(node: Node) -> ContentPart:
    if isinstance(node.value, str):
        return ContentPart(text=TextContent(text=node.text()))
    kind = node.field("type").text()
    if kind == "text":
        return ContentPart(text=TextContent(text=node.field("text").text()))
    if kind == "image_url":
        image = node.field("image_url")
        detail = image.optional("detail")
        content = _read_image(image.field("url").text())
        if detail is not None and isinstance(detail.value, str):
            content.detail = detail.text()
        return ContentPart(image=content)
    return ContentPart(raw=RawContent(type=kind, json=dump(node.value)))


def _read_image(url: str) -> ImageContent:
    head, comma, body = url.partition(";base64,")
    if comma and head.startswith("data:"):
        try:
            content = ImageContent(data=base64.b64decode(body, validate=True), mime_type=head.removeprefix("data:"))
        except binascii.Error:
            pass
        else:
            if _image_url(content) == url:
                return content
    return ImageContent(uri=url)


def _read_calls(node: Node) -> list[ContentPart]:
    calls = node.optional("tool_calls")
    found = []
    if calls is not None and calls.value is not None:
        for call in calls.elements():
            kind = call.optional("type")
            if kind is not None and kind.value == "custom":
                found.append(ContentPart(raw=RawContent(type="custom", json=dump(call.value))))
            else:
                function = _read_function(call.field("function"))
                found.append(ContentPart(tool_request=ToolRequest(id=call.field("id").text(), call=function)))
    legacy = node.optional("function_call")
    if legacy is not None and legacy.value is not None:
        found.append(ContentPart(tool_request=ToolRequest(id=_LEGACY_CALL_ID, call=_read_function(legacy))))
    return found


def _read_function(node: Node) -> ToolCall:
    arguments = node.optional("arguments")
    text = ""
    if arguments is not None:
        text = arguments.text() if isinstance(arguments.value, str) else dump(arguments.value)
    return ToolCall(name=node.field("name").text(), arguments_json=text)


def _write_message(message: Message, omitted: dict[str, None]) -> dict[str, Any]:
    notes = kept(message, _DIALECT)
    made = _plain(message, omitted, as_parts=notes.get("parts") is True)
    restored = restore(made, notes)
    return restored if isinstance(restored, dict) else made


def _plain(message: Message, omitted: dict[str, None], *, as_parts: bool) -> dict[str, Any]:
    """The message from its fields alone."""
    made: dict[str, Any] = {"role": _NAMES.get(message.role, "user")}
    if message.name:
        made["name"] = message.name
    responses = [part.tool_response for part in message.content if part.WhichOneof("kind") == "tool_response"]
    if message.role == ROLE_TOOL and responses:
        made["tool_call_id"] = responses[0].id
        answered = responses[0].result.content if responses[0].HasField("result") else []
        made["content"] = _content(list(answered), omitted, as_parts=as_parts) or responses[0].error
        return made
    calls = [call for part in message.content if (call := _call(part)) is not None]
    said = [part for part in message.content if _call(part) is None]
    made["content"] = _content(said, omitted, as_parts=as_parts) if said or not calls else None
    if calls:
        made["tool_calls"] = calls
    return made


def _call(part: ContentPart) -> dict[str, Any] | None:
    kind = part.WhichOneof("kind")
    if kind == "tool_request":
        call = part.tool_request.call
        function = {"name": call.name, "arguments": call.arguments_json}
        return {"id": part.tool_request.id, "type": "function", "function": function}
    if kind == "raw" and part.raw.type == "custom":
        value = _object(part.raw.json)
        return value if value is not None and "custom" in value else None
    return None


def _content(parts: list[ContentPart], omitted: dict[str, None], *, as_parts: bool) -> str | list[dict[str, Any]]:
    values = []
    for part in parts:
        value = _part(part)
        if value is None:
            omitted[str(part.WhichOneof("kind"))] = None
        else:
            values.append(value)
    if not as_parts and all(value["type"] == "text" for value in values) and len(values) <= 1:
        return "".join(value["text"] for value in values)
    return values


def _part(part: ContentPart) -> dict[str, Any] | None:
    match part.WhichOneof("kind"):
        case "text":
            return {"type": "text", "text": part.text.text}
        case "summary":
            return {"type": "text", "text": part.summary.text}
        case "image":
            detail = {"detail": part.image.detail} if part.image.detail else {}
            return {"type": "image_url", "image_url": {"url": _image_url(part.image)} | detail}
        case "raw":
            return _object(part.raw.json)
        case _:
            return None


def _image_url(image: ImageContent) -> str:
    if image.WhichOneof("source") == "data":
        return f"data:{image.mime_type};base64,{base64.b64encode(image.data).decode()}"
    return image.uri


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("type"), str) else None


OPENAI = OpenAIFormat("openai", "chat messages as JSON: a list, or an object with messages", lines=False)
OPENAI_JSONL = OpenAIFormat("openai-jsonl", "chat messages, one a line, or one conversation a line", lines=True)
