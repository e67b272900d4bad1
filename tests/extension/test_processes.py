"""Child processes: what they get, what becomes of them, and what is told when they die."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from gaggle.extension.v1 import extension_pb2
from tests.conditions import eventually
from tests.conversation.talking import refused
from tests.extension.asking import Asker, http, odd, stdio
from tests.extension.log import events_of
from tests.mcp_servers import servers
from tests.mesh_fixture import MAX_CONNECTIONS, Mesh

pytestmark = pytest.mark.mesh

_SOON = 20.0
_LOADED = extension_pb2.CONNECTION_STATE_LOADED
_FAILED = extension_pb2.CONNECTION_STATE_FAILED


async def _gone(*pids: int) -> None:
    async def none_left() -> bool:
        return not any(_alive(pid) for pid in pids)

    await eventually(none_left, within=_SOON, what=f"processes {pids} gone")


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def _state(asker: Asker, extension_id: str, *wanted: int) -> extension_pb2.Connection:
    async def reached() -> extension_pb2.Connection | None:
        connection = await asker.connection(extension_id)
        return connection if connection.state in wanted else None

    return await eventually(reached, within=_SOON, what=f"connection in state {wanted}")


async def _restarted(asker: Asker, extension_id: str) -> str:
    """Wait until a death was noted and repaired; gives what was noted."""

    async def repaired() -> str:
        connection = await asker.connection(extension_id)
        return connection.last_error if connection.state == _LOADED else ""

    return await eventually(repaired, within=_SOON, what="the server is back, and its death was noted")


async def _whoami(asker: Asker, extension_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await asker.text("whoami", extension_id=extension_id))
    return found


async def test_the_environment_is_clean(asker: Asker) -> None:
    """A server gets what was declared and named secrets, a directory of its own, and nothing of the service's."""
    config = odd(envs={"DECLARED": "yes"}, env_keys=["TEST_SECRET"])
    config.stdio.args.extend(["--http-is-not-the-first", "$HOME", "; true", "*"])
    extension_id = await asker.loaded(config)
    found = await _whoami(asker, extension_id)
    assert set(found["env"]) == {
        "PATH", "HOME", "TMPDIR", "LANG", "DECLARED", "TEST_SECRET", "GAGGLE_EXTENSION_TREE",
        # What Python's own start-up adds.
        *({"LC_CTYPE"} & set(found["env"])),
    }  # fmt: skip
    assert (found["env"]["DECLARED"], found["env"]["TEST_SECRET"]) == ("yes", "hush")
    assert found["argv"][1:] == ["--http-is-not-the-first", "$HOME", "; true", "*"]
    assert found["cwd"] == found["env"]["HOME"] == found["env"]["TMPDIR"]
    assert os.getpgid(found["pid"]) == found["pid"]
    await asker("UnloadExtension", extension_id=extension_id)
    await _gone(found["pid"])
    assert not await asyncio.to_thread(Path(found["cwd"]).exists)


@pytest.mark.parametrize("how", ["unload", "disable", "delete", "update"])
async def test_a_server_goes_with_its_tree(asker: Asker, how: str) -> None:
    """However a connection ends, its process is gone with its children, those that left the group among them."""
    extension_id = await asker.loaded(odd())
    pids = [(await _whoami(asker, extension_id))["pid"]]
    pids += json.loads((await asker.call("spawn", extension_id=extension_id)).result.structured_content_json)["result"]
    assert all(_alive(pid) for pid in pids)
    if how == "unload":
        await asker("UnloadExtension", extension_id=extension_id)
    elif how == "disable":
        await asker("UpdateExtension", extension_id=extension_id, enabled=False)
    elif how == "delete":
        await asker("DeleteExtension", extension_id=extension_id)
    else:
        await asker("UpdateExtension", extension_id=extension_id, config=odd("renamed"))
        assert (await _whoami(asker, extension_id))["pid"] not in pids
    await _gone(*pids)


async def test_a_death_is_seen_told_and_repaired(mesh: Mesh, asker: Asker, user: str) -> None:
    """A server that is killed is noticed without a call, told of, started again, and told of again.

    The call that loaded it is long over by then, and its deadline too.
    """
    extension_id = await asker.register(odd())
    patience = 6.0
    over = time.monotonic() + patience
    async with mesh.channel("extension") as channel:
        await Asker(channel, asker.metadata, timeout=patience)("LoadExtension", extension_id=extension_id)
    pid = (await _whoami(asker, extension_id))["pid"]

    async def expired() -> bool:
        return time.monotonic() > over

    await eventually(expired, within=patience + 1, what="the deadline of the load")
    os.kill(pid, signal.SIGKILL)

    async def told() -> list[str]:
        found = [one["event_type"].removeprefix("goose.extension.") for one in await events_of(mesh, user)]
        return found if found[-1:] == ["loaded"] and "error" in found else []

    assert await eventually(told, within=_SOON, what="error and loaded") == ["registered", "loaded", "error", "loaded"]
    events = await events_of(mesh, user)
    assert [one["revision"] for one in events] == [1, 2, 3, 4]
    assert events[2]["data"]["error"].startswith("was ended by signal 9")
    assert (events[2]["data"]["failures"], events[3]["data"]["failures"]) == (1, 1)
    connection = await asker.connection(extension_id)
    assert (connection.state, connection.failures) == (_LOADED, 1)
    assert (await _whoami(asker, extension_id))["pid"] != pid


async def test_a_death_in_the_middle_of_a_call(asker: Asker) -> None:
    """The call is UNAVAILABLE and says what happened; while the server is down calls say when to come back."""
    extension_id = await asker.loaded(odd())
    refusal = await refused(asker.call("die", {"status": 3}, extension_id=extension_id))
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "EXTENSION_UNAVAILABLE")
    assert await _restarted(asker, extension_id) == "exited with status 3: last words"
    assert await asker.text("count", extension_id=extension_id) == "1"


async def test_restarts_come_slower_and_end(private_mesh: Any, user: str) -> None:
    """A server that dies again and again is tried with growing pauses, then left alone until it is loaded again."""
    environment = {"GAGGLE_RESTART_SECONDS": "0.2", "GAGGLE_MAX_FAILURES": "3"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ |= environment
    try:
        mesh = await asyncio.to_thread(private_mesh, only=["extension"])
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    async with mesh.channel("extension") as channel:
        asker = Asker(channel, mesh.metadata(user))
        async with servers.odd_over_http() as port:
            extension_id = await asker.loaded(http("web", f"http://localhost:{port}/mcp"))
            assert await asker.text("count", extension_id=extension_id) == "1"
        refusal = await refused(asker.call("count", extension_id=extension_id))
        assert refusal.reason == "EXTENSION_UNAVAILABLE"
        connection = await _state(asker, extension_id, _FAILED)
        assert connection.failures == 4
        refusal = await refused(asker.call("count", extension_id=extension_id))
        assert (refusal.code, refusal.facts) == ("FAILED_PRECONDITION", {"state": "failed"})
        async with servers.odd_over_http(port):
            await asker("LoadExtension", extension_id=extension_id)
            assert await asker.text("count", extension_id=extension_id) == "1"
        # The reaper ends what a killed service leaves behind.
        child = await asker.loaded(odd())
        pids = [(await _whoami(asker, child))["pid"]]
        pids += json.loads((await asker.call("spawn", extension_id=child)).result.structured_content_json)["result"]
        await mesh.killed("extension")
        await _gone(*pids)
        assert await asker.text("count", extension_id=child) == "1"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        pytest.param(stdio("x", str(Path(servers.ODD[1]).parent / "not-installed")), "", id="not there"),
        pytest.param(odd("x", cwd="/does/not/exist"), "", id="no such directory"),
        pytest.param(http("x", "http://localhost:9/mcp"), "", id="nobody listens"),
        pytest.param(http("x", "http://no-such-host.invalid/mcp"), "can't be resolved", id="no such host"),
    ],
)
async def test_a_server_that_does_not_start(asker: Asker, config: extension_pb2.ExtensionConfig, said: str) -> None:
    """Loading it is UNAVAILABLE with the cause, nothing changes, and there is no restart."""
    extension_id = await asker.register(config)
    refusal = await refused(asker("LoadExtension", extension_id=extension_id))
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "EXTENSION_UNAVAILABLE")
    assert said in refusal.message
    assert refusal.facts == {"extension": "x", "state": "unloaded"}
    assert (await asker.connection(extension_id)).state == extension_pb2.CONNECTION_STATE_UNLOADED


async def test_a_line_without_end(asker: Asker) -> None:
    """A server that sends more than a line may hold is cut off, and started again."""
    extension_id = await asker.loaded(odd())
    refusal = await refused(asker.call("flood", {"size": 6_000_000}, extension_id=extension_id))
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "EXTENSION_UNAVAILABLE")
    assert "a line of more than" in await _restarted(asker, extension_id)
    assert await asker.text("count", extension_id=extension_id) == "1"


async def test_users_do_not_share_a_process(asker: Asker, stranger: Asker, admin: Asker, user: str) -> None:
    """A shared extension has a server of its own for each user who loads it; it goes for all with the registration."""
    extension_id = await admin.register(odd(f"shared-{user}"), shared=True)
    pids = []
    for one in (asker, stranger):
        await one("LoadExtension", extension_id=extension_id)
        pids.append((await _whoami(one, extension_id))["pid"])
    assert pids[0] != pids[1]
    assert (await admin.connection(extension_id)).state == extension_pb2.CONNECTION_STATE_UNLOADED
    await admin("DeleteExtension", extension_id=extension_id)
    await _gone(*pids)
    assert (await refused(asker.call("count", extension_id=extension_id))).code == "NOT_FOUND"


async def test_too_many_connections(asker: Asker) -> None:
    """A user's connections are bounded: an idle one makes room, and its extension stays loaded."""
    ids = [await asker.loaded(odd(f"n{number}")) for number in range(MAX_CONNECTIONS + 1)]
    counts = [await asker.text("count", extension_id=one) for one in ids[-1:] + ids[:1]]
    assert counts == ["1", "1"]
    assert {(await asker.connection(one)).state for one in ids} == {_LOADED}
