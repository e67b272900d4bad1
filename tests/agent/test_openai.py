"""An OpenAI-compatible endpoint over real HTTP: what is sent, and what each of its answers means."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from gaggle.common.v1 import error_reason_pb2
from services.agent.models.base import CalledTool, Finished, ModelError, OfferedTool, Prompt, PromptMessage, Text
from services.agent.models.openai_compatible import OpenAIClients, OpenAIModel
from services.agent.settings import Prices
from tests.agent.scripted import KEY, ScriptedModel, script


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[ScriptedModel, str]]:
    """The scripted server, and where it is."""
    model = ScriptedModel()
    yield model, model.start()
    model.stop()


def _model(url: str, key: str = KEY, **fields: Any) -> tuple[OpenAIModel, OpenAIClients]:
    async def secret(_name: str) -> str:
        return key

    clients = OpenAIClients(secret)

    async def client() -> openai.AsyncOpenAI:
        return await clients.client("scripted", url, "key", 5)

    settings: dict[str, Any] = {
        "endpoint": "scripted",
        "model": "one",
        "context_tokens": 8000,
        "tools": True,
        "prices": Prices(input=1, output=2, cache_read=0.5),
        "max_tokens_field": "max_tokens",
    }
    return OpenAIModel(client, **(settings | fields)), clients


async def _answer(url: str, prompt: Prompt, **fields: Any) -> tuple[str, Finished]:
    model, clients = _model(url, **fields)
    try:
        pieces = [piece async for piece in model.answer(prompt)]
    finally:
        await clients.close()
    assert isinstance(pieces[-1], Finished)
    return "".join(piece.text for piece in pieces if isinstance(piece, Text)), pieces[-1]


async def test_what_is_sent(server: tuple[ScriptedModel, str]) -> None:
    """Messages, tools, limits and the schema go out as the endpoint takes them."""
    model, url = server
    call = CalledTool("c1", "now", "{}")
    prompt = Prompt(
        [
            PromptMessage("system", "be brief"),
            PromptMessage("user", script({"text": "x"}, {"text": "hello"}, mark="sent"), name="ann"),
            PromptMessage("assistant", "", tool_calls=(call,)),
            PromptMessage("tool", "noon", tool_call_id="c1", name="now"),
        ],
        (OfferedTool("now", "the time", '{"type": "object"}'),),
        temperature=0.5,
        max_output_tokens=100,
        response_schema_json='{"type": "object"}',
    )
    said, finished = await _answer(url, prompt)
    assert (said, finished.resolved_model, finished.truncated) == ("hello", "one-resolved", False)
    (sent,) = model.asked("sent")
    assert sent["tools"][0]["function"] == {"name": "now", "description": "the time", "parameters": {"type": "object"}}
    assert sent["messages"][1]["name"] == "ann"
    assert sent["messages"][2]["tool_calls"][0]["function"]["name"] == "now"
    assert sent["messages"][3] == {"role": "tool", "content": "noon", "tool_call_id": "c1"}
    assert (sent["temperature"], sent["max_tokens"]) == (0.5, 100)
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert sent["stream_options"] == {"include_usage": True}


async def test_calls_come_in_pieces(server: tuple[ScriptedModel, str]) -> None:
    """Arguments that are streamed in pieces, of several calls, are put together."""
    _, url = server
    calls = [["c1", "a", '{"long": "argument"}'], ["c2", "b", "{}"]]
    _, finished = await _answer(url, Prompt([PromptMessage("user", script({"calls": calls}))]))
    assert [(one.id, one.name, json.loads(one.arguments_json)) for one in finished.calls] == [
        ("c1", "a", {"long": "argument"}),
        ("c2", "b", {}),
    ]


async def test_price(server: tuple[ScriptedModel, str]) -> None:
    """What was read from the cache has a price of its own."""
    _, url = server
    prompt = Prompt([PromptMessage("user", script({"text": "x", "usage": [1000, 100, 400]}))])
    _, finished = await _answer(url, prompt)
    model, _ = _model(url)
    assert model.cost(finished.usage) == pytest.approx((600 + 200 + 200) / 1e6)
    free, _ = _model(url, prices=None)
    assert free.cost(finished.usage) is None


ERRORS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "busy": ({"fail": [429, "rate_limit_exceeded", 9], "retry_after": 7}, "MODEL_RATE_LIMITED", True),
    "spent": ({"fail": [429, "insufficient_quota", 9]}, "MODEL_KEY_REJECTED", False),
    "key": ({"fail": [401, "invalid_api_key", 9]}, "MODEL_KEY_REJECTED", False),
    "forbidden": ({"fail": [403, "no", 9]}, "MODEL_KEY_REJECTED", False),
    "too-long": ({"fail": [400, "context_length_exceeded", 9]}, "MODEL_REQUEST_REJECTED", False),
    "no-model": ({"fail": [404, "model_not_found", 9]}, "MODEL_REQUEST_REJECTED", False),
    "slow": ({"fail": [408, "timeout", 9]}, "MODEL_UNAVAILABLE", True),
    "down": ({"fail": [502, "bad_gateway", 9]}, "MODEL_UNAVAILABLE", True),
    "filter": ({"fail": [400, "content_filter", 9]}, "MODEL_REFUSED", False),
    "refusal": ({"refusal": "no"}, "MODEL_REFUSED", False),
    "breaks-off": ({"text": "half", "break_off": 9}, "MODEL_UNAVAILABLE", True),
}


@pytest.mark.parametrize(("answer", "reason", "again"), ERRORS.values(), ids=ERRORS.keys())
async def test_errors(server: tuple[ScriptedModel, str], answer: dict[str, Any], reason: str, *, again: bool) -> None:
    """Each failure of an endpoint is one of ours, which says whether another try may help."""
    _, url = server
    with pytest.raises(ModelError) as raised:
        await _answer(url, Prompt([PromptMessage("user", script(answer, mark=reason))]))
    error = raised.value
    assert error_reason_pb2.ErrorReason.Name(error.reason) == f"ERROR_REASON_{reason}"
    assert error.may_be_repeated is again
    assert error.retry_after_seconds == (7 if "retry_after" in answer else None)


async def test_no_server() -> None:
    """An endpoint that nobody listens at is MODEL_UNAVAILABLE."""
    with pytest.raises(ModelError) as raised:
        await _answer("http://127.0.0.1:9/v1", Prompt([PromptMessage("user", "x")]))
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_MODEL_UNAVAILABLE


async def test_keys_are_not_told(server: tuple[ScriptedModel, str]) -> None:
    """A key that is refused occurs in no error."""
    _, url = server
    with pytest.raises(ModelError) as raised:
        await _answer(url, Prompt([PromptMessage("user", "x")]), key="sk-very-secret")
    assert raised.value.reason == error_reason_pb2.ERROR_REASON_MODEL_KEY_REJECTED
    assert "sk-very" not in raised.value.message
