"""Measures systems in its own process: `python -m bench.worker SPEC`, one JSON line in and one out for each thing done.

Runs in the peers' virtual environment for the libraries, in the project's own for Gaggle's generated stub.
"""

import asyncio
import contextlib
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import uvloop

from bench.clients.client import Client, Spec

_MODULES = {
    "toolcall-mcp-sdk": "tools:connect_bare",
    "toolcall-gaggle": "tools:connect_straight",
    "toolcall-gaggle-mesh": "tools:connect_sidecars",
    "turn-openai-sdk": "turns:connect_bare",
    "turn-gaggle": "turns:connect_straight",
    "turn-gaggle-mesh": "turns:connect_sidecars",
    "firsttext-openai-sdk": "turns:connect_bare_first",
    "firsttext-gaggle": "turns:connect_straight_first",
    "firsttext-gaggle-mesh": "turns:connect_sidecars_first",
    "recipestep-gaggle": "recipes",
    "asyncpg": "floor",
    "dapr-http-json": "dapr_http",
    "openai-agents-dapr": "openai_dapr",
    "openai-agents-sqlalchemy": "openai_sqlalchemy",
    "langgraph-postgres": "langgraph_postgres",
    "gaggle-python": "gaggle_stub",
    "gaggle-reminders": "gaggle_reminders",
    "gaggle-sync": "gaggle_sync",
}


async def closed_loop(client: Client, case: str, callers: int, history: int, seconds: float) -> dict[str, Any]:
    """Let `callers` go on one after another call until the time is over; a call may tell which milliseconds count."""
    act: Any = client.append if case == "append1" else client.read
    clock = time.perf_counter
    latencies: list[float] = []
    end = clock() + seconds

    async def call(caller: int) -> None:
        started = clock()
        while started < end:
            counted = await act(history, caller)
            done = clock()
            latencies.append((done - started) * 1000 if counted is None else counted)
            started = done

    began = clock()
    await asyncio.gather(*(call(caller) for caller in range(callers)))
    taken = clock() - began
    if case == "append1":
        await client.reset(history)
    return {"seconds": taken, "latencies_ms": [round(one, 4) for one in latencies]}


class _Worker:
    def __init__(self, spec: Spec, held: contextlib.AsyncExitStack) -> None:
        self._spec = spec
        self._held = held
        self._clients: dict[str, Client] = {}

    async def do(self, command: dict[str, Any]) -> Any:
        """Do one thing."""
        what = command.pop("do")
        client = await self._client(command.pop("system"))
        if what == "measure":
            return await closed_loop(client, **command)
        return await getattr(client, what)(**command)

    async def _client(self, system: str) -> Client:
        if system not in self._clients:
            name, _, function = _MODULES[system].partition(":")
            connect = getattr(importlib.import_module(f"bench.clients.{name}"), function or "connect")
            self._clients[system] = await self._held.enter_async_context(connect(self._spec))
        return self._clients[system]


async def _main(spec: Spec, answers: TextIO) -> None:
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as held:
        worker = _Worker(spec, held)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            try:
                answer = {"result": await worker.do(json.loads(line))}
            except Exception as error:  # noqa: BLE001 - told to the bench, which names the system
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    # What a library prints must not be taken for an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    uvloop.run(_main(Spec(**json.loads(Path(sys.argv[1]).read_text())), answers))
