"""A server that speaks OpenAI's chat completions over real HTTP and does what the newest user message tells it to.

It streams, or not, as it is asked; gates and faults are for streams.

The message is a JSON list of answers, one for each call of the model in the turn:

    text, pieces     what to say, in so many chunks
    thinking         sent as reasoning_content before it
    calls            tools to ask for: [id, name, arguments]
    usage            tokens: prompt, completion, cached
    gate             stop after the first chunk until the test opens this gate
    finish           the finish_reason, if it is another than "stop" or "tool_calls"
    refusal          decline, with this text
    fail             [status, code, times]: fail the first so many calls of this answer
    break_off        [times]: close the connection after the first chunk, the first so many times
    retry_after      seconds, as a header of a failure
"""

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "sk-scripted"
_START_SECONDS = 20


class ScriptedModel:
    """The server, in a thread of its own; `requests` has every body that it was sent."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.waiting: Counter[str] = Counter()
        self._opened: set[str] = set()
        self._tries: Counter[str] = Counter()
        app = Starlette(routes=[Route("/v1/chat/completions", self._complete, methods=["POST"])])
        self._server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self) -> str:
        """Start it; gives its base URL."""
        self._thread.start()
        ends = threading.Event()
        for _ in range(_START_SECONDS * 100):
            if self._server.started:
                break
            ends.wait(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/v1"

    def stop(self) -> None:
        """Stop it; streams that wait for a gate are cut."""
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)

    def open(self, gate: str) -> None:
        """Let the answers that wait at a gate go on, and those to come pass."""
        self._opened.add(gate)

    def asked(self, mark: str) -> list[dict[str, Any]]:
        """Give the requests in which a text occurs."""
        return [one for one in self.requests if mark in json.dumps(one)]

    async def _complete(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return _error(401, "invalid_api_key")
        body = await request.json()
        self.requests.append(body)
        script, step = _script(body["messages"])
        answer = script[min(step, len(script) - 1)]
        key = json.dumps([script, step])
        self._tries[key] += 1
        if "fail" in answer:
            status, code, times = answer["fail"]
            if self._tries[key] <= times:
                headers = {"retry-after": str(answer["retry_after"])} if "retry_after" in answer else {}
                return _error(status, code, headers)
        if not body.get("stream"):
            return JSONResponse(_whole(body["model"], answer))
        breaks = self._tries[key] <= answer.get("break_off", 0)
        return StreamingResponse(self._stream(body["model"], answer, breaks=breaks), media_type="text/event-stream")

    async def _stream(self, model: str, answer: dict[str, Any], *, breaks: bool) -> AsyncIterator[bytes]:
        def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return _event({"model": f"{model}-resolved", "choices": [choice]})

        yield chunk({"role": "assistant", "content": ""})
        if "thinking" in answer:
            yield chunk({"reasoning_content": answer["thinking"]})
        text = answer.get("text", "")
        size = max(-(-len(text) // answer.get("pieces", 4)), 1)
        for number, start in enumerate(range(0, len(text), size)):
            yield chunk({"content": text[start : start + size]})
            if number == 0:
                if breaks:
                    return
                await self._gate(answer.get("gate", ""))
        if breaks:
            return
        if "refusal" in answer:
            yield chunk({"refusal": answer["refusal"]})
        for index, (call_id, name, arguments) in enumerate(answer.get("calls", ())):
            # In two pieces, as providers send them.
            middle = len(arguments) // 2
            function = {"name": name, "arguments": arguments[:middle]}
            yield chunk({"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]})
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": arguments[middle:]}}]})
        yield chunk({}, answer.get("finish", "tool_calls" if answer.get("calls") else "stop"))
        prompt, completion, cached = answer.get("usage", (10, 5, 2))
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        yield _event({"model": f"{model}-resolved", "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    async def _gate(self, gate: str) -> None:
        if not gate:
            return
        self.waiting[gate] += 1
        while gate not in self._opened:  # noqa: ASYNC110 - opened from another thread
            await asyncio.sleep(0.01)


def _whole(model: str, answer: dict[str, Any]) -> dict[str, Any]:
    """An answer that is not streamed: text, calls and usage of it."""
    calls = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for call_id, name, arguments in answer.get("calls", ())
    ]
    message: dict[str, Any] = {"role": "assistant", "content": answer.get("text")}
    if calls:
        message["tool_calls"] = calls
    prompt, completion, cached = answer.get("usage", (10, 5, 2))
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    finish = answer.get("finish", "tool_calls" if calls else "stop")
    choice = {"index": 0, "message": message, "finish_reason": finish}
    head = {"id": "scripted", "object": "chat.completion", "created": 1, "model": f"{model}-resolved"}
    return {**head, "choices": [choice], "usage": usage}


def script(*answers: dict[str, Any], mark: str = "") -> str:
    """Write a message that the server follows; `mark` makes it different from others."""
    return json.dumps([*answers, *([{"mark": mark}] if mark else [])])


def _script(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    for index in range(len(messages) - 1, -1, -1):
        if messages[index]["role"] == "user":
            with contextlib.suppress(ValueError, TypeError):
                found = json.loads(messages[index]["content"])
                if isinstance(found, list):
                    answers = [one for one in found if "mark" not in one]
                    return answers, sum(1 for one in messages[index:] if one["role"] == "assistant")
    return [{"text": "no script"}], 0


def _event(body: dict[str, Any]) -> bytes:
    whole = {"id": "scripted", "object": "chat.completion.chunk", "created": 1, **body}
    return b"data: " + json.dumps(whole).encode() + b"\n\n"


def _error(status: int, code: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = {"error": {"message": f"scripted {code}", "type": code, "code": code}}
    return JSONResponse(body, status_code=status, headers=headers)
