"""Fixtures: the probe service, and an event loop that must not be blocked."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.runtime.serving import Served, serving

# A full garbage collection in a process that has collected a thousand tests takes some 0.2 s.
_BLOCKED_SECONDS = 0.5
_SCHEDULER = Path("/proc/thread-self/schedstat")
"""On Linux: nanoseconds on a processor, and waiting for one."""


def _waited_seconds() -> float:
    """How long this thread has waited for a processor, which is the machine's fault and not the code's."""
    try:
        return int(_SCHEDULER.read_bytes().split()[1]) / 1e9
    except OSError:
        return 0.0


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collect the callbacks that hold an event loop for too long, by computing or by a call that blocks."""
    run = asyncio.Handle._run
    told: list[str] = []

    def timed(handle: asyncio.Handle) -> None:
        waited, started = _waited_seconds(), time.perf_counter()
        run(handle)
        seconds = time.perf_counter() - started
        if seconds > _BLOCKED_SECONDS and (held := seconds - (_waited_seconds() - waited)) > _BLOCKED_SECONDS:
            told.append(f"{handle!r} for {held:.3f} s")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed)
        yield told


@pytest.fixture
async def unblocked() -> AsyncIterator[None]:
    """Fail a test in which a callback holds the event loop."""
    with watched() as told:
        yield
    assert not told, "the event loop was blocked"


@pytest.fixture
async def served(unblocked: None) -> AsyncIterator[Served]:
    """The probe service, on a loop that must not be blocked."""
    del unblocked
    async with serving() as running:
        yield running
