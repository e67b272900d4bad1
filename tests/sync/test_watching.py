"""One client's stream, on a log in memory: every event of its user once, in order, however it comes and goes."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager

import pytest

from gaggle.common.v1 import event_pb2
from services.runtime import topics
from services.runtime.errors import (
    FailedPreconditionError,
    GaggleError,
    InvalidArgumentError,
    TooManyRequestsError,
    UnauthenticatedError,
    UnavailableError,
)
from services.runtime.identity import Caller
from services.runtime.telemetry import Metrics
from services.sync.domain import Entry, Hub, SlowConsumerError
from services.sync.log import Feed
from services.sync.metrics import SyncMetrics
from services.sync.watching import Mark, Step, Watcher
from tests.conditions import eventually
from tests.sync.serving import WITHIN, MemoryLog

_PENDING = 8
_EACH_USER = 3


def _caller(user: str, *, seconds: float = 600) -> Caller:
    return Caller(user, frozenset(), "", "gaggle", 0, time.time() + seconds, "token")


class _Replica:
    """One process: a hub, filled from the log."""

    def __init__(self, log: MemoryLog, *, heartbeat_seconds: float = 60.0) -> None:
        self.log = log
        self.hub = Hub(max_clients=100, max_clients_per_user=_EACH_USER, pending_events=_PENDING)
        self.watcher = Watcher(self.hub, log, SyncMetrics(Metrics().registry), heartbeat_seconds=heartbeat_seconds)
        self.feeding = asyncio.create_task(Feed(log, self.hub).run())

    @contextmanager
    def watching(
        self, user: str, after: int | None = None, entity_types: Sequence[str] = (), *, seconds: float = 600
    ) -> Iterator["_Client"]:
        """Have a client, as long as its token lasts."""
        with self.watcher.watching(_caller(user, seconds=seconds), after, entity_types, way="grpc") as watch:
            yield _Client(watch.steps())

    async def even(self) -> None:
        """Wait until all that is logged was handed out."""

        async def is_even() -> bool:
            return self.hub.position == self.log.head

        await eventually(is_even, within=WITHIN, what="the hub at the end of the log")


class _Client:
    def __init__(self, steps: AsyncIterator[Step]) -> None:
        self.steps = steps

    async def next(self) -> Step:
        async with asyncio.timeout(WITHIN):
            return await anext(self.steps)

    async def begin(self) -> int:
        step = await self.next()
        assert step.told is Mark.CAUGHT_UP
        return step.position

    async def event(self) -> int:
        step = await self.next()
        assert isinstance(step.told, Entry), step
        assert step.position == step.told.position
        return step.position

    async def end(self) -> GaggleError:
        """Read to the end; gives why."""
        try:
            while True:
                await self.next()
        except GaggleError as error:
            return error


@pytest.fixture
async def log() -> MemoryLog:
    """An empty log."""
    return MemoryLog()


@pytest.fixture
async def replica(log: MemoryLog) -> AsyncIterator[_Replica]:
    """A process that stands at the log's end."""
    one = _Replica(log)
    yield one
    one.feeding.cancel()
    await asyncio.gather(one.feeding, return_exceptions=True)


async def test_only_what_comes_and_only_ones_own(log: MemoryLog, replica: _Replica) -> None:
    """Without a position a client gets what comes from now on, of its own user alone."""
    log.add("ann")
    await replica.even()
    with replica.watching("ann") as client:
        assert await client.begin() == log.head
        log.add("bob")
        wanted = log.add("ann")
        assert await client.event() == wanted


async def test_what_was_missed_comes_first(log: MemoryLog, replica: _Replica) -> None:
    """A client that resumes gets what it missed, is told that it has it, and then gets what comes."""
    mine = [log.add("ann") for _ in range(10) if log.add("bob")]
    await replica.even()
    with replica.watching("ann", mine[2]) as client:
        assert [await client.event() for _ in mine[3:]] == mine[3:]
        assert await client.begin() == log.head
        wanted = log.add("ann")
        assert await client.event() == wanted


async def test_more_than_a_mailbox_holds_comes_while_the_past_is_read(log: MemoryLog, replica: _Replica) -> None:
    """However much happens while a client's past is read, it gets all of it once, and is not dropped for it."""
    mine = [log.add("ann") for _ in range(4)]
    await replica.even()
    log.open.clear()
    with replica.watching("ann", mine[0]) as client:
        reading = asyncio.create_task(client.event())
        await asyncio.sleep(0)
        mine += [log.add("ann") for _ in range(_PENDING + 5)]
        await replica.even()
        log.open.set()
        seen = [await reading] + [await client.event() for _ in mine[2:]]
        assert seen == mine[1:]
        assert await client.begin() == log.head


async def test_a_client_cut_again_and_again(log: MemoryLog) -> None:
    """A client that is cut at random and resumes at either of two replicas gets every event once and in order."""
    draw = random.Random(7)
    both = [_Replica(log, heartbeat_seconds=0.1), _Replica(log, heartbeat_seconds=0.1)]
    happening = asyncio.create_task(_happen(log, draw))
    seen: list[int] = []
    stands, cuts = 0, 0
    while not happening.done() or stands < log.head:
        with draw.choice(both).watching("ann", stands) as client, contextlib.suppress(SlowConsumerError):
            for _ in range(draw.randint(1, 9)):
                step = await client.next()
                stands = step.position
                if isinstance(step.told, Entry):
                    seen.append(step.position)
        cuts += 1
    for one in both:
        one.feeding.cancel()
    assert cuts > 10
    assert seen == [one.position for one in log.entries if one.event.user_id == "ann"]


async def _happen(log: MemoryLog, draw: random.Random) -> None:
    for _ in range(300):
        log.add(draw.choice(["ann", "bob"]))
        if draw.random() < 0.3:
            await asyncio.sleep(0)


async def test_a_slow_client_is_dropped_and_resumes(log: MemoryLog, replica: _Replica) -> None:
    """A client that does not keep up is told why, holds no memory, and gets the rest once it resumes."""
    with replica.watching("ann", 0) as client:
        await client.begin()
        mine = [log.add("ann") for _ in range(_PENDING + 1)]
        await replica.even()
        (mailbox,) = replica.hub.of("ann")
        assert not mailbox._waiting
        error = await client.end()
    assert isinstance(error, SlowConsumerError)
    assert error.metadata == {"position": "0"}
    assert error.retry_after_seconds
    with replica.watching("ann", int(error.metadata["position"])) as client:
        assert [await client.event() for _ in mine] == mine


async def test_one_slow_client_is_nobody_elses_trouble(log: MemoryLog, replica: _Replica) -> None:
    """Another client of the same user, and other users, get everything while one is dropped."""
    with replica.watching("ann") as slow, replica.watching("ann") as quick, replica.watching("bob") as other:
        for client in (slow, quick, other):
            await client.begin()
        for _ in range(2 * _PENDING):
            mine, theirs = log.add("ann"), log.add("bob")
            assert (await quick.event(), await other.event()) == (mine, theirs)
        assert isinstance(await slow.end(), SlowConsumerError)


async def test_only_the_kinds_that_were_asked_for(log: MemoryLog, replica: _Replica) -> None:
    """A client that names entity types gets those alone, from the past and from then on."""
    wanted = [log.add("ann", entity_type="notification") for _ in range(5) if log.add("ann")]
    await replica.even()
    with replica.watching("ann", 0, ["notification", "reminder"]) as client:
        assert [await client.event() for _ in wanted] == wanted
        assert await client.begin() == log.head
        log.add("ann")
        position = log.add("ann", entity_type="reminder")
        assert await client.event() == position


async def test_a_silent_stream_says_where_it_stands(log: MemoryLog) -> None:
    """A heartbeat moves the position on, so that a client who resumes need not read what others did."""
    replica = _Replica(log, heartbeat_seconds=0.2)
    with replica.watching("ann") as client:
        await client.begin()
        for _ in range(5):
            log.add("bob")
        await replica.even()
        step = await client.next()
        assert (step.told, step.position) == (Mark.HEARTBEAT, log.head)
    replica.feeding.cancel()


async def test_a_token_that_ends_ends_the_stream(log: MemoryLog, replica: _Replica) -> None:
    """Nothing is told to a token that has run out, silent or not."""
    with replica.watching("ann", seconds=0.3) as client:
        error = await client.end()
    assert isinstance(error, UnauthenticatedError)
    with replica.watching("ann", seconds=0.3) as client:
        await client.begin()

        async def over() -> bool:
            log.add("ann")
            return isinstance(await client.end(), UnauthenticatedError)

        assert await over()


async def test_a_position_ahead_of_this_replica(log: MemoryLog, replica: _Replica) -> None:
    """A client that comes from a replica which was further on waits for this one, and misses nothing."""
    await replica.even()
    replica.feeding.cancel()
    known = [log.add("ann"), log.add("ann")][-1]
    with replica.watching("ann", known) as client:
        assert await client.begin() == known
        replica.feeding = asyncio.create_task(Feed(log, replica.hub).run())
        wanted = log.add("ann")
        assert await client.event() == wanted


async def test_a_position_of_another_log(log: MemoryLog, replica: _Replica) -> None:
    """A position that the log never reached is refused, not waited for."""
    log.add("ann")
    await replica.even()
    with replica.watching("ann", log.head + 1) as client:
        error = await client.end()
    assert isinstance(error, InvalidArgumentError)
    assert set(error.violations) == {"after_position"}


async def test_the_log_is_restored_from_before(log: MemoryLog, replica: _Replica) -> None:
    """When positions no longer mean what they did, every stream ends with a word for it, and new ones work."""
    for _ in range(5):
        log.add("ann")
    await replica.even()
    with replica.watching("ann") as client:
        await client.begin()
        log.restore(2)
        error = await client.end()
    assert set(error.violations) == {"after_position"}
    await replica.even()
    with replica.watching("ann") as client:
        assert await client.begin() == log.head
        wanted = log.add("ann")
        assert await client.event() == wanted


async def test_the_log_is_away(log: MemoryLog, replica: _Replica) -> None:
    """Who resumes while the past can't be read is told UNAVAILABLE; who missed nothing is served."""
    first = log.add("ann")
    last = log.add("ann")
    await replica.even()
    log.failure = UnavailableError("audit")
    with replica.watching("ann", first) as client:
        error = await client.end()
    assert isinstance(error, UnavailableError)
    assert error.retry_after_seconds
    with replica.watching("ann", last) as client:
        assert await client.begin() == last


async def test_an_erased_user_is_let_go(log: MemoryLog, replica: _Replica) -> None:
    """A user's clients hear that the user was erased, and nothing after it."""
    with replica.watching("ann") as client:
        await client.begin()
        erased = log.add("ann", entity_type="user", event_type=topics.USER_ERASED)
        assert await client.event() == erased
        error = await client.end()
    assert isinstance(error, FailedPreconditionError)


async def test_a_flood_is_bounded(log: MemoryLog, replica: _Replica) -> None:
    """A user can't take all the places there are; leaving gives one back."""
    del log
    with replica.watching("ann"), replica.watching("ann"):
        with replica.watching("ann"), pytest.raises(TooManyRequestsError) as caught, replica.watching("ann"):
            pass
        assert caught.value.retry_after_seconds
        with replica.watching("bob"), replica.watching("ann"):
            assert replica.hub.clients == 4
    assert replica.hub.clients == 0
    assert not replica.hub.of("ann")


async def test_leaving_ends_the_stream(log: MemoryLog, replica: _Replica) -> None:
    """A process that stops lets its clients go with a word that sends them elsewhere, and takes no more."""
    del log
    with replica.watching("ann") as client:
        await client.begin()
        replica.hub.close(UnavailableError("this replica"))
        assert isinstance(await client.end(), UnavailableError)
    with pytest.raises(UnavailableError), replica.watching("ann"):
        pass


async def test_the_stream_is_closed_in_order(log: MemoryLog, replica: _Replica) -> None:
    """A stream that its client leaves in the middle of the past leaves nothing behind."""
    for _ in range(10):
        log.add("ann")
    await replica.even()
    with replica.watching("ann", 0) as client:
        async with aclosing(client.steps):  # type: ignore[type-var]
            await client.event()
    assert replica.hub.clients == 0


def test_whole_numbers_are_written_as_such() -> None:
    """What was a whole number where it was published is one in a frame, so that typed clients can read it."""
    event = event_pb2.Event(event_id="e")
    event.data.update({"count": 3, "rate": 0.5, "list": [{"n": 2**53}], "yes": True})
    assert json.loads(Entry(7, event).frame) == {
        "position": "7",
        "event": {"eventId": "e", "data": {"count": 3, "rate": 0.5, "list": [{"n": 2**53}], "yes": True}},
    }
    assert "3.0" not in Entry(7, event).frame
