"""MCP over the standard streams of a child process.

The SDK's own stdio transport inherits part of our environment, reads lines of any length and kills the process group
alone. Here the environment begins empty, a line has a limit, and everything that the child has started goes with it:
its group, and whatever left the group but carries its mark.

Children are started by `subprocess.Popen`, which uses vfork, and not by the event loop: uvloop forks, and the handlers
that gRPC runs in a forked child crash it now and then (one of six children, with four busy channels).
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import structlog
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from services.extension import reaper

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from services.runtime.errors import GaggleError

Streams: TypeAlias = tuple[Any, Any]
"""A read and a write stream, as `mcp.client.Transport` has them; the SDK's own name for the pair is private."""

_LEAVE_SECONDS = 2.0
_TERM_SECONDS = 2.0
_EXIT_POLL_SECONDS = 0.1
_STDERR_BYTES = 4096

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Launch:
    """What to run."""

    program: str
    """An absolute path."""

    args: Sequence[str]
    env: Mapping[str, str]
    """What was declared, secrets among it."""

    path: str
    """Its PATH."""

    home: str = ""
    """Its HOME; empty: its own directory."""

    cwd: str = ""
    """Empty: its own directory."""


class Death:
    """How a connection ended by itself, for those who used it."""

    def __init__(self) -> None:
        """It lives."""
        self.happened = asyncio.Event()
        self.blocked: GaggleError | None = None
        """It was not allowed to connect."""

        self._error = ""
        self._exit = ""
        self._stderr: deque[bytes] = deque(maxlen=16)

    @property
    def text(self) -> str:
        """How it ended: what became of the process, which explains the rest, or else what was seen first."""
        return self._exit or self._error

    @property
    def last_words(self) -> str:
        """The last line that the process wrote to its standard error."""
        lines = b"".join(self._stderr)[-_STDERR_BYTES:].decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def note(self, error: str) -> None:
        """Keep the first cause; what follows from it is none."""
        self._error = self._error or error
        self.happened.set()

    def exited(self, status: int) -> None:
        """Keep a process's end."""
        self._exit = self._exit or (f"was ended by signal {-status}" if status < 0 else f"exited with status {status}")
        self.happened.set()

    def heard(self, stderr: bytes) -> None:
        """Keep what the process wrote to its standard error, as far as it is the last."""
        self._stderr.append(stderr)


class Reaper:
    """The process that ends what we have started, if we are killed; see reaper.py."""

    def __init__(self) -> None:
        """Nothing is started yet."""
        self.mark = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()
        self._numbers = 0

    async def start(self) -> None:
        """Start it."""
        command = [sys.executable, "-I", "-S", str(Path(reaper.__file__)), f"{self.mark}:"]
        self._process = await asyncio.to_thread(
            subprocess.Popen, command, stdin=subprocess.PIPE, env={}, cwd="/", start_new_session=True, bufsize=0
        )
        for group in self._groups:
            self._tell(f"+{group}")

    async def stop(self) -> None:
        """End it, and what is left."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, timeout=2)

    def next_mark(self) -> str:
        """Give a mark for one more child."""
        self._numbers += 1
        return f"{self.mark}:{self._numbers}:"

    async def add(self, group: int) -> None:
        """Have a process group killed with us."""
        self._groups.add(group)
        if self._process is None or self._process.poll() is not None:
            await self.start()
        else:
            self._tell(f"+{group}")

    def remove(self, group: int) -> None:
        """Forget a group that is gone."""
        self._groups.discard(group)
        self._tell(f"-{group}")

    def _tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            # If it is gone the next child starts it anew.
            with contextlib.suppress(OSError):
                self._process.stdin.write(f"{line}\n".encode())


class _Child:
    """A process, and its pipes on the event loop."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._transports: list[asyncio.BaseTransport] = []

    @classmethod
    async def start(cls, command: Sequence[str], *, env: Mapping[str, str], cwd: str) -> "_Child":
        """Raises OSError."""
        process = await asyncio.to_thread(
            subprocess.Popen,
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            bufsize=0,
        )
        return cls(process)

    async def open(self, max_line_bytes: int) -> None:
        """Take over the pipes."""
        process = self._process
        loop = asyncio.get_running_loop()
        self.stdout = await self._reader(process.stdout, max_line_bytes)
        self.stderr = await self._reader(process.stderr, max_line_bytes)
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), process.stdin
        )
        self._transports.append(transport)
        self.stdin = asyncio.StreamWriter(transport, protocol, None, loop)

    async def _reader(self, pipe: Any, limit: int) -> asyncio.StreamReader:
        reader = asyncio.StreamReader(limit=limit)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        self._transports.append(transport)
        return reader

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    def close_input(self) -> None:
        if self._transports:
            self._transports[-1].close()
        elif self._process.stdin is not None:
            self._process.stdin.close()

    def close(self) -> None:
        for transport in self._transports:
            transport.close()


@asynccontextmanager
async def child_process(launch: Launch, keeper: Reaper, death: Death, *, max_line_bytes: int) -> AsyncIterator[Streams]:
    """Run a server, and end it with all that it started. A transport of the mcp package.

    Raises OSError if it can't be started. How it ended by itself is noted in `death`.
    """
    directory = await asyncio.to_thread(tempfile.mkdtemp, prefix="gaggle-extension-")
    mark = keeper.next_mark()
    env = {
        "PATH": launch.path,
        "HOME": launch.home or directory,
        "TMPDIR": directory,
        "LANG": "C.UTF-8",
        **launch.env,
        reaper.MARK: mark,
    }
    try:
        process = await _Child.start([launch.program, *launch.args], env=env, cwd=launch.cwd or directory)
        try:
            await keeper.add(process.pid)
            await process.open(max_line_bytes)
            async with _streams(process, death, max_line_bytes) as streams:
                yield streams
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process, mark, death)
                keeper.remove(process.pid)
    finally:
        with anyio.CancelScope(shield=True):
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


@asynccontextmanager
async def _streams(process: _Child, death: Death, max_line_bytes: int) -> AsyncIterator[Streams]:
    incoming, read_stream = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write_stream, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
    pipes = _Pipes(process, death, max_line_bytes, incoming, outgoing)
    async with anyio.create_task_group() as group:
        for task in (pipes.read, pipes.write, pipes.listen, pipes.watch):
            group.start_soon(task)
        try:
            yield read_stream, write_stream
        finally:
            for stream in (read_stream, write_stream, incoming, outgoing):
                stream.close()
            group.cancel_scope.cancel()


class _Pipes:
    """Brings lines from the process to the session, and back."""

    def __init__(
        self,
        process: _Child,
        death: Death,
        max_line_bytes: int,
        incoming: "MemoryObjectSendStream[SessionMessage | Exception]",
        outgoing: "MemoryObjectReceiveStream[SessionMessage]",
    ) -> None:
        self._process = process
        self._death = death
        self._max_line = max_line_bytes
        self._incoming = incoming
        self._outgoing = outgoing

    async def read(self) -> None:
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
            async with self._incoming:
                while (line := await self._line()) is not None:
                    # Some servers greet on their standard output: what is no message is passed over.
                    with contextlib.suppress(ValueError):
                        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                        await self._incoming.send(SessionMessage(message))

    async def _line(self) -> bytes | None:
        try:
            return await self._process.stdout.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return None
        except asyncio.LimitOverrunError:
            self._death.note(f"sent a line of more than {self._max_line} bytes")
            return None

    async def write(self) -> None:
        stdin = self._process.stdin
        try:
            async with self._outgoing:
                async for one in self._outgoing:
                    body = one.message.model_dump_json(by_alias=True, exclude_unset=True)
                    stdin.write(body.encode() + b"\n")
                    await stdin.drain()
        except (RuntimeError, OSError):
            await self._incoming.aclose()

    async def listen(self) -> None:
        while chunk := await self._process.stderr.read(_STDERR_BYTES):
            self._death.heard(chunk)

    async def watch(self) -> None:
        # Not wait(): a grandchild that holds the pipes would keep it from returning.
        while (status := self._process.returncode) is None:  # noqa: ASYNC110 - as above
            await anyio.sleep(_EXIT_POLL_SECONDS)
        self._death.exited(status)
        # What it had still written is read; a grandchild that holds the pipe is not waited for.
        await anyio.sleep(_EXIT_POLL_SECONDS)
        await self._incoming.aclose()


async def _end(process: _Child, mark: str, death: Death) -> None:
    """Close its input, as the specification has it; then SIGTERM, then SIGKILL, to all that belongs to it."""
    process.close_input()
    if await _gone(process, _LEAVE_SECONDS):
        death.exited(process.returncode or 0)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
        await _gone(process, _TERM_SECONDS)
    reaper.kill_group(process.pid)
    await asyncio.to_thread(reaper.kill_marked, mark)
    if not await _gone(process, _TERM_SECONDS):
        _log.error("extension_process_not_gone", pid=process.pid)
    # Whatever still holds the other ends must not keep ours open.
    process.close()


async def _gone(process: _Child, seconds: float) -> bool:
    deadline = anyio.current_time() + seconds
    while process.returncode is None:
        if anyio.current_time() >= deadline:
            return False
        await anyio.sleep(0.02)
    return True
