"""A model that answers at once: OpenAI's chat completions, streamed, of 20 words. Prints the port it listens on.

What a turn adds to it is the agent service's own.
"""

import json
import socket
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

WORDS = tuple(f"word{number} " for number in range(20))


def _chunk(delta: dict[str, str], finish: str | None = None, **more: object) -> bytes:
    choices = [] if more else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {"id": "bench", "object": "chat.completion.chunk", "created": 1, "model": "instant", "choices": choices}
    return b"data: " + json.dumps({**body, **more}).encode() + b"\n\n"


_USAGE = {"prompt_tokens": 100, "completion_tokens": len(WORDS), "total_tokens": 100 + len(WORDS)}
_ANSWER = (
    _chunk({"role": "assistant", "content": ""}),
    *(_chunk({"content": word}) for word in WORDS),
    _chunk({}, "stop"),
    _chunk({}, usage=_USAGE),
    b"data: [DONE]\n\n",
)


async def _complete(request: Request) -> StreamingResponse:
    await request.body()

    async def pieces() -> AsyncIterator[bytes]:
        # Not a plain iterator: Starlette would take each piece from a thread.
        for piece in _ANSWER:
            yield piece

    return StreamingResponse(pieces(), media_type="text/event-stream")


def main() -> None:
    """Serve until ended."""
    app = Starlette(routes=[Route("/v1/chat/completions", _complete, methods=["POST"])])
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")).run([listening])


if __name__ == "__main__":
    main()
