"""The end of the log, as its watchers wait for it."""

import asyncio
import contextlib

from services.audit.store import AuditStore
from services.runtime.errors import UnavailableError
from services.runtime.hints import Hints

_KEY = "log"
_LINGER_SECONDS = 5.0
"""A watcher that reads what it was woken for is back in less."""


class LogTail:
    """Wakes watchers when the log has grown: at once if this process wrote, else by its hint or at the next poll.

    Watchers hold no queue. Each reads on from its own position when it is ready for more, so that a slow client costs
    one page of memory and nobody else's time.
    """

    def __init__(self, store: AuditStore, hints: Hints, *, poll_seconds: float) -> None:
        """`poll_seconds`: how soon another process's events are noticed whose hint was lost."""
        self._store = store
        self._hints = hints
        self._poll = poll_seconds
        self._head = 0
        self._watchers = 0
        self._watched = asyncio.Event()
        self._left_at = 0.0
        self._grown = asyncio.Event()
        self._closed = False

    def logged(self, head: int) -> None:
        """Tell that this process has made the log reach to `head`."""
        self._reached(head)
        self._hints.tell(_KEY)

    def _reached(self, head: int) -> None:
        if head > self._head:
            self._head = head
            self._grown.set()
            self._grown = asyncio.Event()

    async def wait_beyond(self, position: int, timeout_seconds: float) -> bool:
        """Wait until the log reaches further than `position`; False if it did not in time.

        Raises UnavailableError once the process stops: a stream would go on for as long as its client likes.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        self._watchers += 1
        self._watched.set()
        try:
            while self._head <= position:
                if self._closed:
                    raise UnavailableError("this replica of the log", retry_after_seconds=0.1)
                left = deadline - loop.time()
                if left <= 0:
                    return False
                try:
                    await asyncio.wait_for(self._grown.wait(), left)
                except TimeoutError:
                    return self._head > position
            return True
        finally:
            self._watchers -= 1
            self._left_at = loop.time()

    async def close(self) -> None:
        """Let go of everyone who waits."""
        self._closed = True
        self._grown.set()

    async def run(self) -> None:
        """Look for what other processes logged while someone watches, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._watched.wait()
            with self._hints.listening(_KEY) as hinted:
                while self._watchers or loop.time() - self._left_at < _LINGER_SECONDS:
                    hinted.clear()
                    self._reached(await self._store.head())
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(self._poll):
                            await hinted.wait()
                self._watched.clear()
