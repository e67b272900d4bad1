"""A conversation component of the sidecar, by Dapr's ConverseAlpha2. It answers whole, not in pieces."""

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import json_format, struct_pb2

from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.v1 import message_pb2
from services.agent.models.base import (
    CalledTool,
    Finished,
    ModelError,
    Piece,
    PriceList,
    Prompt,
    PromptMessage,
    Text,
    price,
)
from services.runtime.dapr import ai_pb2
from services.runtime.sidecar import Sidecar

_FIELDS = {"system": "of_system", "user": "of_user", "assistant": "of_assistant", "tool": "of_tool"}


class DaprConversationModel:
    """A component of type conversation.*."""

    offline = False

    def __init__(
        self,
        sidecar: Sidecar,
        component: str,
        *,
        context_tokens: int,
        tools: bool,
        prices: PriceList | None,
        timeout_seconds: float,
    ) -> None:
        """`component` is its name; which model it asks says its own YAML."""
        self._sidecar = sidecar
        self._timeout = timeout_seconds
        self._prices = prices
        self.name = f"dapr:{component}"
        self.provider = "dapr"
        self.requested = component
        self.description = f"Dapr's conversation component {component}"
        self.context_tokens = context_tokens
        self.tools = tools

    def cost(self, usage: message_pb2.TokenUsage) -> float | None:
        """By the deployment's price list."""
        return price(self._prices, usage)

    async def answer(self, prompt: Prompt) -> AsyncIterator[Piece]:
        """Ask once, and give the whole answer."""
        try:
            response = await self._sidecar.stub.ConverseAlpha2(
                self._request(prompt), timeout=self._timeout, metadata=self._sidecar.metadata()
            )
        except grpc.aio.AioRpcError as error:
            raise _error(error) from error
        if not response.outputs or not response.outputs[0].choices:
            raise ModelError(error_reason_pb2.ERROR_REASON_MODEL_UNAVAILABLE, "the component gave no answer")
        output = response.outputs[0]
        choice = output.choices[0]
        if choice.finish_reason == "content_filter":
            raise ModelError(error_reason_pb2.ERROR_REASON_MODEL_REFUSED, "the provider's filter stopped the answer")
        if choice.message.content:
            yield Text(choice.message.content)
        calls = tuple(
            CalledTool(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls
        )
        yield Finished(calls, _usage(output), output.model, truncated=choice.finish_reason == "length")

    def _request(self, prompt: Prompt) -> Any:
        request = ai_pb2.ConversationRequestAlpha2(name=self.requested)
        request.inputs.add(messages=[_message(one) for one in prompt.messages])
        if prompt.temperature is not None:
            request.temperature = prompt.temperature
        if prompt.max_output_tokens:
            request.max_tokens = prompt.max_output_tokens
        for tool in prompt.tools if self.tools else ():
            function = ai_pb2.ConversationToolsFunction(name=tool.name, description=tool.description)
            json_format.ParseDict(json.loads(tool.schema_json or '{"type": "object"}'), function.parameters)
            request.tools.add(function=function)
        if prompt.response_schema_json:
            schema = struct_pb2.Struct()
            json_format.ParseDict(json.loads(prompt.response_schema_json), schema)
            request.response_format.CopyFrom(schema)
        return request


def _message(one: PromptMessage) -> Any:
    message = ai_pb2.ConversationMessage()
    body = getattr(message, _FIELDS[one.role])
    body.content.add(text=one.text)
    if one.name:
        body.name = one.name
    for call in one.tool_calls:
        function = ai_pb2.ConversationToolCallsOfFunction(name=call.name, arguments=call.arguments_json)
        body.tool_calls.add(id=call.id, function=function)
    if one.role == "tool":
        body.tool_id = one.tool_call_id
    return message


def _usage(output: Any) -> message_pb2.TokenUsage:
    usage = message_pb2.TokenUsage()
    if output.HasField("usage"):
        counted = output.usage
        usage.input_tokens = counted.prompt_tokens
        usage.output_tokens = counted.completion_tokens
        usage.total_tokens = counted.total_tokens
        if counted.HasField("prompt_tokens_details"):
            usage.cache_read_input_tokens = counted.prompt_tokens_details.cached_tokens
    return usage


_REASONS = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: error_reason_pb2.ERROR_REASON_MODEL_RATE_LIMITED,
    grpc.StatusCode.UNAUTHENTICATED: error_reason_pb2.ERROR_REASON_MODEL_KEY_REJECTED,
    grpc.StatusCode.PERMISSION_DENIED: error_reason_pb2.ERROR_REASON_MODEL_KEY_REJECTED,
    grpc.StatusCode.INVALID_ARGUMENT: error_reason_pb2.ERROR_REASON_MODEL_REQUEST_REJECTED,
    grpc.StatusCode.NOT_FOUND: error_reason_pb2.ERROR_REASON_MODEL_REQUEST_REJECTED,
    grpc.StatusCode.FAILED_PRECONDITION: error_reason_pb2.ERROR_REASON_MODEL_REQUEST_REJECTED,
}


def _error(error: grpc.aio.AioRpcError) -> ModelError:
    # daprd answers a provider's own errors as INTERNAL, whatever they were.
    reason = _REASONS.get(error.code(), error_reason_pb2.ERROR_REASON_MODEL_UNAVAILABLE)
    return ModelError(reason, error.details() or error.code().name)
