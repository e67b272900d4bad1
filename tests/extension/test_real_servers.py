"""Servers that others have written, from PyPI and from npm."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.conversation.talking import refused
from tests.extension.asking import Asker, http, stdio
from tests.mcp_servers import servers
from tests.mesh_fixture import Mesh

pytestmark = pytest.mark.mesh


async def test_a_server_from_pypi(mesh: Mesh, asker: Asker, user: str) -> None:
    """mcp-server-time is loaded, lists its tools with schemas, answers by id, by name and through two sidecars."""
    servers.python_servers()
    extension_id = await asker.register(stdio("Time", servers.TIME, "--local-timezone", "Europe/Berlin"))
    loaded = await asker("LoadExtension", name="time")
    assert (loaded.extension_id, loaded.tool_count) == (extension_id, 2)
    tools = (await asker("ListTools", extension_id=extension_id)).tools
    assert [one.name for one in tools] == ["get_current_time", "convert_time"]
    assert json.loads(tools[0].input_schema_json)["required"] == ["timezone"]
    assert tools[0].annotations.read_only
    noon = {"source_timezone": "Asia/Tokyo", "time": "12:00", "target_timezone": "UTC"}
    assert '"time_difference": "-9.0h"' in await asker.text("convert_time", noon, extension_id=extension_id)
    async with mesh.sidecar("conversation") as channel:
        through = (*mesh.metadata(user, app_id=mesh.service("extension").app_id), ("dapr-stream", "true"))
        assert '"time_difference": "-9.0h"' in await Asker(channel, through).text("convert_time", noon, name="TIME")
    wrong = await refused(asker.call("convert_time", {**noon, "time": 12}, extension_id=extension_id))
    assert (wrong.code, wrong.fields) == ("INVALID_ARGUMENT", ("arguments_json.time",))
    shown = (await asker("GetExtension", extension_id=extension_id)).extension
    assert shown.connection.server.name == "mcp-time"
    assert shown.key == "time"


async def test_a_second_one(asker: Asker, tmp_path: Path) -> None:
    """mcp-server-git works on a repository, and tells its errors as results."""
    servers.python_servers()
    for command in ("init -q -b main", "config user.email a@b", "config user.name a"):
        git = await asyncio.create_subprocess_exec("git", *command.split(), cwd=tmp_path)
        assert await git.wait() == 0
    (tmp_path / "note").write_text("hello")
    extension_id = await asker.loaded(stdio("git", servers.GIT, "--repository", str(tmp_path)))
    assert "note" in await asker.text("git_status", {"repo_path": str(tmp_path)}, extension_id=extension_id)
    await asker.call("git_add", {"repo_path": str(tmp_path), "files": ["note"]}, extension_id=extension_id)
    await asker.text("git_commit", {"repo_path": str(tmp_path), "message": "first"}, extension_id=extension_id)
    assert "first" in await asker.text("git_log", {"repo_path": str(tmp_path)}, extension_id=extension_id)
    outside = await asker.call("git_log", {"repo_path": "/"}, extension_id=extension_id)
    assert outside.result.is_error


async def test_a_server_from_npm(asker: Asker) -> None:
    """server-everything: text, images, resources, structured content, progress; each in the conversation's terms."""
    servers.node_servers()
    extension_id = await asker.loaded(stdio("everything", servers.EVERYTHING))
    await _everything(asker, extension_id)


async def test_the_same_over_http(asker: Asker) -> None:
    """server-everything answers the same over streamable HTTP."""
    servers.node_servers()
    async with servers.everything_over_http() as port:
        extension_id = await asker.loaded(http("everything-http", f"http://localhost:{port}/mcp"))
        await _everything(asker, extension_id)


async def _everything(asker: Asker, extension_id: str) -> None:
    names = [one.name for one in (await asker("ListTools", extension_id=extension_id)).tools]
    assert {"echo", "get-sum", "get-tiny-image", "get-structured-content"} <= set(names)
    assert await asker.text("echo", {"message": "hi"}, extension_id=extension_id) == "Echo: hi"
    image = (await asker.call("get-tiny-image", extension_id=extension_id)).result
    assert [one.WhichOneof("kind") for one in image.content] == ["text", "image", "text"]
    assert image.content[1].image.data.startswith(b"\x89PNG")
    weather = (await asker.call("get-structured-content", {"location": "Chicago"}, extension_id=extension_id)).result
    assert "temperature" in json.loads(weather.structured_content_json)
    links = (await asker.call("get-resource-links", {"count": 2}, extension_id=extension_id)).result
    assert {one.raw.type for one in links.content if one.HasField("raw")} == {"resource_link"}
    long = {"duration": 0.4, "steps": 4}
    seen = [one async for one in asker.responses("trigger-long-running-operation", long, extension_id=extension_id)]
    assert seen[0].HasField("started")
    steps = [one.progress for one in seen if one.HasField("progress")]
    assert [(one.progress, one.total) for one in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[-1].HasField("result")
