"""Any server that speaks OpenAI's chat completions, by the official client.

The client's library takes tens of megabytes and a second to load: it is, beside the event loop, when an endpoint is
first asked.
"""

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.v1 import message_pb2
from services.agent.models.base import (
    CalledTool,
    Finished,
    Image,
    ModelError,
    Piece,
    PriceList,
    Prompt,
    PromptMessage,
    Text,
    ThinkingText,
    price,
)

if TYPE_CHECKING:
    import openai

_RATE_LIMITED = error_reason_pb2.ERROR_REASON_MODEL_RATE_LIMITED
_REFUSED = error_reason_pb2.ERROR_REASON_MODEL_REFUSED
_UNAVAILABLE = error_reason_pb2.ERROR_REASON_MODEL_UNAVAILABLE
_REJECTED = error_reason_pb2.ERROR_REASON_MODEL_REQUEST_REJECTED
_KEY_REJECTED = error_reason_pb2.ERROR_REASON_MODEL_KEY_REJECTED
_CONNECT_SECONDS = 10.0
_MOST_PARALLEL_CALLS = 64


class OpenAIModel:
    """A model of an OpenAI-compatible endpoint."""

    offline = False

    def __init__(
        self,
        client: "Callable[[], Awaitable[openai.AsyncOpenAI]]",
        *,
        endpoint: str,
        model: str,
        context_tokens: int,
        tools: bool,
        prices: PriceList | None,
        max_tokens_field: str,
    ) -> None:
        """`client` gives the endpoint's, made when it is first wanted."""
        self._client = client
        self._prices = prices
        self._max_tokens_field = max_tokens_field
        self.name = f"{endpoint}:{model}"
        self.provider = endpoint
        self.requested = model
        self.description = f"{model} of the endpoint {endpoint}"
        self.context_tokens = context_tokens
        self.tools = tools

    def cost(self, usage: message_pb2.TokenUsage) -> float | None:
        """By the deployment's price list."""
        return price(self._prices, usage)

    async def answer(self, prompt: Prompt) -> AsyncIterator[Piece]:
        """Stream a chat completion."""
        client = await self._client()
        import openai

        answer = _Answer()
        try:
            stream = await client.chat.completions.create(**self._request(prompt))
            async with stream:
                async for chunk in stream:
                    for piece in answer.take(chunk):
                        yield piece
        except openai.OpenAIError as error:
            raise model_error(error, client.api_key) from error
        except json.JSONDecodeError as error:
            raise ModelError(_UNAVAILABLE, "the endpoint sent what is no JSON") from error
        yield answer.finished()

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.requested,
            "messages": [_message(one) for one in prompt.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if prompt.tools and self.tools:
            request["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": one.name,
                        "description": one.description,
                        "parameters": json.loads(one.schema_json or '{"type": "object"}'),
                    },
                }
                for one in prompt.tools
            ]
        if prompt.temperature is not None:
            request["temperature"] = prompt.temperature
        if prompt.max_output_tokens:
            request[self._max_tokens_field] = prompt.max_output_tokens
        if prompt.response_schema_json:
            schema = {"name": "response", "schema": json.loads(prompt.response_schema_json)}
            request["response_format"] = {"type": "json_schema", "json_schema": schema}
        return request


class _Answer:
    """A completion in the making: calls come in pieces, by index."""

    def __init__(self) -> None:
        self._calls: dict[int, list[str]] = {}
        self._usage = message_pb2.TokenUsage()
        self._model = ""
        self._reason = ""
        self._refusal = ""

    def take(self, chunk: Any) -> list[Piece]:
        """Take a chunk; give what it says."""
        pieces: list[Piece] = []
        self._model = chunk.model or self._model
        if chunk.usage is not None:
            self._usage = _usage(chunk.usage)
        for choice in chunk.choices[:1]:
            self._reason = choice.finish_reason or self._reason
            delta = choice.delta
            if delta is None:
                continue
            # Not OpenAI's own, but what vLLM, DeepSeek and others send.
            thinking = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
            if isinstance(thinking, str):
                pieces.append(ThinkingText(thinking))
            if delta.content:
                pieces.append(Text(delta.content))
            self._refusal += delta.refusal or ""
            for call in delta.tool_calls or ():
                self._take_call(call)
        return pieces

    def _take_call(self, call: Any) -> None:
        if call.index not in self._calls and len(self._calls) >= _MOST_PARALLEL_CALLS:
            raise ModelError(_REJECTED, f"the model asked for more than {_MOST_PARALLEL_CALLS} tools at once")
        parts = self._calls.setdefault(call.index, ["", "", ""])
        parts[0] = call.id or parts[0]
        if call.function is not None:
            parts[1] += call.function.name or ""
            parts[2] += call.function.arguments or ""

    def finished(self) -> Finished:
        """Judge the end. Raises ModelError."""
        if self._refusal or self._reason == "content_filter":
            raise ModelError(_REFUSED, self._refusal or "the provider's filter stopped the answer")
        if not self._reason:
            raise ModelError(_UNAVAILABLE, "the answer broke off")
        calls = tuple(CalledTool(*self._calls[index]) for index in sorted(self._calls))
        return Finished(calls, self._usage, self._model, truncated=self._reason == "length")


def _usage(counted: Any) -> message_pb2.TokenUsage:
    usage = message_pb2.TokenUsage(
        input_tokens=counted.prompt_tokens or 0,
        output_tokens=counted.completion_tokens or 0,
        total_tokens=counted.total_tokens or 0,
    )
    details = counted.prompt_tokens_details
    if details is not None and details.cached_tokens is not None:
        usage.cache_read_input_tokens = details.cached_tokens
    return usage


def _message(one: PromptMessage) -> dict[str, Any]:
    message: dict[str, Any] = {"role": one.role, "content": one.text}
    if one.images:
        parts: list[dict[str, Any]] = [{"type": "text", "text": one.text}] if one.text else []
        message["content"] = parts + [_image(image) for image in one.images]
    if one.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
            for call in one.tool_calls
        ]
        message["content"] = one.text or None
    if one.role == "tool":
        message["tool_call_id"] = one.tool_call_id
    elif one.name and one.role == "user":
        message["name"] = one.name
    return message


def _image(image: Image) -> dict[str, Any]:
    url = {"url": image.url, **({"detail": image.detail} if image.detail else {})}
    return {"type": "image_url", "image_url": url}


def model_error(error: "openai.OpenAIError", key: str = "") -> ModelError:
    """Say of a failure of the client which of ours it is; `key` is what no answer may hold."""
    import openai

    if isinstance(error, openai.APIConnectionError):
        return ModelError(_UNAVAILABLE, "the endpoint can't be reached, or is too slow")
    status = getattr(error, "status_code", None) or HTTPStatus.INTERNAL_SERVER_ERROR
    code = str(getattr(error, "code", None) or getattr(error, "type", None) or "")
    text = str(getattr(error, "message", "")) or type(error).__name__
    reason = _BY_CODE.get(code) or _BY_STATUS.get(status)
    if reason is None:
        away = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        reason = _UNAVAILABLE if away else _REJECTED
    if status in _KEY_STATUSES:
        # The provider's words may hold a piece of the key.
        text = "the endpoint does not take the deployment's key"
    elif key and key != _NO_KEY:
        text = text.replace(key, "***")
    return ModelError(reason, text, retry_after_seconds=_retry_after(error))


# The client insists on one.
_NO_KEY = "none"
_KEY_STATUSES = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PAYMENT_REQUIRED})
_BY_CODE = {
    **dict.fromkeys(("insufficient_quota", "billing_hard_limit_reached", "account_deactivated"), _KEY_REJECTED),
    "content_filter": _REFUSED,
    "rate_limit_exceeded": _RATE_LIMITED,
}
_BY_STATUS = {
    HTTPStatus.TOO_MANY_REQUESTS: _RATE_LIMITED,
    HTTPStatus.REQUEST_TIMEOUT: _UNAVAILABLE,
    HTTPStatus.CONFLICT: _UNAVAILABLE,
    **dict.fromkeys(_KEY_STATUSES, _KEY_REJECTED),
}


def _retry_after(error: "openai.OpenAIError") -> float | None:
    response = getattr(error, "response", None)
    header = response.headers.get("retry-after", "") if response is not None else ""
    try:
        return max(float(header), 0.0)
    except ValueError:
        return None


class OpenAIClients:
    """One client an endpoint, its key read from the secret store when it is first wanted."""

    def __init__(self, key: Callable[[str], Awaitable[str]]) -> None:
        """`key` reads a secret by its name."""
        self._key = key
        self._clients: dict[str, openai.AsyncOpenAI] = {}

    async def client(self, name: str, base_url: str, secret: str, timeout_seconds: float) -> "openai.AsyncOpenAI":
        """Give an endpoint's client. Raises ModelError if its key can't be had."""
        if name not in self._clients:
            key = await self._read(secret) if secret else _NO_KEY
            openai = await asyncio.to_thread(importlib.import_module, "openai")
            self._clients[name] = openai.AsyncOpenAI(
                base_url=base_url,
                api_key=key,
                # Repeating is the turn's business: it knows what was streamed already.
                max_retries=0,
                timeout=openai.Timeout(timeout_seconds, connect=_CONNECT_SECONDS),
            )
        return self._clients[name]

    async def _read(self, secret: str) -> str:
        try:
            key = await self._key(secret)
        except Exception as error:
            raise ModelError(_KEY_REJECTED, f"the secret {secret!r} can't be read") from error
        if not key:
            raise ModelError(_KEY_REJECTED, f"the secret {secret!r} is empty")
        return key

    def forget(self, name: str) -> None:
        """Read the key again next time: it may have been changed."""
        self._clients.pop(name, None)

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()
