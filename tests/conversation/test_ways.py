"""Ways to the service: its own port, any sidecar, and grpcurl that knows nothing but reflection."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.binaries.tools import tool
from cli.errors import CommandError
from cli.progress import build_progress
from tests.conversation.talking import Talker, numbered, refused
from tests.mesh_fixture import Mesh

pytestmark = pytest.mark.mesh

_SERVICE = "gaggle.conversation.v1.ConversationService"
WAYS = ["port", "own-sidecar", "another-sidecar"]


@pytest.mark.parametrize("service", ["conversation", "audit", "auth"])
async def test_any_sidecar_leads_to_it(mesh: Mesh, talker: Talker, user: str, service: str) -> None:
    """Through any service's sidecar all kinds of calls work as on the port, error details and streams included."""
    metadata = mesh.metadata(user, app_id=mesh.service("conversation").app_id)
    async with mesh.sidecar(service) as channel:
        through = Talker(channel, metadata)
        conversation_id = await through.create("one", "x" * 900_000)
        assert await talker.history(conversation_id) == numbered("one", "x" * 900_000)
        # daprd hands a stream on message by message only if it is told that it is one.
        streaming = Talker(channel, (*metadata, ("dapr-stream", "true")))
        watching = asyncio.create_task(streaming.watched(conversation_id, 1, until=3))
        await talker.say(conversation_id, "three")
        assert (await watching)[-1] == (3, "three")
        stale = await refused(through.say(conversation_id, "x", expected_sequence=1))
        assert (stale.code, stale.reason, stale.facts["last_sequence"]) == ("ABORTED", "STALE_SEQUENCE", "3")
        bad = await refused(through("ListMessages", conversation_id=conversation_id, page_size=-1))
        assert (bad.code, bad.fields) == ("INVALID_ARGUMENT", ("page_size",))
        stranger = Talker(channel, mesh.metadata(f"{user}-stranger", app_id=mesh.service("conversation").app_id))
        assert (await refused(stranger.get(conversation_id))).code == "NOT_FOUND"


Grpcurl = Callable[..., Any]


@pytest.fixture
def grpcurl_program() -> Path:
    """The program; skipped where it can't be had."""
    try:
        return tool("grpcurl", build_progress(Console(stderr=True)))
    except CommandError as error:
        pytest.skip(f"grpcurl: {error}")


@pytest.mark.parametrize("way", WAYS)
async def test_grpcurl_needs_nothing_else(
    mesh: Mesh, user: str, grpcurl_program: Path, tmp_path: Path, way: str
) -> None:
    """With reflection alone grpcurl lists, describes, creates, appends, reads and watches, by port and by sidecar.

    A sidecar answers reflection for itself, so there the contract comes along that the port has told.
    """
    service = mesh.service("conversation")
    address = {
        "port": service.address,
        "own-sidecar": service.sidecar_grpc,
        "another-sidecar": mesh.service("audit").sidecar_grpc,
    }[way]
    app = [] if way == "port" else ["-H", f"dapr-app-id: {service.app_id}"]

    async def run(*arguments: str, body: dict[str, Any] | None = None, code: int = 0) -> str:
        data = [] if body is None else ["-d", json.dumps(body)]
        command = [str(grpcurl_program), "-plaintext", *app, "-max-time", "20", *headers, *data, address, *arguments]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = await process.communicate()
        assert process.returncode == code, err.decode()
        return (out or err).decode()

    contract = tmp_path / "contract"

    async def ask(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(str(grpcurl_program), "-plaintext", *arguments),
            stdout=subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        return out.decode()

    assert {_SERVICE, "grpc.health.v1.Health"} <= set((await ask(service.address, "list")).split())
    assert f"{_SERVICE}.AppendMessages" in (await ask(service.address, "list", _SERVICE)).split()
    assert "optional uint64 expected_sequence = 4" in await ask(
        service.address, "describe", ".gaggle.conversation.v1.AppendMessagesRequest"
    )
    assert "stream .gaggle.conversation.v1.WatchResponse" in await ask(
        "-protoset-out", str(contract), service.address, "describe", _SERVICE
    )
    if way != "port":
        app += ["-protoset", str(contract)]

    headers = ["-H", f"authorization: Bearer {mesh.token(user)}"]
    created = json.loads(await run(f"{_SERVICE}/CreateConversation", body={"title": "by grpcurl"}))
    conversation_id = created["conversation"]["id"]
    message = {"role": "ROLE_USER", "content": [{"text": {"text": "hello"}}]}
    append = {"conversationId": conversation_id, "messages": [message, message]}
    assert json.loads(await run(f"{_SERVICE}/AppendMessages", body=append))["last_sequence"] == "2"
    listed = json.loads(await run(f"{_SERVICE}/ListMessages", body={"conversationId": conversation_id}))
    assert [one["content"] for one in listed["messages"]] == [message["content"]] * 2

    headers = [*headers, "-H", "dapr-stream: true"]
    watch = {"conversationId": conversation_id, "fromSequence": "1"}
    command = [
        str(grpcurl_program),
        "-plaintext",
        *app,
        *headers,
        "-d",
        json.dumps(watch),
        address,
        f"{_SERVICE}/Watch",
    ]
    watching = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert watching.stdout is not None
    seen = b""
    async with asyncio.timeout(20):
        while b'"caught_up"' not in seen:
            seen += await watching.stdout.readline()
        await run(f"{_SERVICE}/AppendMessages", body=append | {"messages": [message]})
        while b'"sequence": "3"' not in seen:
            seen += await watching.stdout.readline()
    watching.kill()
    await watching.wait()
    refusal = await run(f"{_SERVICE}/GetConversation", body={"conversationId": "none"}, code=64 + 5)
    assert "NotFound" in refusal
