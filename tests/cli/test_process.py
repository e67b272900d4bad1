"""One supervised process."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from cli.errors import CommandError
from cli.mesh.process import Command, Process, State
from tests.conditions import eventually

_WAITS = "import pathlib, signal, sys; pathlib.Path(sys.argv[1]).touch(); signal.pause()"
_DEAF = """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
while True:
    signal.pause()
"""
_DIES = "print('no database here'); raise SystemExit(3)"


class _Supervised:
    """A process that is ready once its program has touched a file, and what was said of it."""

    def __init__(self, folder: Path, program: str, *, stop_seconds: float = 10) -> None:
        self.sign = folder / "ready"
        self.said: list[str] = []
        self.process = Process(
            Command(
                name="subject",
                arguments=[sys.executable, "-c", program, str(self.sign)],
                is_ready=self._is_ready,
                log=folder / "subject.log",
                stop_seconds=stop_seconds,
            ),
            tell=self.said.append,
            changed=lambda: None,
        )

    async def _is_ready(self) -> bool:
        return self.sign.exists()


@pytest.fixture
async def started() -> AsyncIterator[list[Process]]:
    """Processes put here are stopped when the test ends."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()
        await process.stop()


async def test_a_process_that_dies_is_started_again_and_that_is_said(tmp_path: Path, started: list[Process]) -> None:
    """A killed process is back under another id, and the person at the terminal is told of it."""
    subject = _Supervised(tmp_path, _WAITS)
    started.append(subject.process)
    subject.process.start()
    await subject.process.wait_ready(10)
    first = subject.process.pid
    assert first is not None

    subject.sign.unlink()
    os.kill(first, signal.SIGKILL)

    async def is_back() -> bool:
        return subject.process.state is State.READY and subject.process.pid not in {None, first}

    await eventually(is_back, within=10, what="the process back")
    assert subject.process.restarts == 1
    assert subject.said == ["subject was ended by SIGKILL; starting it again in 0.2 s"]


async def test_one_that_never_starts_is_given_up_with_its_last_words(tmp_path: Path, started: list[Process]) -> None:
    """Starting the mesh fails with the reason, and does not try for ever."""
    subject = _Supervised(tmp_path, _DIES)
    started.append(subject.process)
    subject.process.start()

    with pytest.raises(CommandError, match=r"exited with 3(.|\n)*no database here"):
        await subject.process.wait_ready(20)

    assert subject.process.state is State.FAILED


async def test_one_that_is_not_ready_in_time_is_told(tmp_path: Path, started: list[Process]) -> None:
    """A process that runs but never answers does not hold the start for ever."""
    subject = _Supervised(tmp_path / "missing", _WAITS)
    subject.process.command.log.parent.mkdir()
    subject.sign = tmp_path / "never"
    started.append(subject.process)
    subject.process.start()

    with pytest.raises(CommandError, match="not ready after 0 s"):
        await subject.process.wait_ready(0.3)


async def test_stopping_ends_it_and_it_stays_ended(tmp_path: Path) -> None:
    """A stopped process is gone when `stop` returns, and is not started again."""
    subject = _Supervised(tmp_path, _WAITS)
    subject.process.start()
    await subject.process.wait_ready(10)
    pid = subject.process.pid
    assert pid is not None

    await subject.process.stop()

    assert not psutil.pid_exists(pid)
    assert (subject.process.state, subject.process.pid, subject.said) == (State.STOPPED, None, [])


async def test_one_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    """Ctrl-C leaves nothing behind, not even a process that ignores it."""
    subject = _Supervised(tmp_path, _DEAF, stop_seconds=0.2)
    subject.process.start()
    await subject.process.wait_ready(10)
    pid = subject.process.pid
    assert pid is not None

    await subject.process.stop()

    assert not psutil.pid_exists(pid)
    assert subject.said == ["subject did not stop within 0 s: killed"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
async def test_a_killed_supervisor_takes_its_processes_along(tmp_path: Path) -> None:
    """`kill -9` of the supervisor leaves no process that nobody supervises."""
    sign = tmp_path / "ready"
    arguments = [sys.executable, "-c", _DEAF, str(sign)]
    supervisor = f"""
import asyncio, pathlib
from cli.mesh.process import Command, Process
async def is_ready():
    return pathlib.Path({str(sign)!r}).exists()
async def run():
    command = Command("subject", {arguments!r}, is_ready, pathlib.Path({str(tmp_path / "log")!r}))
    process = Process(command, tell=print, changed=lambda: None)
    process.start()
    await process.wait_ready(10)
    print(process.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(run())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", supervisor, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    child = psutil.Process(int(await parent.stdout.readline()))

    parent.kill()
    await parent.wait()

    async def is_gone() -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
        return True

    await eventually(is_gone, within=5, what="the orphan gone")
