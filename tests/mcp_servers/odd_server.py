"""A server of our own, for what no well-behaved one does: dying, hanging, flooding, counting how often it was asked.

Run as `python odd_server.py [--http PORT]`; with --http it takes any free port for 0 and prints the one it has.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from starlette.requests import Request

server = MCPServer("odd", version="1.0", instructions="Ask kindly.")
_state = {"counter": 0}


@server.tool()
def count() -> int:
    """Count the calls that this process has seen: state that lives in the server."""
    _state["counter"] += 1
    return _state["counter"]


@server.tool()
def whoami() -> dict[str, Any]:
    """Tell of this process: its id, working directory and whole environment."""
    return {"pid": os.getpid(), "cwd": str(Path.cwd()), "env": dict(os.environ), "argv": sys.argv}


@server.tool()
def die(status: int) -> str:
    """End the process in the middle of the call."""
    sys.stderr.write("last words\n")
    sys.stderr.flush()
    os._exit(status)


@server.tool()
async def slow(seconds: float, mark: str, ctx: Context) -> str:
    """Sleep with progress; writes to the file `mark` how it ended."""
    started = time.monotonic()
    ended = "cancelled"
    try:
        while (passed := time.monotonic() - started) < seconds:
            await ctx.report_progress(passed, seconds, "sleeping")
            await asyncio.sleep(0.05)
        ended = "finished"
    finally:
        _write(mark, ended)
    return "slept"


def _write(mark: str, text: str) -> None:
    Path(mark).write_text(text)


@server.tool()
def flood(size: int) -> str:
    """Give a text of so many bytes."""
    return "x" * size


@server.tool()
def append(path: str, text: str) -> str:
    """Append a line to a file: an effect that can be counted."""
    with Path(path).open("a") as file:
        file.write(f"{text}\n")
    return text


@server.tool()
def fail(why: str) -> str:
    """Report an error."""
    raise ToolError(why)


@server.tool()
def spawn() -> list[int]:
    """Start a child, and one that leaves the process group and forgets its parent; give their ids."""
    near = subprocess.Popen(["sleep", "600"])  # noqa: S607 - any will do
    script = (
        "import subprocess as s; "
        "print(s.Popen(['sleep', '601'], start_new_session=True, stdout=s.DEVNULL, stderr=s.DEVNULL).pid)"
    )
    far = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return [near.pid, int(far.stdout)]


@server.tool()
async def headers(ctx: Context) -> str:
    """Tell the HTTP headers of the call; over standard streams there are none."""
    request = ctx.request_context.request
    return json.dumps(dict(request.headers) if isinstance(request, Request) else {})


@server.tool()
async def call_id(ctx: Context) -> str:
    """Tell the `_meta` of the call."""
    return json.dumps({str(key): str(value) for key, value in (ctx.request_context.meta or {}).items()})


def main(argv: list[str]) -> None:
    """Serve until told to stop."""
    if argv[:1] != ["--http"]:
        server.run()
        return
    import uvicorn

    config = uvicorn.Config(server.streamable_http_app(), host="127.0.0.1", port=int(argv[1]), log_level="warning")
    http = uvicorn.Server(config)

    async def serve() -> None:
        task = asyncio.create_task(http.serve())
        while not http.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        print(http.servers[0].sockets[0].getsockname()[1], flush=True)  # noqa: T201 - what its caller reads
        await task

    asyncio.run(serve())


if __name__ == "__main__":
    main(sys.argv[1:])
