"""ShareGPT's form, which many training sets share: {"conversations": [{"from": "human", "value": "..."}]}."""

from typing import Any

from cli.transcripts._source import Document, Node
from cli.transcripts._transcript import Transcript, Written, dump, envelope_of, keep, kept, restore
from gaggle.conversation.v1.message_pb2 import (
    ROLE_ASSISTANT,
    ROLE_DEVELOPER,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    Message,
    Role,
    TextContent,
)

_DIALECT = "sharegpt"
_ROLES: "dict[str, Role.ValueType]" = {
    "human": ROLE_USER,
    "user": ROLE_USER,
    "gpt": ROLE_ASSISTANT,
    "assistant": ROLE_ASSISTANT,
    "chatgpt": ROLE_ASSISTANT,
    "bard": ROLE_ASSISTANT,
    "bing": ROLE_ASSISTANT,
    "model": ROLE_ASSISTANT,
    "function_call": ROLE_ASSISTANT,
    "system": ROLE_SYSTEM,
    "tool": ROLE_TOOL,
    "function": ROLE_TOOL,
    "observation": ROLE_TOOL,
}
_NAMES: dict[int, str] = {
    ROLE_USER: "human",
    ROLE_ASSISTANT: "gpt",
    ROLE_SYSTEM: "system",
    ROLE_DEVELOPER: "system",
    ROLE_TOOL: "tool",
}


class ShareGPTFormat:
    """One conversation, a list of them, or one a line."""

    name = "sharegpt"
    summary = 'objects with "conversations" of {"from", "value"}, as JSON or JSON Lines'

    def recognises(self, document: Document) -> bool:
        """An object with `conversations` near the top."""
        nodes = document.lines[:1] if document.is_lines else [document.root]
        values = [node.value for node in nodes]
        if values and isinstance(values[0], list):
            values = values[0][:1]
        return bool(values) and isinstance(values[0], dict) and "conversations" in values[0]

    def read(self, document: Document) -> list[Transcript]:
        """A conversation for each object."""
        if document.is_lines:
            return [_read(node, "line") for node in document.lines]
        if isinstance(document.root.value, list):
            if not document.root.value:
                raise document.root.error("has no conversations")
            return [_read(node, "in-list") for node in document.root.elements()]
        return [_read(document.root, "object")]

    def write(self, messages: list[Message]) -> Written:
        """An object, in a list or on a line of its own if it was read so."""
        omitted: dict[str, None] = {}
        turns = [_write(message, omitted) for message in messages]
        envelope = kept(messages[0], _DIALECT).get("envelope") if messages else None
        shape, members = envelope_of(envelope, "object")
        value = members | {"conversations": turns}
        text = dump([value] if shape == "in-list" else value, indent=None if shape == "line" else 2)
        return Written(text + "\n", tuple(omitted))


def _read(node: Node, shape: str) -> Transcript:
    members = {name: value for name, value in node.object().items() if name != "conversations"}
    turns = node.field("conversations")
    transcript = Transcript([], source=node.value)
    for turn in turns.elements():
        role = turn.field("from")
        if role.value not in _ROLES:
            raise role.error(f"must be one of {', '.join(_ROLES)}")
        message = Message(role=_ROLES[role.value])
        message.content.add(text=TextContent(text=turn.field("value").text()))
        envelope = None if transcript.messages else {"shape": shape, "members": members}
        keep(message, _DIALECT, _plain(message, {}), turn.value, envelope=envelope)
        transcript.messages.append(message)
        transcript.places.append(turn)
    if not transcript.messages:
        raise turns.error("has no messages")
    transcript.note_id(members)
    return transcript


def _write(message: Message, omitted: dict[str, None]) -> dict[str, Any]:
    made = _plain(message, omitted)
    restored = restore(made, kept(message, _DIALECT))
    return restored if isinstance(restored, dict) else made


def _plain(message: Message, omitted: dict[str, None]) -> dict[str, Any]:
    """The turn from the message's fields alone; ShareGPT has text and nothing else."""
    texts = []
    for part in message.content:
        kind = str(part.WhichOneof("kind"))
        if kind == "text":
            texts.append(part.text.text)
        elif kind == "summary":
            texts.append(part.summary.text)
        elif kind == "tool_response" and part.tool_response.HasField("result"):
            texts.extend(inner.text.text for inner in part.tool_response.result.content if inner.HasField("text"))
        else:
            omitted[kind] = None
    return {"from": _NAMES.get(message.role, "human"), "value": "\n".join(texts)}


SHAREGPT = ShareGPTFormat()
