"""Hints between processes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest

from services.runtime.callbacks import Outcome, TopicEvent
from services.runtime.errors import UnavailableError
from services.runtime.hints import Hints
from tests.runtime.memory import settled


class Fanout:
    """A broker whose topic every process has a consumer of its own for."""

    def __init__(self) -> None:
        self.processes: list[Hints] = []
        self.published = 0
        self.away = False

    async def publish(self, _pubsub: str, topic: str, data: bytes, _metadata: Mapping[str, str] | None = None) -> None:
        if self.away:
            raise UnavailableError("pubsub-fanout")
        self.published += 1
        event = TopicEvent(id=str(self.published), topic=topic, type="", data=data, content_type="")
        for one in self.processes:
            assert await one.receive([event]) == [Outcome.SUCCESS]

    @asynccontextmanager
    async def process(self) -> AsyncIterator[Hints]:
        hints = Hints(self, "pubsub-fanout", "hints")  # type: ignore[arg-type]
        self.processes.append(hints)
        sending = asyncio.create_task(hints.send())
        yield hints
        sending.cancel()


@pytest.fixture
async def two() -> AsyncIterator[tuple[Fanout, Hints, Hints]]:
    """Two processes."""
    fanout = Fanout()
    async with fanout.process() as one, fanout.process() as other:
        yield fanout, one, other


async def test_who_waits_elsewhere_is_woken(two: tuple[Fanout, Hints, Hints]) -> None:
    """Whoever waits for a key in another process is woken, and nobody who waits for another key."""
    fanout, one, other = two
    with other.listening("key") as woken, other.listening("else") as left_alone:
        await settled(lambda: fanout.published == 1)
        one.tell("key")
        await asyncio.wait_for(woken.wait(), 5)
        assert not left_alone.is_set()


@pytest.mark.parametrize("tell", [Hints.tell, Hints.changed], ids=["others", "all"])
async def test_own_waiters(two: tuple[Fanout, Hints, Hints], tell: Callable[[Hints, str], None]) -> None:
    """A change wakes those of its own process at once; what is told to others does not."""
    _, one, _ = two
    with one.listening("key") as woken:
        tell(one, "key")
        assert woken.is_set() == (tell is Hints.changed)


async def test_where_nobody_waits_nothing_is_sent(two: tuple[Fanout, Hints, Hints]) -> None:
    """Changes that no other process waits for are not told to the broker."""
    fanout, one, other = two
    for number in range(100):
        one.changed(f"key{number}")
    with other.listening("key"):
        await settled(lambda: fanout.published == 1)  # That somebody waits.
    one.changed("key")
    await settled(lambda: fanout.published == 2)


async def test_a_broker_that_is_away_costs_a_hint(two: tuple[Fanout, Hints, Hints]) -> None:
    """What could not be published is forgotten, and the next hint comes through."""
    fanout, one, other = two
    with other.listening("key") as woken, other.listening("later") as later:
        await settled(lambda: fanout.published == 1)
        fanout.away = True
        one.tell("key")
        await settled(lambda: not one._unsent)
        fanout.away = False
        one.tell("later")
        await asyncio.wait_for(later.wait(), 5)
        assert not woken.is_set()
