"""`gaggle dashboard`: what the page tells of a running mesh, to whom, and what it keeps to itself."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import yaml

from cli.binaries.build import Progress
from cli.binaries.chromium import chromium
from tests.conditions import eventually
from tests.mesh_fixture import Mesh
from tests.observability import browser
from tests.observability.tracing import Trace, metadata
from tests.reminder.reminding import Reminding, ahead

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("observed")]


@pytest.fixture(scope="module")
def page(observed: Mesh) -> Iterator[str]:
    """The address that `gaggle dashboard` prints, token included."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "dashboard", "--port", "0", "--data", str(observed.data.path)],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@pytest.fixture
def visitor(page: str) -> Iterator[httpx.Client]:
    """Somebody who has opened that address once."""
    with httpx.Client(base_url=_origin(page), follow_redirects=True, trust_env=False, timeout=30) as client:
        assert client.get(page).status_code == 200
        yield client


def _origin(page: str) -> str:
    parts = urlsplit(page)
    return f"{parts.scheme}://{parts.netloc}"


async def _work(mesh: Mesh, user: str, trace: Trace) -> None:
    async with mesh.channel("reminder") as reminders, mesh.channel("task") as tasks:
        reminding = Reminding(mesh, reminders, tasks, user)
        reminding.tasker.metadata = metadata(mesh, user, trace)
        await reminding.task(ahead(1800), 60, title=f"Call {user}")


async def test_the_page_tells_what_the_mesh_does(observed: Mesh, visitor: httpx.Client, user: str) -> None:
    """Services with health and figures, components, events and reminders due, all from the running mesh."""
    trace = Trace.begin()
    await _work(observed, user, trace)

    async def shown() -> dict[str, Any]:
        state: dict[str, Any] = (await asyncio.to_thread(visitor.get, "/api/state")).json()
        assert state["problems"] == []
        events = {one["type"] for one in state["events"] if one["user"] == user}
        due = [one for one in state["reminders"] if one["user"] == user]
        return state if {"task.created", "reminder.scheduled"} <= events and due else {}

    state = await eventually(shown, within=60.0, what="the event and the reminder")

    assert state["state"] == "ready"
    assert {one["name"] for one in state["services"]} == set(observed.description.services)
    for one in state["services"]:
        assert (one["state"], one["sidecar_state"], one["level"]) == ("ready", "ready", "info")
        assert one["metrics"]["calls_total"] >= 0
        assert one["memory_bytes"] > 0
    assert {one["name"] for one in state["infrastructure"]} == {"postgres", "redis", "placement", "scheduler"}
    assert [one["title"] for one in state["reminders"] if one["user"] == user] == [f"Call {user}"]
    components = {one["name"]: one for one in state["components"]}
    assert components["statestore"]["type"] == "state.postgresql"
    statestore = yaml.safe_load((observed.description.components / "statestore.yaml").read_text())
    suffix = observed.description.app_id_suffix
    assert set(components["statestore"]["loaded"]) == {one.removesuffix(suffix) for one in statestore["scopes"]}
    assert {one["service"] for one in state["configurations"]} == set(observed.description.services)
    answer = await asyncio.to_thread(visitor.get, "/api/logs", params={"process": "task", "text": trace.trace_id})
    lines = answer.json()["lines"]
    assert "call" in [one["event"] for one in lines]


def test_no_secret_is_on_the_page(observed: Mesh, visitor: httpx.Client) -> None:
    """Whatever secrets.json and keys/ hold, the page says nothing of it."""
    secrets = json.loads(observed.data.secrets_file.read_text())
    marked = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in secrets.items()
        if name not in {"token-jwks", "redis-host"}
    }
    private = [json.loads(value)["d"] for name, value in marked.items() if name.startswith(("service-key", "issuer"))]
    assert private
    assert "redis-password" in marked

    state = visitor.get("/api/state").text
    for process in json.loads(state)["logs"]:
        state += visitor.get("/api/logs", params={"process": process, "level": "debug"}).text
    tokens = [file.read_text().strip() for file in observed.data.keys.glob("*.app-api-token")]
    assert len(tokens) == len(observed.description.services)
    for value in [*private, marked["redis-password"], *tokens]:
        assert value not in state


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        ({}, "/", 401),
        ({}, "/api/state", 401),
        ({}, "/?token=guessed", 401),
        ({"authorization": "Bearer guessed"}, "/api/state", 401),
        ({"host": "evil.example:50100"}, "/", 421),
    ],
    ids=["no token", "no token for data", "a wrong token", "a wrong bearer", "another name for loopback"],
)
def test_it_answers_nobody_else(page: str, headers: dict[str, str], path: str, status: int) -> None:
    """Other users of the machine, and pages of other sites in the same browser, see nothing."""
    with httpx.Client(base_url=_origin(page), trust_env=False) as client:
        assert client.get(path, headers=headers).status_code == status


def test_changes_need_a_page_of_our_own(page: str, visitor: httpx.Client) -> None:
    """A form of another site that is sent here with the visitor's cookie changes nothing."""
    answer = visitor.post("/api/log-level", content=json.dumps({"replica": "task", "level": "debug"}))
    assert answer.status_code == 403
    bearer = {"authorization": f"Bearer {parse_qs(urlsplit(page).query)['token'][0]}"}
    assert visitor.post("/api/log-level", headers=bearer, content="{}").status_code == 403


def test_a_level_is_changed_from_the_page(visitor: httpx.Client) -> None:
    """Turning a service's log up is a click; what is none is refused with a sentence."""
    asking = {"x-gaggle-dashboard": "1"}

    def change(**body: str) -> httpx.Response:
        return visitor.post("/api/log-level", headers=asking, content=json.dumps(body))

    assert change(replica="recurrence", level="warning").json() == {"previous": "info"}
    assert change(replica="recurrence", level="info").json() == {"previous": "warning"}
    assert change(replica="nobody", level="info").status_code == 400
    assert change(replica="recurrence", level="loud").status_code == 400
    assert change().status_code == 400


async def test_a_browser_shows_it(observed: Mesh, page: str, progress: Progress, user: str) -> None:
    """In a real browser the page's script fills the tables from the mesh, with nothing from elsewhere."""
    await _work(observed, user, Trace.begin())
    found = chromium(progress)

    async def filled() -> str:
        text = await asyncio.to_thread(browser.dom, found, page)
        # A curve needs two looks at different times.
        return text if f"Call {user}" in text and "<polyline" in text else ""

    text = await eventually(filled, within=120.0, what="the reminder and a curve on the page")

    assert '<span id="state" class="pill ready" role="status">ready</span>' in text
    for service in observed.description.services:
        assert f">{service}</button>" in text
    assert "task.created" in text
    assert "state.postgresql" in text
    # Nothing that the page refers to lies on another host.
    assert "https://" not in text.replace("https://docs.dapr.io", "")
