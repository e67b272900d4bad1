"""The outbox under kill -9, lost answers, stalls and take-overs."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest

from gaggle.runtime.state.v1 import document_pb2
from services.runtime import outbox as outbox_module
from services.runtime.errors import ConflictError, UnavailableError
from services.runtime.outbox import Number, slot_key
from services.runtime.state import CommitFailedError, Put
from tests.runtime.faults import Fault, Process, World, change_row
from tests.runtime.memory import settled


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small numbers, so that a few commits cross every border; the timers' work is called for by the tests."""
    monkeypatch.setattr(outbox_module, "BLOCK", 3)
    monkeypatch.setattr(outbox_module, "_CHUNK", 2)
    monkeypatch.setattr(outbox_module, "_BACKOFF_SECONDS", (0.0005, 0.001))
    monkeypatch.setattr(outbox_module, "_RENEW_SECONDS", 1000.0)
    monkeypatch.setattr(outbox_module, "_SCAN_SECONDS", 1000.0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """An empty store."""
    made = World()
    yield made
    await made.close()


def _first(what: str, fault: Fault) -> Callable[[int, str], Fault]:
    """Make the first operation of that name fail."""
    left = [fault]
    return lambda _at, name: left.pop() if name == what and left else Fault.NONE


async def _life(process: Process) -> None:
    """Everything that a process does with its outbox, from start to stop."""
    await process.start()
    await process.change("a1", key="a", events=2, clean_up=True)
    await process.change("a2", key="a")
    await process.renew()
    await asyncio.gather(process.change("b1", key="b"), process.change("c1", key="c", events=2))
    await process.change("a3", key="a", events=2)
    await process.idle()
    await process.renew()
    await process.change("a4", key="a")
    await process.outbox.stop()


async def _take_over(process: Process) -> None:
    await process.start()
    for _ in range(3):
        process.world.expire()
        await process.scan()
    await process.change("z1", key="z")
    await process.idle()


async def test_killed_at_every_step() -> None:
    """Wherever a process is killed, another publishes each committed change, in order, and nothing else."""
    step, walked = 0, []
    while True:
        world = World()
        victim = await world.killed("one", _life, step)
        if victim is None:
            break
        walked.append(victim.link.steps[-1] if victim.link.steps else "")
        heir = world.process("two")
        await heir.start()
        await world.finish(heir)
        world.check(f"killed after step {step}, {walked[-1]!r}")
        assert world.first_told("a") == sorted(world.first_told("a")), f"killed after step {step}, {walked[-1]!r}"
        await world.close()
        step += 1
    await world.close()
    assert {"after commit outbox-slot:0", "after commit outbox:0:1:0", "after publish a1.1"} <= set(walked)


async def test_killed_at_every_step_and_back_under_its_name() -> None:
    """Wherever a process is killed, it takes its slot again at once and tells what it had left, no lease waited for."""
    step = 0
    while True:
        world = World()
        victim = await world.killed("one", _life, step)
        if victim is None:
            break
        again = world.process("one")
        await again.start()
        await again.scan()
        assert world.others_ranges(again) == [], f"killed after step {step}"
        await again.idle()
        world.check(f"killed after step {step}")
        await world.close()
        step += 1
    await world.close()
    assert step > 40


async def test_killed_at_every_step_of_a_take_over() -> None:
    """Wherever the one who takes over is killed, a third finishes: nothing is lost, nothing made up."""
    step = 0
    while True:
        world = World()
        world.broker.away = True
        first = world.process("one")
        await first.start()
        for name in ("a1", "a2", "a3", "a4"):
            await first.change(name, key="a", clean_up=True)
        number = await first.outbox.reserve()
        await first.kill()
        world.broker.away = False
        second = await world.killed("two", _take_over, step)
        third = world.process("three")
        await third.start()
        await world.finish(third)
        world.check(f"the second was killed after step {step}")
        assert world.first_told("a") == ["a1.1", "a2.1", "a3.1", "a4.1"]
        with pytest.raises(CommitFailedError):
            await world.state.commit([Put(number.key, b"x", create=True), Put("change:late", b"x")])
        await world.close()
        if second is None:
            break
        step += 1
    assert step > 20


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST, Fault.LATE], ids=lambda fault: fault.value)
async def test_a_fault_at_every_operation(fault: Fault) -> None:
    """One process gets over any single fault: what it acknowledged is told, what it refused never comes to be."""
    number = 0
    while True:
        world = World()
        process = world.process("one")
        process.link.fault = lambda at, _what, number=number: fault if at == number else Fault.NONE  # type: ignore[misc]
        assert await process.lives_through(_life)
        operations = process.link.operations
        if number >= len(operations):
            await world.close()
            break
        again = world.process("one")
        await again.start()
        await world.finish(again)
        await world.land()
        world.check(f"{fault.value}: operation {number}, {operations[number]!r}")
        await world.close()
        number += 1
    assert number > 20


async def test_a_lost_answer_is_a_success(world: World) -> None:
    """A commit whose answer was lost is found out to have happened: the caller hears so, and the event goes out."""
    process = world.process("one")
    await process.start()
    process.link.fault = _first("commit outbox:0:1:0", Fault.LOST)
    await process.change("a1")
    assert world.acknowledged == {"a1"}
    await process.idle()
    world.check()


async def test_a_late_transaction_after_a_lost_answer(world: World) -> None:
    """A transaction that comes to the store after its caller was refused takes no effect."""
    process = world.process("one")
    await process.start()
    process.link.fault = _first("commit outbox:0:1:0", Fault.LATE)
    await process.change("a1")
    assert world.refused == {"a1"}
    assert process.link.late
    assert await world.land() == 0
    world.check()
    assert world.committed() == set()


async def test_a_stalled_owner_loses(world: World) -> None:
    """What an owner wrote before a stall and sends after the take-over rolls back, and its caller gets CONTENTION."""
    owner = world.process("one")
    await owner.start()
    await owner.change("a1")
    gate, waiting = asyncio.Event(), asyncio.Event()
    commit = world.state.commit

    async def stalled(operations: object) -> None:
        waiting.set()
        await gate.wait()
        await commit(operations)  # type: ignore[arg-type]

    owner.link.state = type("Stalled", (), {"commit": staticmethod(stalled), "get": world.state.get})()
    row = change_row("late", "k")
    call = owner.begin(owner.outbox.commit([Put("change:late", b"x")], row))  # type: ignore[arg-type]
    await waiting.wait()
    heir = world.process("two")
    await heir.start()
    await world.finish(heir)
    gate.set()
    with pytest.raises(ConflictError):
        await call
    assert world.committed() == {"a1"}
    owner.link.state = world.state
    await owner.renew()
    await owner.renew()
    await owner.change("a2")
    assert "a2" in world.acknowledged
    await owner.idle()
    world.check()


async def test_a_stalled_owner_goes_on_at_once(world: World) -> None:
    """One refused commit is enough for an owner to see that its slot is gone: the next one succeeds."""
    owner = world.process("one")
    await owner.start()
    heir = world.process("two")
    await heir.start()
    await world.finish(heir)
    await owner.change("a1")
    await owner.change("a2")
    assert (world.refused, world.acknowledged) == ({"a1"}, {"a2"})


@pytest.mark.parametrize("lands", [True, False], ids=["it happened", "it did not happen"])
async def test_a_cancelled_commit(world: World, *, lands: bool) -> None:
    """A commit cancelled in flight is told if it happened, and never happens if not; the process needs no other."""
    process = world.process("one")
    await process.start()
    reached, forever = asyncio.Event(), asyncio.Event()
    commit = world.state.commit

    async def hanging(operations: list[Put]) -> None:
        if operations[0].key.startswith("outbox:") and len(operations) > 1:
            if lands:
                await commit(operations)
            reached.set()
            await forever.wait()
        await commit(operations)

    world.state.commit = hanging  # type: ignore[assignment, method-assign]
    call = process.begin(process.change("a1"))
    await reached.wait()
    call.cancel()
    await asyncio.wait({call})
    world.state.commit = commit  # type: ignore[method-assign]
    await process.idle()
    world.check()
    assert world.committed() == ({"a1"} if lands else set())
    await process.renew()
    document = world.document(0)
    assert document is not None
    assert document.ranges[0].low == 1, "the number is decided"


async def test_a_store_that_cannot_tell(world: World) -> None:
    """While the store answers nothing the caller hears UNAVAILABLE; once it answers, the change is told after all."""
    process = world.process("one")
    await process.start()
    away = True

    def fault(_at: int, what: str) -> Fault:
        if not away:
            return Fault.NONE
        return Fault.LOST if what == "commit outbox:0:1:0" else Fault.REFUSED

    process.link.fault = fault
    with pytest.raises(UnavailableError):
        await process.outbox.commit([Put("change:a1", b"x")], change_row("a1", "k"))
    assert world.told() == []
    away = False
    await settled(lambda: world.told() == ["a1.1"])
    assert world.committed() == {"a1"}


async def test_order_while_the_broker_is_away(world: World) -> None:
    """A backlog drains in each entity's order once the broker is back, even the part that memory did not hold."""
    process = world.process("one")
    await process.start()
    world.broker.away = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox_module, "_KEPT_ROWS", 5)
        for n in range(20):
            await asyncio.gather(*(process.change(f"{key}{n:02}", key=key) for key in "abc"))
    assert world.told() == []
    assert sum(row is None for queue in process.outbox._queues.values() for _, row in queue) == 55
    world.broker.away = False
    await process.idle()
    world.check()
    for key in "abc":
        assert world.first_told(key) == [f"{key}{n:02}.1" for n in range(20)]


async def test_order_of_an_entity_born_in_another_s_row(world: World) -> None:
    """A row that tells of two entities keeps the order of both: the second's next event does not overtake it."""
    process = world.process("one")
    await process.start()
    world.broker.away = True
    world.rows["fork"] = change_row("fork", "source", "child")
    await process.outbox.commit([Put("change:fork", b"x")], world.rows["fork"])
    await process.change("x1", key="child")
    refusals = 20

    def fault(_at: int, what: str) -> Fault:
        nonlocal refusals
        refusals -= what == "publish fork.1"
        return Fault.REFUSED if what == "publish fork.1" and refusals > 0 else Fault.NONE

    # The row's first event meets a broker that is away a little longer.
    process.link.fault = fault
    world.broker.away = False
    await process.idle()
    world.check()
    assert world.first_told("child") == ["fork.2", "x1.1"]
    await process.renew()
    document = world.document(0)
    assert document is not None
    assert document.ranges[0].low == 2, "every part of the row is told"


async def test_one_entity_s_trouble_is_its_own(world: World) -> None:
    """Work that fails as nobody foresaw is tried again, and neither ends the publishing nor delays other entities."""
    process = world.process("one")
    fails = 40

    async def broken(argument: bytes) -> None:
        nonlocal fails
        await asyncio.sleep(0)
        fails -= 1
        if fails > 0:
            raise RuntimeError("nobody foresaw this")
        world.cleaned.append(argument.decode())

    process.outbox._clean_ups = {"page": broken}
    await process.start()
    # More than there are workers.
    for n in range(20):
        await process.change(f"{n:02}", key=str(n), clean_up=True)
    await process.change("other", key="other")
    await process.idle()
    world.check()


async def test_unforeseen_trouble_does_not_end_the_scan(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan for the work of the dead goes on after a fault that nobody foresaw."""
    monkeypatch.setattr(outbox_module, "_SCAN_SECONDS", 0.001)
    process = world.process("one")
    scan, calls = process.outbox._scan, []

    async def failing() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("nobody foresaw this")
        await scan()

    process.outbox._scan = failing  # type: ignore[method-assign]
    await process.start()
    await settled(lambda: len(calls) > 2)


async def test_a_released_slot_leaves_nothing(world: World) -> None:
    """An orderly stop gives the slot back with no range in it, so that nothing is published again."""
    process = world.process("one")
    await process.start()
    await process.change("a1")
    await process.outbox.stop()
    document = world.document(0)
    assert document is not None
    assert (document.holder, list(document.ranges)) == ("", [])
    published = len(world.broker.published)
    heir = world.process("two")
    await heir.start()
    await world.finish(heir)
    assert len(world.broker.published) == published == 1


async def test_a_release_whose_answer_was_lost(world: World) -> None:
    """A stop ends without a fault when the answer to its release is lost."""
    process = world.process("one")
    await process.start()
    process.link.fault = _first("commit outbox-slot:0", Fault.LOST)
    await process.outbox.stop()
    document = world.document(0)
    assert document is not None
    assert document.holder == ""


async def test_low_moves_only_over_what_is_decided(world: World) -> None:
    """`low` stops below the first number that is not published, whatever was published after it."""
    process = world.process("one")
    await process.start()
    stuck = await process.outbox.reserve()
    await process.change("a1")
    await process.idle()
    await process.renew()
    document = world.document(0)
    assert document is not None
    assert document.ranges[0].low == stuck.number == 0
    await process.outbox.commit_reserved(stuck, change_row("a0", "k"), [])
    await process.idle()
    await process.renew()
    document = world.document(0)
    assert document is not None
    assert document.ranges[0].low == 2


async def test_every_row_lies_in_a_listed_range(world: World) -> None:
    """At no time is there a row at a number that its slot's document does not list."""
    commit = world.state.commit

    async def checked(operations: list[Put]) -> None:
        await commit(operations)
        documents = world.documents()
        for one in operations:
            if one.key.startswith("outbox:") and len(operations) > 1:
                slot, epoch, number = (int(part) for part in one.key.split(":")[1:])
                ranges = documents[slot].ranges
                assert any(at.epoch == epoch and at.low <= number < at.high for at in ranges), one.key

    world.state.commit = checked  # type: ignore[assignment, method-assign]
    process = world.process("one")
    await process.start()
    for n in range(5):
        await asyncio.gather(*(process.change(f"{key}{n}", key=key) for key in "abcd"))
        await process.renew()
    await process.idle()
    world.check()
    assert len(world.acknowledged) == 20


async def test_slots_are_not_shared(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many processes start at once, each gets a slot of its own, or is told that there is none."""
    monkeypatch.setattr(outbox_module, "SLOTS", 4)
    processes = [world.process(f"p{n}") for n in range(6)]
    results = await asyncio.gather(*(one.outbox._hold() for one in processes), return_exceptions=True)
    assert sum(isinstance(one, UnavailableError) for one in results) == 2
    assert sum(one is None for one in results) == 4
    world.check_holders()
    held = [one.outbox._tenure for one in processes]
    assert sorted(one.slot for one in held if one is not None) == [0, 1, 2, 3]


async def test_a_name_that_comes_back(world: World) -> None:
    """A process that comes back under its name has the slot it had, in a new epoch, though the lease still runs."""
    first = world.process("one")
    other = world.process("two")
    await other.start()
    await first.start()
    world.broker.away = True
    await first.change("a1")
    assert first.outbox._tenure is not None
    slot, epoch = first.outbox._tenure.slot, first.outbox._tenure.epoch
    await first.kill()
    world.broker.away = False
    again = world.process("one")
    await again.start()
    assert again.outbox._tenure is not None
    assert (again.outbox._tenure.slot, again.outbox._tenure.epoch) == (slot, epoch + 1)
    await settled(lambda: world.told() == ["a1.1"])


async def test_a_running_owner_is_left_alone(world: World) -> None:
    """A slot whose lease runs is neither taken nor cleared, and its commits go on."""
    owner, other = world.process("one"), world.process("two")
    await owner.start()
    await other.start()
    number = await owner.outbox.reserve()
    await other.scan()
    await other.scan()
    await owner.outbox.commit_reserved(number, change_row("a1", "k"), [Put("change:a1", b"x")])
    document = world.document(number.slot)
    assert document is not None
    assert (document.holder, document.epoch) == ("one", number.epoch)


async def test_rows_can_be_read_again(world: World) -> None:
    """A row stays after it was published, for republishing; a tombstone reads as no row."""
    process = world.process("one")
    await process.start()
    row = change_row("a1", "k", "k")
    number = await process.outbox.commit([], row)
    await process.idle()
    assert await process.outbox.row(number) == row
    assert await process.outbox.publish_row(row) == 2
    assert [data for _, data in world.broker.published] == [b"a1.1", b"a1.2"] * 2
    gone = Number(number.slot, number.epoch, 2)
    assert not await process.outbox._settle(gone)
    assert await process.outbox.row(gone) is None


async def test_numbers_are_not_used_twice(world: World) -> None:
    """A slot document written by hand with a lower `high` than is in use never lets a number be used twice."""
    process = world.process("one")
    await process.start()
    numbers = {await process.outbox.reserve() for _ in range(10)}
    assert len(numbers) == 10
    document = world.document(0)
    assert document is not None
    assert document.ranges[0].high >= 10


class Schedule:
    """Three processes under random kills, stalls, lost answers and an unsteady broker."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.rate = self.random.choice((0.0, 0.05, 0.2))
        self.alive: dict[str, Process] = {}
        self.count = 0

    def fault(self, _at: int, _what: str) -> Fault:
        """Draw a fault for an operation."""
        if self.random.random() >= self.rate:
            return Fault.NONE
        return self.random.choice((Fault.REFUSED, Fault.LOST, Fault.LATE))

    async def start(self, name: str) -> None:
        """Start a process, perhaps one of before."""
        process = self.alive[name] = self.world.process(name)
        process.link.fault = self.fault
        await process.start()

    async def step(self) -> None:  # noqa: C901 - a table of what may happen
        """Let one thing happen."""
        name = self.random.choice(("one", "two", "three"))
        process = self.alive.get(name)
        if process is None:
            await self.start(name)
            return
        match self.random.randrange(12):
            case 0:
                await self.alive.pop(name).kill()
            case 1:
                self.world.expire()
            case 2:
                process.begin(process.scan())
            case 3:
                process.begin(process.renew())
            case 4:
                self.world.broker.away = not self.world.broker.away
            case 5:
                await self.world.land()
            case 6:
                for call in list(process.calls)[:1]:
                    call.cancel()
            case _:
                self.count += 1
                process.begin(process.change(f"{self.count:03}", key=self.random.choice("abc"), events=2))
        for _ in range(self.random.randrange(6)):
            await asyncio.sleep(0)

    async def end(self) -> None:
        """Heal everything, keep one process, and let it finish."""
        self.rate = 0.0
        self.world.broker.away = False
        last = next(iter(self.alive.values()), None)
        for process in self.world.processes:
            if process is not last:
                await process.kill()
        if last is None:
            last = self.world.process("last")
            await last.start()
        await settled(lambda: not last.calls)
        await self.world.finish(last)
        await self.world.land()


@pytest.mark.parametrize("seed", range(60))
async def test_any_schedule(world: World, seed: int) -> None:
    """Under any schedule of kills, stalls, take-overs and lost answers, the events are those of what was committed."""
    schedule = Schedule(world, seed)
    for _ in range(60):
        await schedule.step()
        world.check_holders(f"seed {seed}")
    await schedule.end()
    world.check(f"seed {seed}")
    assert world.committed(), "a schedule that commits nothing proves nothing"


async def test_a_tombstone_is_nobody_s_row(world: World) -> None:
    """The number of a tombstone is never published, whoever finds it."""
    process = world.process("one")
    await process.start()
    tombstone = document_pb2.OutboxRow(tombstone=True).SerializeToString()
    number = await process.outbox.reserve()
    await world.state.commit([Put(number.key, tombstone, create=True)])
    with pytest.raises(ConflictError):
        await process.outbox.commit_reserved(number, change_row("a1", "k"), [Put("change:a1", b"x")])
    await process.idle()
    assert world.told() == []
    assert slot_key(0) in world.state.items
