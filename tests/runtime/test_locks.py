"""Locks by key."""

import asyncio
import gc

from services.runtime.locks import KeyedLocks


async def test_who_shares_a_key_waits() -> None:
    """One at a time under a key that several share, in whatever order they name theirs; others wait for nobody."""
    locks = KeyedLocks()
    held, most, done = 0, 0, 0

    async def work(*keys: str) -> None:
        nonlocal held, most, done
        async with locks.alone(*keys):
            held += 1
            most = max(most, held)
            await asyncio.sleep(0)
            held -= 1
            done += 1

    async with asyncio.timeout(5):
        await asyncio.gather(work("a", "b"), work("b", "a"), work("b"), work("c", "b", "c"), work("b", "a", "c"))
        assert (most, done) == (1, 5)
        async with locks.alone("a"):
            await work("b")
            await work()
        assert done == 7


async def test_nothing_is_kept() -> None:
    """A key that nobody holds any more takes no memory."""
    locks = KeyedLocks()
    for number in range(1000):
        async with locks.alone(f"k{number}", "shared"):
            pass
    gc.collect()
    assert len(locks._locks) == 0


async def test_a_failure_lets_go() -> None:
    """What fails inside, or is cancelled while it waits, leaves no lock behind."""
    locks = KeyedLocks()
    async with locks.alone("a"):
        waiting = asyncio.create_task(locks.alone("b", "a").__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(5), locks.alone("a", "b"):
        pass
