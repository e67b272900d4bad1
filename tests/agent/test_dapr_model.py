"""Dapr's Conversation API: what is sent to a sidecar, and what its answers mean. The sidecar is a stand-in."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from gaggle.common.v1 import error_reason_pb2
from services.agent.models.base import CalledTool, Finished, ModelError, OfferedTool, Prompt, PromptMessage, Text
from services.agent.models.dapr_conversation import DaprConversationModel
from services.runtime.dapr import ai_pb2, dapr_pb2_grpc
from services.runtime.sidecar import Sidecar


class _Dapr(dapr_pb2_grpc.DaprServicer):
    """Answers ConverseAlpha2 with what it was given to answer."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.answer: Any = None
        self.code: grpc.StatusCode | None = None

    async def ConverseAlpha2(self, request: Any, context: Any) -> Any:  # noqa: N802 - Dapr's name
        self.requests.append(request)
        if self.code is not None:
            await context.abort(self.code, "scripted")
        return self.answer


@pytest.fixture
async def dapr() -> AsyncIterator[tuple[_Dapr, DaprConversationModel]]:
    """A sidecar, and the model that asks it."""
    servicer = _Dapr()
    server = grpc.aio.server()
    dapr_pb2_grpc.add_DaprServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sidecar = Sidecar(f"127.0.0.1:{port}")
    model = DaprConversationModel(sidecar, "echo", context_tokens=1000, tools=True, prices=None, timeout_seconds=5)
    yield servicer, model
    await sidecar.close()
    await server.stop(None)


def _response(**fields: Any) -> Any:
    return json_format.ParseDict({"outputs": [fields]}, ai_pb2.ConversationResponseAlpha2())


async def test_whole_answers(dapr: tuple[_Dapr, DaprConversationModel]) -> None:
    """Messages of all roles and tools go out; text, calls and usage come back."""
    servicer, model = dapr
    function = {"name": "now", "arguments": '{"zone": "utc"}'}
    message = {"content": "wait", "toolCalls": [{"id": "c1", "function": function}]}
    usage = {"promptTokens": "7", "completionTokens": "3", "totalTokens": "10"}
    servicer.answer = _response(choices=[{"finishReason": "tool_calls", "message": message}], model="m", usage=usage)
    call = CalledTool("c0", "now", "{}")
    prompt = Prompt(
        [
            PromptMessage("system", "s"),
            PromptMessage("user", "u", name="ann"),
            PromptMessage("assistant", "", tool_calls=(call,)),
            PromptMessage("tool", "t", tool_call_id="c0", name="now"),
        ],
        (OfferedTool("now", "the time", '{"type": "object"}'),),
        temperature=0.5,
    )
    pieces = [piece async for piece in model.answer(prompt)]
    assert pieces[0] == Text("wait")
    finished = pieces[-1]
    assert isinstance(finished, Finished)
    assert finished.calls == (CalledTool("c1", "now", '{"zone": "utc"}'),)
    assert (finished.usage.input_tokens, finished.usage.total_tokens, finished.resolved_model) == (7, 10, "m")
    (sent,) = servicer.requests
    assert (sent.name, sent.temperature) == ("echo", 0.5)
    kinds = [one.WhichOneof("message_types") for one in sent.inputs[0].messages]
    assert kinds == ["of_system", "of_user", "of_assistant", "of_tool"]
    assert sent.inputs[0].messages[3].of_tool.tool_id == "c0"
    assert sent.tools[0].function.name == "now"


ERRORS = {
    "busy": (grpc.StatusCode.RESOURCE_EXHAUSTED, "MODEL_RATE_LIMITED"),
    "no-component": (grpc.StatusCode.INVALID_ARGUMENT, "MODEL_REQUEST_REJECTED"),
    "key": (grpc.StatusCode.UNAUTHENTICATED, "MODEL_KEY_REJECTED"),
    "provider": (grpc.StatusCode.INTERNAL, "MODEL_UNAVAILABLE"),
}


@pytest.mark.parametrize(("code", "reason"), ERRORS.values(), ids=ERRORS.keys())
async def test_errors(dapr: tuple[_Dapr, DaprConversationModel], code: grpc.StatusCode, reason: str) -> None:
    """A sidecar's refusal is one of ours."""
    servicer, model = dapr
    servicer.code = code
    with pytest.raises(ModelError) as raised:
        await anext(aiter(model.answer(Prompt([PromptMessage("user", "u")]))))
    assert error_reason_pb2.ErrorReason.Name(raised.value.reason) == f"ERROR_REASON_{reason}"


async def test_filter(dapr: tuple[_Dapr, DaprConversationModel]) -> None:
    """An answer that the provider's filter stopped is a refusal."""
    servicer, model = dapr
    servicer.answer = _response(choices=[{"finishReason": "content_filter", "message": {"content": "x"}}])
    with pytest.raises(ModelError) as raised:
        await anext(aiter(model.answer(Prompt([PromptMessage("user", "u")]))))
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_MODEL_REFUSED
