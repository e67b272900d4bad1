"""Hints: that something has changed, to whoever in the mesh's other processes waits for it.

Whoever waits reads what it waits for; hints only wake it. Those of this process are direct, those of other replicas
come by a topic that every process has a consumer of its own for. One that is lost costs the time until the next look.
"""

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

from services.runtime.callbacks import Outcome, TopicEvent
from services.runtime.errors import UnavailableError
from services.runtime.ids import new_id
from services.runtime.sidecar import Sidecar

_GATHER_SECONDS = 0.01
_ANNOUNCE_SECONDS = 5.0


class Hints:
    """Wakes who waits for a key, here and in other replicas.

    A process in which somebody waits says so on the topic; only while one has lately said so do the others send hints.
    A mesh in which nobody waits elsewhere pays nothing for it.
    """

    def __init__(self, sidecar: Sidecar, pubsub: str, topic: str) -> None:
        """Hints travel on `topic` of the fan-out component."""
        self._sidecar = sidecar
        self._pubsub = pubsub
        self._topic = topic
        self._process = new_id()
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._unsent: set[str] = set()
        self._news = asyncio.Event()
        self._watched_until = 0.0

    def changed(self, key: str) -> None:
        """Wake all who wait for it, everywhere."""
        self._wake(key)
        self.tell(key)

    def tell(self, key: str) -> None:
        """Wake those in other processes."""
        if time.monotonic() < self._watched_until:
            self._unsent.add(key)
            self._news.set()

    def _wake(self, key: str) -> None:
        for event in self._waiting.get(key, ()):
            event.set()

    @contextlib.contextmanager
    def listening(self, key: str) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever what the key names may have changed."""
        event = asyncio.Event()
        if not self._waiting:
            self._news.set()
        self._waiting[key].add(event)
        try:
            yield event
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]

    async def send(self) -> None:
        """Send what has gathered in ten milliseconds, and that somebody waits here; run in the background."""
        announced_at = float("-inf")
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ANNOUNCE_SECONDS):
                    await self._news.wait()
                    await asyncio.sleep(_GATHER_SECONDS)
            self._news.clear()
            keys, self._unsent = self._unsent, set()
            watching = bool(self._waiting) and time.monotonic() - announced_at >= _ANNOUNCE_SECONDS / 2
            if not keys and not watching:
                continue
            hint = {"process": self._process, "watching": watching, "changed": sorted(keys)}
            with contextlib.suppress(UnavailableError):
                await self._sidecar.publish(self._pubsub, self._topic, json.dumps(hint).encode())
                announced_at = time.monotonic() if watching else announced_at

    async def receive(self, events: Sequence[TopicEvent]) -> list[Outcome]:
        """Take the hints of all replicas, this one's own included."""
        for event in events:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                hint = json.loads(event.data)
                if hint["process"] == self._process:
                    continue
                if hint["watching"]:
                    self._watched_until = time.monotonic() + 3 * _ANNOUNCE_SECONDS
                for key in hint["changed"]:
                    self._wake(key)
        return [Outcome.SUCCESS] * len(events)
