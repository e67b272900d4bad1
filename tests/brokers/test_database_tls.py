"""PostgreSQL by TLS that proves the server (verify-full), as the sets' components are told to reach it.

The server of the mesh's wheel has no TLS, and is on a Unix socket; this one is Debian's.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import psycopg
import pytest
from rich.console import Console

from cli.binaries.debian import unpacked
from cli.mesh.certificates import ensure_certificates
from cli.mesh.data import PROJECT_ROOT
from cli.mesh.sets import ComponentSet
from cli.progress import build_progress
from services.runtime.dapr import binding_pb2, common_pb2, dapr_pb2_grpc, state_pb2
from tests.conditions import eventually
from tests.lone_sidecar import lone_sidecar

pytestmark = [pytest.mark.mesh, pytest.mark.slow]

_SERVERS = "usr/lib/postgresql/*/bin/postgres"
_PASSWORD = "marked-in-the-test"
_WITHIN = 60.0


@dataclass(frozen=True)
class Server:
    """A PostgreSQL that takes TLS alone."""

    port: int
    authority: Path
    """Who signed its certificate, in PEM."""

    def url(self, *, host: str = "localhost", authority: Path | None = None, mode: str = "verify-full") -> str:
        """A connection string."""
        trusted = authority or self.authority
        return f"postgresql://postgres:{_PASSWORD}@{host}:{self.port}/postgres?sslmode={mode}&sslrootcert={trusted}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Debian's server, installed or unpacked into the cache."""
    found = sorted(Path("/").glob(_SERVERS)) or sorted(
        unpacked("postgresql", build_progress(Console(stderr=True))).glob(_SERVERS)
    )
    folder = tmp_path_factory.mktemp("postgres")
    certificates = ensure_certificates(folder / "tls", "postgres")
    data = folder / "data"
    # PostgreSQL refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    root, libraries = found[-1].parents[5], "usr/lib/x86_64-linux-gnu"
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "LD_LIBRARY_PATH": str(root / libraries)}
    password = folder / "password"
    password.write_text(_PASSWORD)
    if user is not None:
        for one in (folder, folder / "tls", certificates.server, certificates.authority, password):
            shutil.chown(one, user)
        _open_the_way_to(folder)

    def run(program: str, *arguments: str) -> None:
        command = [str(found[-1].with_name(program)), *arguments]
        subprocess.run(
            command, user=user, env=environment, check=True, capture_output=True, timeout=_WITHIN, cwd=folder
        )

    run("initdb", "-D", str(data), "--username=postgres", "--auth=scram-sha-256", f"--pwfile={password}")
    (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.0/8 scram-sha-256\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "listen_addresses": "127.0.0.1,127.0.0.2",
        "port": str(port),
        "unix_socket_directories": "",
        "ssl": "on",
        "ssl_cert_file": str(certificates.server),
        "ssl_key_file": str(certificates.server),
        "ssl_min_protocol_version": "TLSv1.3",
    }
    arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(found[-1]), "-D", str(data), *arguments],
            user=user,
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    yield Server(port, certificates.authority)
    process.send_signal(signal.SIGINT)
    process.wait(_WITHIN)


def _open_the_way_to(folder: Path) -> None:
    """Let another account through the folders of the test run, which are root's alone."""
    for one in folder.parents:
        mode = one.stat().st_mode
        if one.stat().st_uid == os.geteuid() and not mode & 0o001:
            one.chmod(mode | 0o011)


@pytest.fixture(scope="module")
async def migrated(server: Server) -> Server:
    """The schema, made over the same connection string by `gaggle db migrate`."""

    async def listens() -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            await asyncio.to_thread(lambda: psycopg.connect(server.url(), connect_timeout=5).close())
            return True
        return False

    await eventually(listens, within=_WITHIN, what="PostgreSQL by TLS")
    environment = {**os.environ, "DATABASE_URL": server.url()}
    command = [sys.executable, "-m", "cli.main", "db", "migrate"]
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, cwd=PROJECT_ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return server


def _sidecar(folder: Path, url: str) -> contextlib.AbstractAsyncContextManager[tuple[asyncio.subprocess.Process, int]]:
    """daprd of `audit` with the database's components of kafka-cloud; its process, and its gRPC port."""
    components = ComponentSet.load(PROJECT_ROOT / "dapr-components" / "kafka-cloud")
    names = ("postgres-statestore.yaml", "readmodel.yaml", "kubernetes-secrets.yaml")
    documents = [document for name in names for document in components.files[name]]
    return lone_sidecar(folder, "audit", documents, {"backend-secrets": {"DATABASE_URL": url}})


async def test_state_and_read_model_go_by_tls(migrated: Server, tmp_path: Path) -> None:
    """With verify-full in the secret, state is written and the read model queried, every connection by TLS 1.3."""
    async with (
        _sidecar(tmp_path, migrated.url()) as (_, port),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub: Any = dapr_pb2_grpc.DaprStub(channel)  # type: ignore[no-untyped-call]
        item = common_pb2.StateItem(key="k", value=b"v")
        request = state_pb2.SaveStateRequest(store_name="postgres-statestore", states=[item])
        await stub.SaveState(request, wait_for_ready=True, timeout=_WITHIN)
        found = await stub.GetState(state_pb2.GetStateRequest(store_name="postgres-statestore", key="k"))
        assert found.data == b"v"
        sql = (
            "SELECT bool_and(s.ssl), min(s.version), count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) "
            "WHERE a.client_addr IS NOT NULL"
        )
        query = binding_pb2.InvokeBindingRequest(name="readmodel", operation="query", metadata={"sql": sql})
        ((encrypted, version, count),) = json.loads((await stub.InvokeBinding(query, timeout=_WITHIN)).data)
    assert (encrypted, version) == (True, "TLSv1.3")
    assert count >= 2


@pytest.mark.parametrize(
    ("wrong", "words"),
    [("authority", "unknown authority"), ("name", "certificate is valid for"), ("no TLS", "no encryption")],
)
async def test_another_server_is_not_talked_to(migrated: Server, tmp_path: Path, wrong: str, words: str) -> None:
    """A certificate of another authority, or for another name, ends the sidecar; so does a server that wants TLS."""
    stranger = ensure_certificates(tmp_path / "stranger", "postgres").authority
    url = {
        "authority": migrated.url(authority=stranger),
        # The same server by an address that its certificate does not name.
        "name": migrated.url(host="127.0.0.2"),
        "no TLS": migrated.url(mode="disable"),
    }[wrong]
    async with _sidecar(tmp_path, url) as (process, _):
        async with asyncio.timeout(_WITHIN):
            assert await process.wait() != 0
    log = (tmp_path / "daprd.log").read_text()
    assert words in log
    assert _PASSWORD not in log
