"""Real MCP servers, installed from their registries by the locks beside this file, into the cache and once.

A lock names every package by its hash. What can't be had fails the test that asks for it; nothing is skipped, save what
needs Node on a machine that has none. Paths are known before anything is installed, so that a mesh can be told of them.
"""

import asyncio
import hashlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cli.binaries.cache import cache_directory, exclusive

_HERE = Path(__file__).parent
_PYTHON_LOCK = _HERE / "requirements.lock"
_NODE_LOCK = _HERE / "package-lock.json"
_INSTALL_SECONDS = 300
_START_SECONDS = 60


def _place(kind: str, lock: Path) -> Path:
    return cache_directory() / "mcp-servers" / f"{kind}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"


_PYTHON = _place("python", _PYTHON_LOCK)
_NODE = _place("node", _NODE_LOCK)

ODD = (sys.executable, str(_HERE / "odd_server.py"))
"""A server of our own, for what no well-behaved one does."""

TIME = str(_PYTHON / "bin" / "mcp-server-time")
GIT = str(_PYTHON / "bin" / "mcp-server-git")
EVERYTHING = str(_NODE / "node_modules" / ".bin" / "mcp-server-everything")

TASKS = ("gaggle", "mcp", "--on-behalf")
"""Our own server of tasks, which dapr.yaml lets act for whoever calls."""

COMMANDS = ";".join(shlex.join(one) for one in (ODD, (TIME,), (GIT,), (EVERYTHING,), (str(_HERE / "not-installed"),)))
"""What the mesh under test may run: GAGGLE_STDIO_COMMANDS."""


def python_servers() -> None:
    """Install mcp-server-time and mcp-server-git from PyPI."""

    def install(place: Path) -> None:
        _run([sys.executable, "-m", "venv", str(place)])
        pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--require-hashes", "-r", str(_PYTHON_LOCK)])

    _once(_PYTHON, install)


def node_servers() -> None:
    """Install @modelcontextprotocol/server-everything from npm; skips the test where the machine has no Node."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("this machine has no Node, on which servers from npm run")

    def install(place: Path) -> None:
        place.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_HERE / name, place / name)
        _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=place)

    _once(_NODE, install)


@asynccontextmanager
async def odd_over_http(port: int = 0) -> AsyncIterator[int]:
    """Run the server of our own on a port; gives it."""
    process = await asyncio.create_subprocess_exec(*ODD, "--http", str(port), stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield int(await asyncio.wait_for(process.stdout.readline(), _START_SECONDS))
    finally:
        await _ended(process)


@asynccontextmanager
async def everything_over_http() -> AsyncIterator[int]:
    """Run server-everything on a free port; gives it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    process = await asyncio.create_subprocess_exec(
        EVERYTHING,
        "streamableHttp",
        env={**os.environ, "PORT": str(port)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(_START_SECONDS):
            while b"listening" not in await process.stderr.readline():
                assert process.returncode is None, "server-everything did not start"
        yield port
    finally:
        await _ended(process)


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


def _once(place: Path, install: Callable[[Path], None]) -> None:
    done = place / ".installed"
    with exclusive(place.with_suffix(".lock"), waiting=lambda: None):
        if done.exists():
            return
        shutil.rmtree(place, ignore_errors=True)
        install(place)
        done.touch()


def _run(command: list[str], cwd: Path | None = None) -> None:
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    if ended.returncode:
        pytest.fail(f"{' '.join(command)}: {ended.stderr.strip() or ended.stdout.strip()}", pytrace=False)
