"""goose's messages, as its session export and the columns of its SQLite file hold them, and the contract's messages.

A goose message is {id?, role, created, content, metadata?}. What the contract has no field for is noted in the
message's `extra_json`, so that what was read is written again, value for value
(https://github.com/block/goose, crates/goose/src/conversation/message.rs).
"""

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC
from typing import Any

from cli.transcripts import MESSAGE_ID, dump, keep, kept, restore
from gaggle.conversation.v1.message_pb2 import (
    ROLE_ASSISTANT,
    ROLE_DEVELOPER,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_USER,
    ActionRequired,
    ContentPart,
    ImageContent,
    Inference,
    Message,
    RawContent,
    RedactedThinking,
    SystemNotification,
    TextContent,
    Thinking,
    ToolCall,
    ToolConfirmationRequest,
    ToolRequest,
    ToolResponse,
    ToolResult,
)

GooseMessage = dict[str, Any]

_DIALECT = "goose"
_MAX_PARTS = 256
_REST = "gaggle.rest"
_WHOLE = "gaggle.content"
# goose's own rule for what is seconds and what is milliseconds.
_MILLISECONDS_FROM = 10_000_000_000
_LAST_SECOND = 253_402_300_799


def read_message(wanted: GooseMessage, *, taken: set[str] | None = None) -> Message:
    """Read one message.

    `taken` holds the ids that messages before it have, and takes its own: goose repeats an id where it stores one
    streamed answer as several messages; all but the first then get one from the service.
    """
    content = wanted.get("content")
    message = Message(role=_read_role(wanted), content=_read_parts(content))
    metadata = wanted.get("metadata")
    if isinstance(metadata, dict):
        message.hidden_from_user = metadata.get("userVisible") is False
        message.hidden_from_agent = metadata.get("agentVisible") is False
        message.steer = metadata.get("steer") is True
        if isinstance(inference := metadata.get("inference"), dict):
            message.inference.CopyFrom(
                Inference(
                    provider=_text(inference.get("provider")),
                    requested_model=_text(inference.get("requestedModel")),
                    resolved_model=_text(inference.get("resolvedModel")),
                )
            )
    identity = wanted.get("id")
    taken = set() if taken is None else taken
    if isinstance(identity, str) and MESSAGE_ID.fullmatch(identity) and identity not in taken:
        message.id = identity
        taken.add(identity)
    if (moment := _seconds(wanted.get("created"))) is not None:
        message.original_time.FromSeconds(moment)
    made = _plain(message)
    # An id that the service gave is none of goose's; what the source said of it is kept here.
    if not message.id:
        made.pop("id", None)
    keep(message, _DIALECT, made, wanted, own_id=not message.id)
    return message


def write_message(message: Message) -> GooseMessage:
    """Write one message; what was read comes back as it was."""
    notes = kept(message, _DIALECT)
    made = _plain(message)
    if notes.get("own_id"):
        made.pop("id", None)
    restored = restore(made, notes)
    return restored if isinstance(restored, dict) else made


def write_messages(messages: Iterable[Message]) -> Iterator[GooseMessage]:
    """Write a conversation. goose orders by `created`, and so no message is older than the one before it."""
    latest: int | None = None
    for message in messages:
        written = write_message(message)
        created = written.get("created")
        if isinstance(created, int):
            if latest is not None and created < latest:
                written["created"] = latest
            latest = max(created, latest or created)
        yield written


def _read_role(wanted: GooseMessage) -> Any:
    content = wanted.get("content")
    if wanted.get("role") == "assistant":
        return ROLE_ASSISTANT
    if isinstance(content, list) and content and all(_kind(part) == "toolResponse" for part in content):
        return ROLE_TOOL
    return ROLE_SYSTEM if wanted.get("role") == "system" else ROLE_USER


def _write_role(message: Message) -> str:
    if message.role == ROLE_ASSISTANT:
        return "assistant"
    # goose has two roles; its system texts are no messages.
    return "system" if message.role in {ROLE_SYSTEM, ROLE_DEVELOPER} else "user"


def _plain(message: Message) -> GooseMessage:
    """The message from its fields alone."""
    made: GooseMessage = {"role": _write_role(message)}
    if message.id:
        made["id"] = message.id
    stamp = message.original_time if message.HasField("original_time") else message.create_time
    made["created"] = int(stamp.ToDatetime(tzinfo=UTC).timestamp())
    made["content"] = _write_parts(message.content)
    metadata: dict[str, Any] = {
        "userVisible": not message.hidden_from_user,
        "agentVisible": not message.hidden_from_agent,
    }
    if message.HasField("inference"):
        inference = {"provider": message.inference.provider, "requestedModel": message.inference.requested_model}
        if message.inference.resolved_model:
            inference["resolvedModel"] = message.inference.resolved_model
        metadata["inference"] = inference
    if message.steer:
        metadata["steer"] = True
    made["metadata"] = metadata
    return made


def _seconds(created: Any) -> int | None:
    if not isinstance(created, int) or isinstance(created, bool):
        return None
    seconds = created // 1000 if created > _MILLISECONDS_FROM else created
    return seconds if 0 <= seconds <= _LAST_SECOND else None


# -- content


def _read_parts(content: Any) -> list[ContentPart]:
    if not isinstance(content, list):
        return [ContentPart(raw=RawContent(type=_WHOLE, json=dump(content)))]
    if not content:
        # A message has something to say; that this one had nothing is noted as a difference.
        return [ContentPart(text=TextContent())]
    parts = [_read_part(part) for part in content[:_MAX_PARTS]]
    if len(content) > _MAX_PARTS:
        parts[-1] = ContentPart(raw=RawContent(type=_REST, json=dump(content[_MAX_PARTS - 1 :])))
    return parts


def _write_parts(parts: Iterable[ContentPart]) -> Any:
    written: list[Any] = []
    for part in parts:
        if part.raw.type == _WHOLE:
            return _loads(part.raw.json)
        if part.raw.type == _REST:
            written += _loads(part.raw.json)
        else:
            written.append(_write_part(part))
    return written


def _read_part(part: Any) -> ContentPart:
    reader = _READERS.get(_kind(part))
    if reader is not None:
        try:
            made = reader(part)
            # What is read has to be what is written, or near it: else the part is kept whole.
            _write_part(made)
        except (KeyError, TypeError, ValueError, AttributeError):
            pass
        else:
            return made
    return ContentPart(raw=RawContent(type=_kind(part)[:64], json=dump(part)))


def _write_part(part: ContentPart) -> Any:  # noqa: C901, PLR0911 - a table of kinds
    match part.WhichOneof("kind"):
        case "text":
            return {"type": "text", "text": part.text.text} | _objects(
                annotations=part.text.annotations_json, _meta=part.text.meta_json
            )
        case "image":
            return _write_image(part.image)
        case "tool_request":
            return _write_request(part.tool_request)
        case "tool_response":
            return _write_response(part.tool_response)
        case "tool_confirmation_request":
            asked = part.tool_confirmation_request
            made: dict[str, Any] = {"type": "toolConfirmationRequest", "id": asked.id, "toolName": asked.tool_name}
            made["arguments"] = _loads(asked.arguments_json)
            made["prompt"] = asked.prompt if asked.HasField("prompt") else None
            return made
        case "action_required":
            data = {"actionType": part.action_required.action_type} | _object(part.action_required.data_json)
            return {"type": "actionRequired", "data": data}
        case "thinking":
            return {"type": "thinking", "thinking": part.thinking.thinking, "signature": part.thinking.signature}
        case "redacted_thinking":
            return {"type": "redactedThinking", "data": part.redacted_thinking.data}
        case "system_notification":
            told = part.system_notification
            made = {"type": "systemNotification", "notificationType": told.notification_type, "msg": told.message}
            return made | _objects(data=told.data_json)
        case "summary":
            return {"type": "text", "text": part.summary.text}
        case "raw":
            return _loads(part.raw.json)
        case _:
            return {"type": "text", "text": ""}


def _read_text(part: dict[str, Any]) -> ContentPart:
    text = TextContent(text=_utf8(part["text"]))
    if part.get("annotations") is not None:
        text.annotations_json = dump(part["annotations"])
    if part.get("_meta") is not None:
        text.meta_json = dump(part["_meta"])
    return ContentPart(text=text)


def _read_image(part: dict[str, Any]) -> ContentPart:
    try:
        data = base64.b64decode(part["data"], validate=True)
    except binascii.Error:
        raise ValueError("no base64") from None
    if base64.b64encode(data).decode() != part["data"]:
        raise ValueError("written in another way than it would be again")
    image = ImageContent(data=data, mime_type=_utf8(part["mimeType"]))
    if part.get("annotations") is not None:
        image.annotations_json = dump(part["annotations"])
    if part.get("_meta") is not None:
        image.meta_json = dump(part["_meta"])
    return ContentPart(image=image)


def _write_image(image: ImageContent) -> Any:
    extra = _objects(annotations=image.annotations_json, _meta=image.meta_json)
    if image.WhichOneof("source") == "uri":
        # goose holds images themselves; the service never fetches one.
        return {"type": "text", "text": image.uri}
    encoded = base64.b64encode(image.data).decode()
    return {"type": "image", "data": encoded, "mimeType": image.mime_type} | extra


def _read_request(part: dict[str, Any]) -> ContentPart:
    frontend = part["type"] == "frontendToolRequest"
    request = ToolRequest(id=_utf8(part["id"]), frontend=frontend)
    outcome = part["toolCall"]
    if outcome["status"] == "success":
        value = dict(outcome["value"])
        call = ToolCall(name=_utf8(value.pop("name")))
        if "arguments" in value:
            call.arguments_json = dump(value.pop("arguments"))
        if value:
            call.extra_json = dump(value)
        request.call.CopyFrom(call)
    else:
        request.error = _utf8(outcome["error"])
    if part.get("metadata") is not None:
        request.metadata_json = dump(part["metadata"])
    if part.get("_meta") is not None:
        request.tool_meta_json = dump(part["_meta"])
    return ContentPart(tool_request=request)


def _write_request(request: ToolRequest) -> Any:
    made: dict[str, Any] = {"type": "frontendToolRequest" if request.frontend else "toolRequest", "id": request.id}
    if request.HasField("call"):
        value: dict[str, Any] = {"name": request.call.name}
        if request.call.arguments_json:
            value["arguments"] = _loads(request.call.arguments_json)
        made["toolCall"] = {"status": "success", "value": value | _object(request.call.extra_json)}
    else:
        made["toolCall"] = {"status": "error", "error": request.error}
    return made | _objects(metadata=request.metadata_json, _meta=request.tool_meta_json)


def _read_response(part: dict[str, Any]) -> ContentPart:
    response = ToolResponse(id=_utf8(part["id"]))
    outcome = part["toolResult"]
    if outcome["status"] == "success":
        value = outcome["value"]
        bare = isinstance(value, list)
        contents = value if bare else value["content"]
        result = ToolResult(content=[_read_part(one) for one in contents], bare=bare)
        rest = {} if bare else {name: one for name, one in value.items() if name != "content"}
        if isinstance(rest.get("isError"), bool):
            result.is_error = rest.pop("isError")
        if rest.get("structuredContent") is not None:
            result.structured_content_json = dump(rest.pop("structuredContent"))
        if rest:
            result.extra_json = dump(rest)
        response.result.CopyFrom(result)
    else:
        response.error = _utf8(outcome["error"])
    if part.get("metadata") is not None:
        response.metadata_json = dump(part["metadata"])
    return ContentPart(tool_response=response)


def _write_response(response: ToolResponse) -> Any:
    made: dict[str, Any] = {"type": "toolResponse", "id": response.id}
    if response.HasField("result"):
        result = response.result
        contents = [_write_part(part) for part in result.content]
        value: Any = contents
        if not result.bare:
            value = {"content": contents}
            if result.HasField("is_error"):
                value["isError"] = result.is_error
            value |= _objects(structuredContent=result.structured_content_json) | _object(result.extra_json)
        made["toolResult"] = {"status": "success", "value": value}
    else:
        made["toolResult"] = {"status": "error", "error": response.error}
    return made | _objects(metadata=response.metadata_json)


def _read_confirmation(part: dict[str, Any]) -> ContentPart:
    asked = ToolConfirmationRequest(
        id=_utf8(part["id"]), tool_name=_utf8(part["toolName"]), arguments_json=dump(part["arguments"])
    )
    if isinstance(part.get("prompt"), str):
        asked.prompt = _utf8(part["prompt"])
    return ContentPart(tool_confirmation_request=asked)


def _read_action(part: dict[str, Any]) -> ContentPart:
    data = dict(part["data"])
    action = ActionRequired(action_type=_utf8(data.pop("actionType")))
    if data:
        action.data_json = dump(data)
    return ContentPart(action_required=action)


def _read_thinking(part: dict[str, Any]) -> ContentPart:
    thinking = Thinking(thinking=_utf8(part["thinking"]), signature=_utf8(part["signature"]))
    return ContentPart(thinking=thinking)


def _read_reasoning(part: dict[str, Any]) -> ContentPart:
    # What goose called its thinking before; it reads so still.
    return ContentPart(thinking=Thinking(thinking=_utf8(part["text"])))


def _read_redacted(part: dict[str, Any]) -> ContentPart:
    return ContentPart(redacted_thinking=RedactedThinking(data=_utf8(part["data"])))


def _read_notification(part: dict[str, Any]) -> ContentPart:
    told = SystemNotification(notification_type=_utf8(part["notificationType"]), message=_utf8(part["msg"]))
    if part.get("data") is not None:
        told.data_json = dump(part["data"])
    return ContentPart(system_notification=told)


_READERS: dict[str, Callable[[dict[str, Any]], ContentPart]] = {
    "text": _read_text,
    "image": _read_image,
    "toolRequest": _read_request,
    "frontendToolRequest": _read_request,
    "toolResponse": _read_response,
    "toolConfirmationRequest": _read_confirmation,
    "actionRequired": _read_action,
    "thinking": _read_thinking,
    "reasoning": _read_reasoning,
    "redactedThinking": _read_redacted,
    "systemNotification": _read_notification,
}


def _kind(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else ""


def _utf8(value: Any) -> str:
    """A string that protobuf can hold. Raises TypeError, ValueError."""
    if not isinstance(value, str):
        raise TypeError("no string")
    value.encode()
    return value


def _text(value: Any) -> str:
    try:
        return _utf8(value)
    except (TypeError, ValueError):
        return ""


def _loads(text: str) -> Any:
    return json.loads(text) if text else None


def _object(text: str) -> dict[str, Any]:
    value = _loads(text)
    return value if isinstance(value, dict) else {}


def _objects(**texts: str) -> dict[str, Any]:
    """The members whose text is not empty."""
    return {name: json.loads(text) for name, text in texts.items() if text}
