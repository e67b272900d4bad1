"""A conversation's messages as models take them. Knows neither gRPC nor Dapr."""

import base64
import fnmatch
import json
from collections.abc import Iterable, Sequence

from gaggle.agent.v1 import session_pb2
from gaggle.conversation.v1 import message_pb2
from services.agent.models.base import CalledTool, Image, OfferedTool, PromptMessage

_ROLES = {
    message_pb2.ROLE_USER: "user",
    message_pb2.ROLE_ASSISTANT: "assistant",
    message_pb2.ROLE_SYSTEM: "system",
    message_pb2.ROLE_DEVELOPER: "system",
    message_pb2.ROLE_TOOL: "tool",
}
_NO_ANSWER = "The tool has not answered."
MIN_ANSWER_TOKENS = 256


def prompt_messages(system: str, messages: Sequence[message_pb2.Message]) -> list[PromptMessage]:
    """Give the system prompt and these messages, each tool's answer right after the call that asked for it.

    Providers refuse a call without its answer and an answer without its call. A conversation may have both: others
    may speak in between, and the budget may cut it anywhere. What has lost its call is left out.
    """
    answers = {
        part.tool_response.id: part.tool_response
        for message in messages
        for part in message.content
        if part.HasField("tool_response")
    }
    prompt = [PromptMessage("system", system)] if system else []
    for message in messages:
        told = _message(message)
        if told is None:
            continue
        prompt.append(told)
        for call in told.tool_calls:
            answer = answers.get(call.id)
            text = _NO_ANSWER if answer is None else response_text(answer)
            prompt.append(PromptMessage("tool", text, tool_call_id=call.id, name=call.name))
    return prompt


def _message(message: message_pb2.Message) -> PromptMessage | None:
    texts: list[str] = []
    images: list[Image] = []
    calls: list[CalledTool] = []
    role = _ROLES.get(message.role, "user")
    for part in message.content:
        kind = part.WhichOneof("kind")
        if kind == "text":
            texts.append(part.text.text)
        elif kind == "summary":
            texts.append(f"Summary of the conversation so far:\n{part.summary.text}")
            role = "system"
        elif kind == "image":
            images.append(_image(part.image))
        elif kind == "tool_request" and part.tool_request.HasField("call"):
            call = part.tool_request.call
            calls.append(CalledTool(part.tool_request.id, call.name, call.arguments_json or "{}"))
    if role == "tool" or not (texts or images or calls):
        return None
    return PromptMessage(role, "\n".join(texts), tuple(images), tuple(calls), name=message.name)


def _image(image: message_pb2.ImageContent) -> Image:
    if image.WhichOneof("source") == "uri":
        return Image(image.uri, image.detail)
    data = base64.b64encode(image.data).decode()
    return Image(f"data:{image.mime_type or 'application/octet-stream'};base64,{data}", image.detail)


def response_text(response: message_pb2.ToolResponse) -> str:
    """Give what a tool answered as text."""
    if response.WhichOneof("outcome") == "error":
        return f"Error: {response.error}"
    result = response.result
    texts = []
    for part in result.content:
        kind = part.WhichOneof("kind")
        if kind == "text":
            texts.append(part.text.text)
        elif kind == "image":
            texts.append(f"[image, {part.image.mime_type}]")
        elif kind == "raw":
            texts.append(part.raw.json)
    if not texts and result.structured_content_json:
        texts.append(result.structured_content_json)
    text = "\n".join(texts)
    return f"Error: {text}" if result.is_error else text


def cut(response: message_pb2.ToolResponse, most_bytes: int) -> message_pb2.ToolResponse:
    """Give an answer that is no larger than so many bytes; one that was cut says so."""
    if response.ByteSize() <= most_bytes:
        return response
    note = f"\n[cut: {response.ByteSize()} bytes, {most_bytes} are kept]"
    text = response_text(response).encode()[: most_bytes - len(note) - 256].decode(errors="ignore")
    shorter = message_pb2.ToolResponse(id=response.id)
    if response.WhichOneof("outcome") == "error":
        shorter.error = text + note
    else:
        shorter.result.content.add().text.text = text + note
        if response.result.HasField("is_error"):
            shorter.result.is_error = response.result.is_error
    return shorter


def token_budget(
    context_tokens: int, asked: int, max_output_tokens: int, system: str, tools: Iterable[OfferedTool]
) -> int:
    """Give what is left for the conversation, counted as it counts: a quarter of the bytes."""
    total = min(context_tokens, asked) if asked else context_tokens
    answer = max_output_tokens or min(max(total // 4, MIN_ANSWER_TOKENS), 8_192)
    tool_bytes = sum(len(one.name) + len(one.description) + len(one.schema_json) for one in tools)
    return max(total - answer - len(system.encode()) // 4 - tool_bytes // 4, 1)


def needs_approval(policy: session_pb2.ApprovalPolicy, tool_name: str, *, read_only: bool) -> bool:
    """Tell whether a call waits for a person."""
    if any(fnmatch.fnmatchcase(tool_name, pattern) for pattern in policy.tools):
        return True
    if policy.mode == session_pb2.APPROVAL_MODE_APPROVE:
        return True
    return policy.mode == session_pb2.APPROVAL_MODE_SMART_APPROVE and not read_only


def argument_fault(arguments_json: str) -> str:
    """Say what is wrong with a model's arguments; empty: they are a JSON object."""
    try:
        arguments = json.loads(arguments_json or "{}")
    except (ValueError, RecursionError) as error:
        return f"the arguments are not JSON: {error}"
    return "" if isinstance(arguments, dict) else "the arguments must be a JSON object"


def json_text(text: str) -> str:
    """Take a JSON value out of an answer: as it is, or from a fenced block."""
    stripped = text.strip()
    if stripped.startswith("```") and stripped.endswith("```"):
        stripped = stripped[3:-3].strip()
        stripped = stripped.removeprefix("json").strip()
    return stripped
