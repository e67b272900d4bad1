"""A real better-auth server from npm, with a daprd of its own; installed by the lock beside this file, into the cache.

Node comes from the machine, or as a Python wheel. What can't be had fails the test that asks for it.
"""

import asyncio
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest

from cli.binaries.cache import cache_directory, exclusive
from cli.binaries.dapr import dapr_binaries
from cli.mesh.health import http_is_ok
from cli.mesh.ports import direct_loopback
from tests.conditions import eventually

_HERE = Path(__file__).parent
_INSTALL_SECONDS = 300
_START_SECONDS = 60
_SERVER = "server.mjs"
_PASSWORD = "correct horse battery"


@dataclass(frozen=True)
class SignedIn:
    """What signing in gives."""

    user_id: str
    token: str
    """The session's token, bare."""

    signed: str
    """The same with its signature, as the bearer plugin gives it; empty without that plugin."""

    cookie: str
    """`name=value`, as a browser would send it."""


class Server:
    """A running server, as its users meet it."""

    def __init__(self, port: int, schema: str, database_url: str) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.schema = schema
        self._database_url = database_url

    async def sign_up(self, email: str = "") -> SignedIn:
        """Make an account; it is signed in at once."""
        email = email or f"{uuid.uuid4().hex}@example.com"
        return await self._post("sign-up/email", {"email": email, "password": _PASSWORD, "name": "Ann"})

    async def sign_in(self, email: str) -> SignedIn:
        """Sign in once more: another session."""
        return await self._post("sign-in/email", {"email": email, "password": _PASSWORD})

    async def sign_out(self, session: SignedIn) -> None:
        """End a session, as its browser would."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
            headers = {"cookie": session.cookie, "origin": self.url}
            response = await client.post("/api/auth/sign-out", headers=headers, json={})
        assert response.status_code == httpx.codes.OK, response.text

    def sql(self, statement: str, *parameters: object) -> None:
        """Change what lies in its database, behind its back."""
        with psycopg.connect(self._database_url, autocommit=True) as connection:
            connection.execute(f"SET search_path = {self.schema}".encode())
            connection.execute(statement.encode(), parameters)

    async def _post(self, path: str, body: Mapping[str, str]) -> SignedIn:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
            response = await client.post(f"/api/auth/{path}", json=body, headers={"origin": self.url})
        assert response.status_code == httpx.codes.OK, response.text
        answer = response.json()
        cookie = next(one for one in response.headers.get_list("set-cookie") if "session_token" in one)
        return SignedIn(
            user_id=answer["user"]["id"],
            token=answer["token"],
            signed=response.headers.get("set-auth-token", ""),
            cookie=cookie.partition(";")[0],
        )


def free_port() -> int:
    """Give a port that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@asynccontextmanager
async def better_auth(
    database_url: str, *, plugins: str = "bearer,admin", port: int = 0, schema: str = ""
) -> AsyncIterator[Server]:
    """Run a server on a schema of its own in that PostgreSQL; `schema`: of an earlier one."""
    packages = await asyncio.to_thread(_installed)
    schema = schema or f"better_auth_{uuid.uuid4().hex[:12]}"
    port = port or free_port()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}".encode())
        names = connection.info
        where = {"DATABASE_HOST": names.host, "DATABASE_USER": names.user, "DATABASE_NAME": names.dbname}
    process = await asyncio.create_subprocess_exec(
        _node()[0],
        str(packages / _SERVER),
        env={
            **os.environ,
            **where,
            "DATABASE_SCHEMA": schema,
            "PLUGINS": plugins,
            "PORT": str(port),
            "SECRET": hashlib.sha256(schema.encode()).hexdigest(),
        },
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        listening = await asyncio.wait_for(process.stdout.readline(), _START_SECONDS)
        assert listening.strip() == str(port).encode(), "the better-auth server did not start"
        yield Server(port, schema, database_url)
    finally:
        await _ended(process)


@asynccontextmanager
async def daprd(app_id: str, app_port: int, folder: Path) -> AsyncIterator[int]:
    """Run the server's own sidecar, as an operator would who knows nothing of ours; gives its HTTP port."""
    ports = [free_port() for _ in range(4)]
    with (folder / "daprd.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(dapr_binaries(lambda _what, _packages: None).daprd),
            f"--app-id={app_id}",
            f"--app-port={app_port}",
            "--app-protocol=http",
            f"--dapr-http-port={ports[0]}",
            f"--dapr-grpc-port={ports[1]}",
            "--dapr-listen-addresses=127.0.0.1",
            f"--dapr-internal-grpc-port={ports[2]}",
            "--dapr-internal-grpc-listen-address=127.0.0.1",
            f"--metrics-port={ports[3]}",
            "--metrics-listen-address=127.0.0.1",
            "--dapr-graceful-shutdown-seconds=1",
            f"--resources-path={folder}",
            env={**os.environ, **direct_loopback()},
            stdout=log,
            stderr=log,
        )
    try:

        async def ready() -> bool:
            assert process.returncode is None, (folder / "daprd.log").read_text()
            return await http_is_ok(ports[0], "/v1.0/healthz")

        await eventually(ready, within=_START_SECONDS, what="the sidecar of better-auth")
        yield ports[0]
    finally:
        await _ended(process)


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


def _place(kind: str, *locks: Path) -> Path:
    digest = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()
    return cache_directory() / "better-auth" / f"{kind}-{digest[:12]}"


def _node() -> tuple[str, str]:
    """Give node and npm: the machine's, or those of a wheel."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is not None and npm is not None:
        return node, npm
    lock = _HERE / "requirements.lock"
    place = _place("node", lock)
    with exclusive(place.with_suffix(".lock"), waiting=lambda: None):
        if not (place / ".installed").exists():
            shutil.rmtree(place, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(place)])
            pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            _run([*pip, "--require-hashes", "-r", str(lock)])
            (place / ".installed").touch()
    return str(place / "bin" / "node"), str(place / "bin" / "npm")


def _installed() -> Path:
    """Give the folder that holds the server and its packages."""
    files = [_HERE / name for name in ("package.json", "package-lock.json", _SERVER)]
    place = _place("packages", *files)
    node, npm = _node()
    with exclusive(place.with_suffix(".lock"), waiting=lambda: None):
        if not (place / ".installed").exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            for file in files:
                shutil.copy(file, place / file.name)
            path = os.pathsep.join([str(Path(node).parent), os.environ.get("PATH", "")])
            _run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=place, PATH=path)
            (place / ".installed").touch()
    return place


def _run(command: list[str], cwd: Path | None = None, **environment: str) -> None:
    ended = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=_INSTALL_SECONDS,
        check=False,
    )
    if ended.returncode:
        pytest.fail(f"{' '.join(command)}: {ended.stderr.strip() or ended.stdout.strip()}", pytrace=False)
