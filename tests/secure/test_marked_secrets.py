"""No secret in a log, an error, a trace, an event, or anything else that a mesh writes or shows."""

import asyncio
import base64
import contextlib
import json
import re
from typing import Any

import grpc.aio
import httpx
import psutil
import psycopg
import pytest
import redis.asyncio

from gaggle.agent.v1 import agent_service_pb2, agent_service_pb2_grpc
from services.runtime.dapr import dapr_pb2_grpc, metadata_pb2, secret_pb2
from tests.cli.command import gaggle
from tests.conditions import eventually
from tests.conversation.talking import Talker
from tests.extension.asking import Asker, odd
from tests.notification.notifying import Notified
from tests.secure.conftest import SecureMesh, secret_files
from tests.secure.needs import SERVICES

pytestmark = [pytest.mark.mesh, pytest.mark.slow, pytest.mark.xdist_group("secure"), pytest.mark.timeout(300)]

_WITHIN = 60.0
_SHORTEST = 16
_PRIVATE = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n(.*?)\n-----END", re.DOTALL)


def _known(mesh: SecureMesh) -> dict[str, str]:
    """Every secret of the mesh, by what it is."""
    known = dict(mesh.marks)
    for file in mesh.data.keys.iterdir():
        if file.suffix == ".jwk":
            known[f"private key of {file.stem}"] = json.loads(file.read_text())["d"]
        elif "token" in file.name:
            known[file.name] = file.read_text()
    for file in mesh.data.identities.rglob("*"):
        if file.suffix == ".jwt":
            # What proves it; head and body are the same for all.
            known[f"identity token of {file.stem}"] = file.read_text().rpartition(".")[2]
        elif file.is_file() and (found := _PRIVATE.search(file.read_text(errors="replace"))):
            known[f"private key in {file.name}"] = found[1].splitlines()[0]
    for file in (mesh.data.path / "tls").glob("*.pem"):
        if found := _PRIVATE.search(file.read_text()):
            known[f"private key in {file.name}"] = found[1].splitlines()[0]
    assert all(len(value) >= _SHORTEST for value in known.values())
    return known


def _found(text: bytes, known: dict[str, str]) -> set[str]:
    """Which secrets are in a text, as they are or in base64 or hexadecimal."""
    found = set()
    for name, value in known.items():
        raw = value.encode()
        # Base64 of what may begin at any of three places: the part that does not depend on its neighbours.
        encoded = (base64.b64encode(bytes(before) + raw)[before and 4 : -4] for before in range(3))
        if raw in text or raw.hex().encode() in text.lower() or any(one in text for one in encoded):
            found.add(name)
    return found


async def _provoke(mesh: SecureMesh, user: str) -> list[str]:
    """Has every secret used, mostly in vain; gives what callers were told."""
    told: list[str] = []
    metadata = mesh.metadata(user)
    async with contextlib.AsyncExitStack() as stack:
        to = {name: await stack.enter_async_context(mesh.channel(name)) for name in SERVICES}
        conversation_id = await Talker(to["conversation"], metadata).create("hello")
        # A provider that refuses the key, and repeats it.
        agent: Any = agent_service_pb2_grpc.AgentServiceStub(to["agent"])
        for model in mesh.models:
            request = agent_service_pb2.ChatRequest(conversation_id=conversation_id, model=f"{model}:one")
            request.message.add().text.text = "hi"
            try:
                told += [str(event) async for event in agent.Chat(request, metadata=metadata, timeout=_WITHIN)]
            except grpc.aio.AioRpcError as error:
                told.append(f"{error.details()} {error.trailing_metadata()}")
            assert mesh.models[model].asked, told
        # A mail server that refuses the password.
        notified = Notified(mesh, to["notification"], user)
        await notified("SetPreferences", email_address=notified.address)
        await notified.tell("by mail")
        # A child process with a secret in its environment, which dies.
        asker = Asker(to["extension"], metadata)
        extension_id = await asker.loaded(odd("marked", env_keys=["TEST_SECRET"]))
        # Not `whoami`, which tells its environment: what a server does with a secret it is given is its own affair.
        told.append(await asker.text("count", extension_id=extension_id))
        with contextlib.suppress(grpc.aio.AioRpcError):
            told.append(str(await asker.call("die", {"status": 3}, extension_id=extension_id)))
        told.append(str((await asker("GetExtension", extension_id=extension_id)).extension))
        # Tokens that are none, and secrets that are not for the one who asks.
        for token in (mesh.token(user)[:-4], "nonsense"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await Talker(to["conversation"], (("authorization", f"Bearer {token}"),)).get(conversation_id)
            told.append(f"{caught.value.details()} {caught.value.trailing_metadata()}")
        for service in SERVICES:
            sidecar = await stack.enter_async_context(mesh.sidecar(service))
            stub: Any = dapr_pb2_grpc.DaprStub(sidecar)  # type: ignore[no-untyped-call]
            asked = metadata_pb2.GetMetadataRequest()
            told.append(str(await stub.GetMetadata(asked, metadata=mesh.by_sidecar(service))))
            forbidden = secret_pb2.GetSecretRequest(store_name="secretstore", key="database")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetSecret(forbidden, metadata=mesh.by_sidecar(service))
            told.append(str(caught.value.details()))

    async def tried() -> bool:
        return b"not_delivered" in mesh.data.log("notification").read_bytes()

    await eventually(tried, within=_WITHIN, what="a refused e-mail in the log")
    return told


async def test_no_secret_is_told(secure: SecureMesh, user: str) -> None:
    """Every secret of the mesh is used, and repeated by those who were sent it; no file, page or answer has it."""
    told = await _provoke(secure, user)
    known = _known(secure)
    leaks: dict[str, set[str]] = {}

    def look(where: str, text: bytes) -> None:
        if found := _found(text, known):
            leaks[where] = found

    look("answers", "\n".join(told).encode())
    for arguments in (("status",), ("status", "--json"), ("logs", "agent"), ("logs", "agent", "--sidecar")):
        look(f"gaggle {' '.join(arguments)}", (await asyncio.to_thread(_shown, secure, arguments)).encode())
    await _look_at_pages(secure, look)
    assert secure.collector.taken
    look("traces", b"".join(secure.collector.taken))
    await asyncio.to_thread(_look_at_tables, secure, look)
    await _look_at_broker(secure, look)
    for name, entry in secure.description.processes.items():
        look(f"command line of {name}", "\0".join(psutil.Process(entry.pid).cmdline()).encode())
    hidden = secret_files(secure.data)
    for file in secure.data.path.rglob("*"):
        if file.is_file() and not any(file.is_relative_to(one) for one in hidden):
            look(str(file.relative_to(secure.data.path)), file.read_bytes())
    assert leaks == {}
    # What is looked for is found where it is meant to lie.
    assert set(secure.marks) <= _found(secure.data.secrets_file.read_bytes(), known)


def test_secrets_are_their_owners_alone(secure: SecureMesh) -> None:
    """Files that hold secrets can be read by nobody but their owner."""
    for one in secret_files(secure.data):
        files = [file for file in one.rglob("*") if file.is_file()] if one.is_dir() else [one] if one.exists() else []
        for file in files:
            assert not one.stat().st_mode & 0o077 or not file.stat().st_mode & 0o077, file


def test_what_is_looked_for_would_be_found() -> None:
    """The search finds a secret as it is, in base64 at any place, and in hexadecimal."""
    known = {"it": "marked-0123456789abcdef"}
    raw = known["it"].encode()
    for text in (raw, raw.hex().encode(), *(base64.b64encode(b"x" * before + raw + b"yz") for before in range(4))):
        assert _found(b"..." + text + b"...", known) == {"it"}
    assert _found(b"marked-0123456789abcdee", known) == set()


def _shown(mesh: SecureMesh, arguments: tuple[str, ...]) -> str:
    result = gaggle(*arguments, data=mesh.data.path)
    return result.stdout + result.stderr


async def _look_at_pages(mesh: SecureMesh, look: Any) -> None:
    async with httpx.AsyncClient() as client:
        for service in SERVICES:
            (replica,) = mesh.service(service).replicas
            for address in (replica.metrics, replica.sidecar_metrics):
                look(f"metrics of {service}", (await client.get(f"http://{address}/metrics")).content)
            headers = {"dapr-api-token": mesh.tokens(service)["dapr"]}
            page = await client.get(f"http://{replica.sidecar_http}/v1.0/metadata", headers=headers)
            look(f"metadata of {service}", page.content)


def _look_at_tables(mesh: SecureMesh, look: Any) -> None:
    with psycopg.connect(mesh.description.database_url) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'goose'"
        ).fetchall()
        assert tables
        for (table,) in tables:
            rows = connection.execute(f"SELECT t::text FROM {table} AS t".encode()).fetchall()  # noqa: S608 - of the catalog
            look(f"table {table}", "\n".join(row for (row,) in rows).encode())


async def _look_at_broker(mesh: SecureMesh, look: Any) -> None:
    address = mesh.description.broker_address
    async with redis.asyncio.from_url(f"redis://:{mesh.marks['redis-password']}@{address}") as client:
        keys: list[Any] = await client.keys("*")
        assert keys
        for key in keys:
            if await client.type(key) == b"stream":
                look(f"stream {key.decode()}", repr(await client.xrange(key)).encode())
