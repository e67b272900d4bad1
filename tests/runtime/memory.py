"""A state store and a broker in memory, with the faults of real ones on demand. For units; the mesh has real ones."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from services.runtime.errors import StateMissingError, UnavailableError
from services.runtime.outbox import CleanUpFunction, Outbox
from services.runtime.state import CommitFailedError, Item, Put, Remove
from services.runtime.telemetry import Metrics


class MemoryState:
    """What `services.runtime.state.StateStore` offers, on a dictionary."""

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.before_commit: Callable[[Sequence[Put | Remove]], None] = lambda _operations: None
        """May raise: the commit does not happen."""

        self.after_commit: Callable[[Sequence[Put | Remove]], None] = lambda _operations: None
        """May raise: the commit has happened, its answer is lost."""

        self.reads = 0
        self._versions = 0

    async def get(self, key: str) -> Item | None:
        self.reads += 1
        await asyncio.sleep(0)
        return self.items.get(key)

    async def get_many(self, keys: Sequence[str], *, confirm: Collection[str] = ()) -> dict[str, Item]:
        del confirm
        self.reads += 1
        await asyncio.sleep(0)
        return {key: self.items[key] for key in keys if key in self.items}

    async def require(self, keys: Sequence[str]) -> dict[str, Item]:
        found = await self.get_many(keys)
        for key in keys:
            if key not in found:
                raise StateMissingError(key)
        return found

    async def commit(self, operations: Iterable[Put | Remove]) -> None:
        planned = list(operations)
        await asyncio.sleep(0)
        self.before_commit(planned)
        before = dict(self.items)
        try:
            for one in planned:
                self._apply(one)
        except CommitFailedError:
            self.items = before
            raise
        self.after_commit(planned)

    def _apply(self, one: Put | Remove) -> None:
        """One after the other, as SQL does: a second write of a key meets the first one's ETag."""
        held = self.items.get(one.key)
        if one.etag and (held is None or held.etag != one.etag):
            raise CommitFailedError(None)
        if isinstance(one, Remove):
            self.items.pop(one.key, None)
            return
        if one.create and held is not None:
            raise CommitFailedError(None)
        if not one.value:
            raise ValueError(f"an empty value for {one.key}")
        self._versions += 1
        self.items[one.key] = Item(one.value, str(self._versions))


class MemoryBroker:
    """What the outbox needs of a sidecar: it keeps what is published, or is away."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.away = False

    async def publish(
        self,
        pubsub: str,
        topic: str,
        data: bytes,
        metadata: Mapping[str, str] | None = None,
        *,
        traceparent: str = "",
    ) -> None:
        del pubsub, metadata, traceparent
        await asyncio.sleep(0)
        if self.away:
            raise UnavailableError("pubsub")
        self.published.append((topic, data))


def make_outbox(
    state: MemoryState,
    broker: MemoryBroker,
    *,
    holder: str = "one",
    clean_ups: Mapping[str, CleanUpFunction] | None = None,
) -> Outbox:
    """Make a real outbox on them."""
    return Outbox(
        state,  # type: ignore[arg-type]
        broker,  # type: ignore[arg-type]
        pubsub="pubsub",
        holder=holder,
        metrics=Metrics(),
        clean_ups=clean_ups if clean_ups is not None else {},
    )


async def settled(condition: Callable[[], bool], *, within: float = 5.0) -> None:
    """Let other tasks run until a condition holds; fails after `within` seconds."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "the condition did not come to hold"
        await asyncio.sleep(0.001)


async def crash(outbox: Outbox) -> None:
    """End an outbox's tasks as a kill would: nothing is flushed, nothing given back."""
    tasks = [*outbox._tasks, *outbox._settling]
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)
