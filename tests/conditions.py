"""Waiting in tests: for a condition, with a deadline, never for a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

_POLL_SECONDS = 0.05
T = TypeVar("T")


async def eventually(
    check: Callable[[], Awaitable[T | None]], *, within: float, what: str, every: float = _POLL_SECONDS
) -> T:
    """The first true result of `check`.

    Args:
        check: asked again and again.
        within: seconds.
        what: what is waited for, told if it does not come.
        every: seconds between two questions; more where asking takes its share of the machine.
    """
    deadline = time.monotonic() + within
    while True:
        result = await check()
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(every)
