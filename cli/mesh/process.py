"""One process of the mesh: started, watched, started again when it dies, and stopped."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import psutil

from cli.errors import CommandError
from cli.mesh.description import ProcessDescription

_LEASH = Path(__file__).with_name("leash.py")

# A crashed service is to answer again within ten seconds, so the first attempt follows at once.
_FIRST_DELAY_SECONDS = 0.2
_LONGEST_DELAY_SECONDS = 10.0
# One that ran this long starts over with the first delay.
_STABLE_SECONDS = 30.0
# Deaths before it was ever ready, after which starting the mesh is given up.
_ATTEMPTS_AT_START = 3
_POLL_SECONDS = 0.05
_WATCH_SECONDS = 2.0
_LOG_BYTES = 32 * 1024 * 1024


class State(StrEnum):
    """Where a process stands."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    UNWELL = "unwell"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


def leashed(arguments: list[str], *, orphan_signal: signal.Signals, user: str | None) -> list[str]:
    """The command line of a program that gets `orphan_signal` when the calling process ends (see cli.mesh.leash)."""
    return [sys.executable, "-I", "-S", str(_LEASH), str(int(orphan_signal)), user or "-", *arguments]


async def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Command:
    """How to run a process.

    Attributes:
        name: the process's name in the mesh.
        arguments: the command line.
        is_ready: asked until it says yes, and every two seconds afterwards.
        log: where stdout and stderr go.
        environment: put over the supervisor's own environment.
        directory: where it runs.
        prepare: done before every start.
        close: done once, after the last one.
        stop_signal: asks it to end.
        stop_seconds: how long it may take to; then it is killed.
        orphan_signal: what it gets if the supervisor is killed.
        user: the account to run as, or None for the supervisor's own.
    """

    name: str
    arguments: list[str]
    is_ready: Callable[[], Awaitable[bool]]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    directory: Path | None = None
    prepare: Callable[[], Awaitable[None]] = _nothing
    close: Callable[[], Awaitable[None]] = _nothing
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 15.0
    orphan_signal: signal.Signals = signal.SIGKILL
    user: str | None = None


class Process:
    """Keeps one command running until it is told to stop.

    Args:
        command: what to run.
        tell: takes a sentence for the person at the terminal.
        changed: called when the process id or the state has changed.
    """

    def __init__(self, command: Command, *, tell: Callable[[str], None], changed: Callable[[], None]) -> None:
        self.command = command
        self.state = State.WAITING
        self.restarts = 0
        self.pid: int | None = None
        self._tell = tell
        self._changed = changed
        self._stopping = asyncio.Event()
        self._ready = asyncio.Event()
        self._gave_up = False
        self._was_ready = False
        self._dying = asyncio.Event()
        self._ending = ""
        self._runner: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The process's name in the mesh."""
        return self.command.name

    def start(self) -> None:
        """Begins to keep it running; `wait_ready` tells when it is."""
        self._stopping.clear()
        self._ready.clear()
        self._gave_up = False
        self._was_ready = False
        self._dying.clear()
        self._runner = asyncio.create_task(self._keep_running(), name=f"keep {self.name} running")

    async def wait_ready(self, seconds: float) -> None:
        """Returns once it is ready.

        Raises:
            CommandError: it died over and over, or was not ready in time; the text ends with the end of its log.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        except TimeoutError:
            self._set(State.FAILED)
            raise CommandError(f"{self.name} was not ready after {seconds:.0f} s. {self._log_end()}") from None
        if self._gave_up:
            self._set(State.FAILED)
            raise CommandError(f"{self.name} does not start: it {self._ending}. {self._log_end()}")

    async def wait_dying(self) -> None:
        """Waits for as long as it does not die over and over, ready in between or not.

        Raises:
            CommandError: it did; the text ends with the end of its log.
        """
        await self._dying.wait()
        self._set(State.FAILED)
        raise CommandError(f"{self.name} does not stay up: it {self._ending}. {self._log_end()}")

    async def stop(self) -> None:
        """Asks it to end, kills it if it will not in time, and returns when it is gone."""
        self._stopping.set()
        if self._runner is not None:
            await self._runner
            self._runner = None
        self._set(State.STOPPED)

    async def close(self) -> None:
        """Frees what its health check holds."""
        await self.command.close()

    def kill(self) -> None:
        """Kills it, and what it started, at once."""
        self._stopping.set()
        self._signal_group(signal.SIGKILL)

    def describe(self) -> ProcessDescription | None:
        """Its entry in mesh.json, while it lives."""
        if self.pid is None:
            return None
        try:
            started = psutil.Process(self.pid).create_time()
        except psutil.Error:
            return None
        return ProcessDescription(pid=self.pid, started=started, log=self.command.log)

    async def _keep_running(self) -> None:
        delay = _FIRST_DELAY_SECONDS
        deaths = 0
        while not self._stopping.is_set():
            self._set(State.STARTING)
            began = time.monotonic()
            try:
                await self.command.prepare()
                process = await self._spawn()
            except (OSError, CommandError) as error:
                self._ending = f"could not be started: {error}"
            else:
                self._ending = await self._attend(process)
            self.pid = None
            if self._stopping.is_set():
                return
            deaths += 1
            if deaths >= _ATTEMPTS_AT_START:
                self._dying.set()
            if not self._was_ready and deaths >= _ATTEMPTS_AT_START:
                self._gave_up = True
                self._set(State.FAILED)
                self._ready.set()
                return
            if time.monotonic() - began > _STABLE_SECONDS:
                delay = _FIRST_DELAY_SECONDS
            self.restarts += 1
            self._set(State.RESTARTING)
            self._tell(f"{self.name} {self._ending}; starting it again in {delay:.1f} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)

    async def _attend(self, process: asyncio.subprocess.Process) -> str:
        """Watches a started process until it has ended, and says how it did."""
        watch = asyncio.create_task(self._watch(), name=f"watch {self.name}")
        exit_ = asyncio.create_task(process.wait(), name=f"wait for {self.name}")
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({exit_, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not exit_.done():
                # A draining service is not unwell: its health is no longer watched.
                watch.cancel()
                self._set(State.STOPPING)
                await self._end(exit_)
            return _how_it_ended(await exit_)
        finally:
            for task in (watch, stop):
                task.cancel()
            await asyncio.gather(watch, stop, return_exceptions=True)

    async def _end(self, exit_: asyncio.Task[int]) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, self.command.stop_signal)
        done, _ = await asyncio.wait({exit_}, timeout=self.command.stop_seconds)
        if not done:
            self._tell(f"{self.name} did not stop within {self.command.stop_seconds:.0f} s: killed")
        # What it started goes with it, in either case.
        self._signal_group(signal.SIGKILL)

    async def _spawn(self) -> asyncio.subprocess.Process:
        command = self.command
        with command.log.open("ab", buffering=0) as log:
            process = await asyncio.create_subprocess_exec(
                *leashed(command.arguments, orphan_signal=command.orphan_signal, user=command.user),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=command.directory,
                env={**os.environ, **command.environment},
                # Ctrl-C is for the supervisor, which stops everything in order.
                start_new_session=True,
            )
        self.pid = process.pid
        self._changed()
        return process

    async def _watch(self) -> None:
        """Follows the process's health from start to end, and bounds its log."""
        while True:
            well = await self.command.is_ready()
            if well and self.state is not State.READY:
                self._was_ready = True
                self._set(State.READY)
                self._ready.set()
            elif not well and self.state is State.READY:
                self._set(State.UNWELL)
            self._bound_log()
            await asyncio.sleep(_WATCH_SECONDS if self._was_ready and well else _POLL_SECONDS)

    def _bound_log(self) -> None:
        # Copied and cut, not renamed: the process holds the file open, for appending.
        with contextlib.suppress(OSError):
            if self.command.log.stat().st_size > _LOG_BYTES:
                previous = self.command.log.with_name(f"{self.command.log.name}.1")
                previous.write_bytes(self.command.log.read_bytes())
                os.truncate(self.command.log, 0)

    def _signal_group(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _set(self, state: State) -> None:
        if self.state is not state:
            self.state = state
            self._changed()

    def _log_end(self, lines: int = 12) -> str:
        try:
            end = self.command.log.read_text(errors="replace").splitlines()[-lines:]
        except OSError:
            end = []
        if not end:
            return f"Its log, {self.command.log}, is empty."
        return f"The end of its log, {self.command.log}:\n" + "\n".join(f"  {line}" for line in end)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exited with {code}"
    return f"was ended by {signal.Signals(-code).name}"
