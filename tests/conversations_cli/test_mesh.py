"""The command line on a real mesh: real transcripts, and processes that are killed under it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from cli.conversations.client import Target, connect
from cli.mesh.data import PROJECT_ROOT
from cli.samples import OBSERVATORY, sample
from gaggle.audit.v1 import audit_service_pb2 as audit_pb
from gaggle.audit.v1.audit_service_pb2_grpc import AuditServiceStub
from gaggle.conversation.v1 import conversation_service_pb2 as pb
from gaggle.conversation.v1.conversation_service_pb2_grpc import ConversationServiceStub
from gaggle.conversation.v1.message_pb2 import ROLE_USER, TextContent
from tests.conditions import eventually
from tests.mesh_fixture import Mesh

pytestmark = pytest.mark.mesh

LOCOMO = PROJECT_ROOT.parent / "shared" / "data" / "locomo"
_LOGGED_SECONDS = 60.0


class Gaggle:
    """`gaggle conversations`, as programs of their own."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def start(self, *arguments: object) -> asyncio.subprocess.Process:
        """Starts a command; both of its outputs are pipes."""
        path = os.pathsep.join([str(PROJECT_ROOT), str(PROJECT_ROOT / "gen")])
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli.main", "conversations", *map(str, arguments)),
            env=os.environ | {"GAGGLE_DATA": str(self._mesh.data.path), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def __call__(self, *arguments: object, code: int = 0) -> str:
        """Runs a command to its end, which must be `code`; gives its standard output."""
        process = await self.start(*arguments)
        out, err = await process.communicate()
        assert process.returncode == code, err.decode()
        return out.decode()


@pytest.fixture
def gaggle(mesh: Mesh) -> Gaggle:
    """The command line on the shared mesh."""
    return Gaggle(mesh)


async def logged(mesh: Mesh, user: str, conversation_id: str, count: int) -> list[audit_pb.LogEntry]:
    """The conversation's events, once they tell of `count` messages."""
    async with mesh.channel("audit") as channel:
        stub = AuditServiceStub(channel)

        async def complete() -> list[audit_pb.LogEntry]:
            request = audit_pb.ListEventsRequest(page_size=1000)
            request.filter.entity_id = conversation_id
            entries: list[audit_pb.LogEntry] = []
            while True:
                page = await stub.ListEvents(request, metadata=mesh.metadata(user), timeout=10)
                entries += page.entries
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            return entries if len(sequences(entries)) >= count else []

        return await eventually(complete, within=_LOGGED_SECONDS, what=f"{count} messages of {conversation_id} logged")


def sequences(entries: list[audit_pb.LogEntry]) -> list[int]:
    """The sequences of the messages that the events tell of."""
    told = (MessageToDict(entry.event.data).get("messages", []) for entry in entries)
    return [int(message["sequence"]) for messages in told for message in messages]


@pytest.mark.slow
@pytest.mark.skipif(not LOCOMO.is_dir(), reason="the LoCoMo dialogues are not here")
async def test_real_dialogues_come_back_to_their_own_user(gaggle: Gaggle, user: str, tmp_path: Path) -> None:
    """Five long dialogues under two users are exported equal, message for message; a third user sees none of them."""
    files = sorted(LOCOMO.glob("*.json"))
    assert len(files) == 5
    stored: dict[str, list[str]] = {}
    for name in (f"{user}-a", f"{user}-b"):
        stored[name] = (await gaggle("import", "-q", "--user", name, *files)).split()
        assert len(set(stored[name])) == 5
        for file, conversation_id in zip(files, stored[name], strict=True):
            target = tmp_path / f"{name}-{file.name}"
            await gaggle("export", conversation_id, "--user", name, "-o", target)
            assert json.loads(target.read_text()) == json.loads(file.read_text())
        listed = (await gaggle("list", "--json", "--user", name)).splitlines()
        assert {json.loads(line)["id"] for line in listed} == set(stored[name])
    assert not set(stored[f"{user}-a"]) & set(stored[f"{user}-b"])
    assert not await gaggle("list", "--json", "--user", f"{user}-c")
    await gaggle("show", stored[f"{user}-a"][0], "--user", f"{user}-b", code=1)
    await gaggle("export", stored[f"{user}-b"][0], "--user", f"{user}-c", code=1)


async def test_ways_in_lead_to_the_same_conversation(gaggle: Gaggle, mesh: Mesh, user: str, tmp_path: Path) -> None:
    """Imported through one sidecar, a conversation is read through another and straight, and deleted for all."""
    file = tmp_path / OBSERVATORY
    file.write_bytes(sample(OBSERVATORY).read_bytes())
    conversation_id = (await gaggle("import", "-q", "--user", user, "--via", "audit", file)).strip()
    for way in (["--via", "auth"], ["--via", "conversation"], ["--address", mesh.service("conversation").address]):
        assert await gaggle("export", conversation_id, "--user", user, *way) == file.read_text()
    await gaggle("delete", "--yes", "--via", "auth", "--user", user, conversation_id)
    await gaggle("delete", "--yes", "--user", user, conversation_id)
    await gaggle("show", conversation_id, "--user", user, code=1)
    again = (await gaggle("import", "-q", "--user", user, file)).strip()
    assert again != conversation_id
    assert await gaggle("export", again, "--user", user) == file.read_text()


async def test_imported_words_are_found(gaggle: Gaggle, user: str, tmp_path: Path) -> None:
    """What was imported is found by its words, soon after, and by nobody else."""
    file = tmp_path / "chat.json"
    file.write_text(json.dumps([{"role": "user", "content": f"The quincunx belongs to {user}."}]))
    conversation_id = (await gaggle("import", "-q", "--user", user, file)).strip()

    async def found() -> bool:
        return conversation_id in await gaggle("search", "quincunx", "--user", user)

    await eventually(found, within=_LOGGED_SECONDS, what="the word is found")
    assert not await gaggle("search", "quincunx", "--user", f"{user}-b")


KILLED = {
    "service": ["conversation"],
    "sidecar": ["conversation.daprd"],
    "both-and-again": ["conversation", "conversation.daprd", "conversation"],
}


@pytest.fixture(scope="module")
def own_mesh(private_mesh: Callable[..., Mesh]) -> Mesh:
    """A mesh whose processes may be killed."""
    return private_mesh()


@pytest.mark.slow
@pytest.mark.parametrize("processes", KILLED.values(), ids=KILLED.keys())
@pytest.mark.parametrize("way", ["straight", "through-sidecars"])
async def test_import_survives_kills(own_mesh: Mesh, user: str, tmp_path: Path, processes: list[str], way: str) -> None:
    """kill -9 of service and sidecar amid an import: it completes, nothing is lost or doubled, the log equals it."""
    gaggle = Gaggle(own_mesh)
    count = 12_000
    file = tmp_path / "long.jsonl"
    texts = [f"{number} {'x' * (number % 700)}" for number in range(count)]
    messages = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
    file.write_text("".join(json.dumps(message) + "\n" for message in messages))
    through = ["--via", "auth"] if way == "through-sidecars" else []
    importing = await gaggle.start("import", "-q", "--user", user, "--conversation", "long", *through, file)
    async with own_mesh.channel("conversation") as channel:
        stub = ConversationServiceStub(channel)

        async def stored() -> int:
            request = pb.GetConversationRequest(conversation_id="long")
            try:
                answer = await stub.GetConversation(request, metadata=own_mesh.metadata(user), timeout=5)
            except Exception:  # noqa: BLE001 - it was killed, or is not created yet
                return 0
            return answer.conversation.last_sequence

        async def has(least: int) -> bool:
            return await stored() >= least

        killed: dict[str, int] = {}
        for process in processes:
            least = await stored() + 500
            await eventually(partial(has, least), within=60, what=f"{least} messages stored")
            assert importing.returncode is None, "the import was over before anything was killed"
            killed[process] = own_mesh.kill(process)
        out, err = await importing.communicate()
        assert (importing.returncode, out.decode()) == (0, "long\n"), err.decode()
    for process, dead in killed.items():
        await own_mesh.back(process, dead)
    exported: list[dict[str, Any]] = [
        json.loads(line) for line in (await gaggle("export", "long", "--user", user)).splitlines()
    ]
    assert exported == messages
    entries = await logged(own_mesh, user, "long", count)
    told = Counter(sequences(entries))
    assert sorted(told) == list(range(1, count + 1))
    assert set(told.values()) == {1}
    revisions = [(entry.event.revision, entry.event.part) for entry in entries]
    assert len(revisions) == len(set(revisions))
    assert {revision for revision, _ in revisions} == set(range(1, max(revisions)[0] + 1))


@pytest.mark.slow
async def test_follow_survives_kills(own_mesh: Mesh, user: str, tmp_path: Path) -> None:
    """A conversation that is followed through a sidecar is shown without gap or repeat while processes die."""
    gaggle = Gaggle(own_mesh)
    file = tmp_path / "chat.json"
    file.write_text(json.dumps([{"role": "user", "content": "begin"}]))
    await gaggle("import", "-q", "--user", user, "--conversation", "followed", file)
    following = await gaggle.start("show", "followed", "--user", user, "--via", "auth", "--json", "--follow")
    assert following.stdout is not None
    shown = [json.loads(await following.stdout.readline())["sequence"]]
    client = Target.find(data=own_mesh.data.path, user=user)
    async with connect(client, timeout_seconds=60) as writer:
        for process in ("conversation", "auth.daprd", "conversation.daprd", None):
            for _ in range(3):
                request = pb.AppendMessagesRequest(conversation_id="followed", request_id=str(uuid.uuid4()))
                request.messages.add(role=ROLE_USER).content.add(text=TextContent(text="more"))
                await writer.call(writer.stub.AppendMessages, request, pb.AppendMessagesResponse)
            lines = [await asyncio.wait_for(following.stdout.readline(), 60) for _ in range(3)]
            shown += [json.loads(line)["sequence"] for line in lines]
            if process is not None:
                dead = own_mesh.kill(process)
                await own_mesh.back(process, dead)
    following.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(following.wait(), 30) == 0
    assert shown == [str(sequence) for sequence in range(1, 14)]
