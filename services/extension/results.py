"""Tools and results, from the words of MCP into those of the contracts, and nothing lost."""

import base64
import json
from typing import Any

import mcp_types as types

from gaggle.conversation.v1 import message_pb2
from gaggle.extension.v1 import extension_pb2


def tool_message(tool: types.Tool) -> extension_pb2.Tool:
    """Describe a tool."""
    body = dump(tool)
    shown = extension_pb2.Tool(
        name=clean(tool.name),
        title=clean(tool.title or ""),
        description=clean(tool.description or ""),
        input_schema_json=to_json(body.get("inputSchema", {})),
        output_schema_json=to_json(body["outputSchema"]) if body.get("outputSchema") is not None else "",
        meta_json=to_json(body["_meta"]) if body.get("_meta") else "",
    )
    hints = body.get("annotations") or {}
    for field, name in (
        ("read_only", "readOnlyHint"),
        ("destructive", "destructiveHint"),
        ("idempotent", "idempotentHint"),
        ("open_world", "openWorldHint"),
    ):
        if isinstance(hints.get(name), bool):
            setattr(shown.annotations, field, hints[name])
    if isinstance(hints.get("title"), str):
        shown.annotations.title = clean(hints["title"])
    return shown


def result_message(result: types.CallToolResult) -> message_pb2.ToolResult:
    """Give a result as a conversation keeps it."""
    body = dump(result)
    shown = message_pb2.ToolResult(content=[content_part(one) for one in body.pop("content", [])])
    if "isError" in body:
        shown.is_error = bool(body.pop("isError"))
    if body.get("structuredContent") is not None:
        shown.structured_content_json = to_json(body.pop("structuredContent"))
    body.pop("structuredContent", None)
    if body.get("resultType") == "complete":
        del body["resultType"]
    if body:
        shown.extra_json = to_json(body)
    return shown


def content_part(body: dict[str, Any]) -> message_pb2.ContentPart:
    """Give one piece of a result. What has no place of its own stays as it came."""
    kind = body.get("type")
    known = set(body) <= {"type", "text", "data", "mimeType", "annotations", "_meta"}
    notes = {
        "annotations_json": to_json(body["annotations"]) if body.get("annotations") else "",
        "meta_json": to_json(body["_meta"]) if body.get("_meta") else "",
    }
    if known and kind == "text":
        return message_pb2.ContentPart(text=message_pb2.TextContent(text=clean(body["text"]), **notes))
    if known and kind == "image" and (data := _decoded(body.get("data"))) is not None:
        image = message_pb2.ImageContent(data=data, mime_type=clean(body.get("mimeType", "")), **notes)
        return message_pb2.ContentPart(image=image)
    return message_pb2.ContentPart(raw=message_pb2.RawContent(type=clean(str(kind)), json=to_json(body)))


def dump(model: Any) -> dict[str, Any]:
    """Give a message of the SDK as JSON values, in the words of the protocol."""
    body: dict[str, Any] = model.model_dump(by_alias=True, mode="json", exclude_none=True)
    return body


def to_json(value: Any) -> str:
    """Write JSON."""
    return clean(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def clean(text: str) -> str:
    """Replace halves of surrogate pairs, which protobuf's strings do not hold."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _decoded(data: Any) -> bytes | None:
    try:
        decoded = base64.b64decode(data, validate=True)
    except (ValueError, TypeError):
        return None
    # Only what is written again just so, or it would not be without loss.
    return decoded if base64.b64encode(decoded).decode() == data else None
