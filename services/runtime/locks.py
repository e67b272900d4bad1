"""Changes of one document within this process follow each other, instead of losing races to each other.

Between processes the store's ETags decide, and who loses reads again; that costs a call each time, and many at once on
one document could keep losing.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import WeakValueDictionary


class KeyedLocks:
    """A lock for each key, as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        """There are none yet."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def alone(self, *keys: str) -> AsyncIterator[None]:
        """Hold the locks of these keys, whatever their order: taken in one order they never wait for each other."""
        if len(keys) == 1:
            async with self._lock(keys[0]):
                yield
            return
        async with AsyncExitStack() as stack:
            for key in sorted(set(keys)):
                await stack.enter_async_context(self._lock(key))
            yield

    def _lock(self, key: str) -> asyncio.Lock:
        return self._locks.setdefault(key, asyncio.Lock())
