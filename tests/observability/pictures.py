"""Makes the pictures of docs/ from a mesh at work: `python -m tests.observability.pictures`."""

import asyncio
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc.aio
import httpx

from cli.binaries.chromium import Chromium, chromium
from cli.binaries.zipkin import zipkin
from cli.mesh.data import PROJECT_ROOT
from cli.mesh.ports import find_free_base
from cli.observing.programs import running_zipkin
from gaggle.agent.v1 import agent_service_pb2, agent_service_pb2_grpc
from tests.agent.agents import said
from tests.mesh_fixture import Mesh, start_mesh
from tests.notification.notifying import Notified
from tests.observability import browser
from tests.observability.chatting import ASSISTANT, chat
from tests.observability.drawing import draw
from tests.observability.tracing import Trace, Zipkin, names, orphans
from tests.recipe.running import Cook
from tests.reminder.reminding import Reminding, ahead

_DOCS = PROJECT_ROOT / "docs"
_BUSY_SECONDS = 40
_LABELS = {
    "agentservice/chat": "Chat",
    "model offline": "model",
    "conversationservice/appendmessages": "AppendMessages",
    "extensionservice/calltool": "CallTool",
    "taskservice/createtask": "CreateTask",
    "reminderservice/reschedulereminders": "RescheduleReminders",
    "reminder due, by job": "the job fires",
}
_RECIPE = "version: 1.0.0\ntitle: Release notes\ndescription: Asks once\nprompt: say Written\n"


async def _trace(mesh: Mesh, address: str, found: Chromium) -> None:
    """One chat from its question to the notification, as Zipkin's own page shows it."""
    trace, user = Trace.begin(), "ann"
    await chat(mesh, user, trace, 'tool remind {"title": "Take the cake out"}')
    async with mesh.channel("notification") as channel:
        await Notified(mesh, channel, user).until(1, within=60.0)

    def whole(spans: list[Any]) -> bool:
        told = names(spans, "reminder") | names(spans, "notification.daprd")
        return {"reminder due, by job", "pubsub/reminders"} <= told and not orphans(spans, trace)

    await Zipkin(address).until(trace, whole, what="the whole trace")
    # Whatever is on its way.
    await asyncio.sleep(5)
    spans = await Zipkin(address).spans(trace.trace_id)
    title = f"One chat whose tool sets a reminder: {len(spans)} spans under one trace id"
    (_DOCS / "trace.svg").write_text(draw(spans, _LABELS, title))
    await asyncio.to_thread(
        browser.screenshot,
        found,
        f"{address}/zipkin/traces/{trace.trace_id}",
        _DOCS / "trace.png",
        width=1400,
        height=900,
    )


async def _busy(mesh: Mesh) -> None:
    """Some people at work, for as long as the little curves take."""
    people = ["ann", "bob", "eve"]
    ends = time.monotonic() + _BUSY_SECONDS

    async def work(user: str) -> None:
        async with (
            mesh.channel("agent") as agent,
            mesh.channel("reminder") as reminders,
            mesh.channel("task") as tasks,
            mesh.channel("recipe") as recipes,
        ):
            agents: Any = agent_service_pb2_grpc.AgentServiceStub(agent)
            reminding = Reminding(mesh, reminders, tasks, user)
            titles = ["Take the cake out", "Call the plumber", "Send the invoice", "Water the plants"]
            for minutes, title in enumerate(titles, start=1):
                await reminding.task(ahead(900 * minutes + 60), 60, title=title)
            cook = Cook(recipes, mesh.metadata(user))
            await cook.ended(await cook.start(_RECIPE))
            while time.monotonic() < ends:
                try:
                    request = agent_service_pb2.ChatRequest(message=said("say Good morning"), model="offline")
                    async for _ in agents.Chat(request, metadata=mesh.metadata(user), timeout=30):
                        pass
                    await reminding.task(ahead(3), 2, title="Stand up")
                    await reminding.tasker.list()
                except grpc.aio.AioRpcError as error:
                    print(error.code(), file=sys.stderr)  # noqa: T201 - a script

    await asyncio.gather(*map(work, people))


async def _dashboard(mesh: Mesh, found: Chromium) -> None:
    """The dashboard while people are at work, by day and by night."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "dashboard", "--port", "0", "--data", str(mesh.data.path)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        page = (await process.stdout.readline()).decode().strip()

        # Somebody looks meanwhile, so that there are curves.
        watching = asyncio.create_task(_watch(page))
        await _busy(mesh)
        for name, dark, height in (("dashboard.png", False, 1560), ("dashboard-dark.png", True, 800)):
            await asyncio.to_thread(browser.screenshot, found, page, _DOCS / name, width=1280, height=height, dark=dark)
        watching.cancel()
    finally:
        process.terminate()
        await process.wait()


async def _watch(page: str) -> None:
    async with httpx.AsyncClient(follow_redirects=True, trust_env=False, timeout=30) as client:
        await client.get(page)
        while True:
            await client.get(f"{page.partition('/?')[0]}/api/state")
            await asyncio.sleep(1)


async def _main() -> None:
    found = chromium(lambda _name, _size: None)
    port = find_free_base([]).broker + 20
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        with running_zipkin(zipkin(lambda _name, _size: None), data / "zipkin", port) as address:
            os.environ |= {
                "GAGGLE_ZIPKIN_ENDPOINT": f"{address}/api/v2/spans",
                "GAGGLE_TRACE_SAMPLE_RATIO": "0.000001",
                "GAGGLE_STDIO_COMMANDS": shlex.join(ASSISTANT),
                "GAGGLE_STDIO_PATH": os.environ["PATH"],
            }
            mesh = await asyncio.to_thread(start_mesh, data / "mesh")
            try:
                await _trace(mesh, address, found)
                await _dashboard(mesh, found)
            finally:
                await asyncio.to_thread(mesh.stop)


if __name__ == "__main__":
    asyncio.run(_main())
