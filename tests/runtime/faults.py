"""Processes with an outbox of their own on one state store, whose every step can be their last."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from gaggle.runtime.state.v1 import document_pb2
from services.runtime.errors import ConflictError, DeadlineError, GaggleError, UnavailableError
from services.runtime.outbox import SLOTS, CleanUpFunction, Outbox, slot_key
from services.runtime.state import CommitFailedError, Item, Put, Remove
from tests.runtime.memory import MemoryBroker, MemoryState, make_outbox, settled

_CHANGE = "change:"


class Fault(Enum):
    """What goes wrong with one operation."""

    NONE = "none"
    REFUSED = "refused"
    """It does not happen, and says so as far as it can."""

    LOST = "lost"
    """It happens; the answer never comes."""

    LATE = "late"
    """A transaction that times out here and comes to the store later, when `World.land` is called."""


class Link:
    """One process's way to the store and the broker. Each operation is two steps: before it, and after it."""

    def __init__(self, state: MemoryState, broker: MemoryBroker) -> None:
        self.state = state
        self.broker = broker
        self.steps: list[str] = []
        self.last_step = -1
        """The process is killed when it has made this many steps; -1: it is not."""

        self.dead = asyncio.Event()
        self.fault: Callable[[int, str], Fault] = lambda _number, _what: Fault.NONE
        """Asked for each operation, by its number and name."""

        self.operations: list[str] = []
        self.late: list[Sequence[Put | Remove]] = []

    async def _step(self, what: str) -> None:
        if self.dead.is_set() or len(self.steps) == self.last_step:
            self.dead.set()
            await asyncio.Event().wait()
        self.steps.append(what)

    async def _begin(self, what: str) -> Fault:
        await self._step(f"before {what}")
        self.operations.append(what)
        return self.fault(len(self.operations) - 1, what)

    async def get(self, key: str) -> Item | None:
        if await self._begin(f"get {key}") is not Fault.NONE:
            raise UnavailableError("statestore")
        return await self.state.get(key)

    async def get_many(self, keys: Sequence[str], *, confirm: Collection[str] = ()) -> dict[str, Item]:
        if await self._begin(f"get {keys[0]}...") is not Fault.NONE:
            raise UnavailableError("statestore")
        return await self.state.get_many(keys, confirm=confirm)

    async def commit(self, operations: Iterable[Put | Remove]) -> None:
        planned = list(operations)
        what = f"commit {planned[0].key}"
        fault = await self._begin(what)
        if fault is Fault.REFUSED:
            raise CommitFailedError(UnavailableError("statestore"))
        if fault is Fault.LATE:
            self.late.append(planned)
            raise CommitFailedError(DeadlineError("statestore"))
        await self.state.commit(planned)
        await self._step(f"after {what}")
        if fault is Fault.LOST:
            raise CommitFailedError(UnavailableError("statestore"))

    async def publish(
        self,
        pubsub: str,
        topic: str,
        data: bytes,
        metadata: Mapping[str, str] | None = None,
        *,
        traceparent: str = "",
    ) -> None:
        what = f"publish {data.decode()}"
        fault = await self._begin(what)
        if fault in {Fault.REFUSED, Fault.LATE}:
            raise UnavailableError("pubsub")
        await self.broker.publish(pubsub, topic, data, metadata, traceparent=traceparent)
        await self._step(f"after {what}")
        if fault is Fault.LOST:
            raise UnavailableError("pubsub")


class Process:
    """An outbox and what its callers know."""

    def __init__(self, world: "World", name: str, clean_ups: Mapping[str, CleanUpFunction]) -> None:
        self.world = world
        self.name = name
        self.link = Link(world.state, world.broker)
        self.outbox: Outbox = make_outbox(self.link, self.link, holder=name, clean_ups=clean_ups)  # type: ignore[arg-type]
        self.calls: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start, however often it takes."""
        while True:
            with contextlib.suppress(GaggleError, CommitFailedError):
                await self.outbox.start()
                return

    async def change(self, name: str, *, key: str = "k", events: int = 1, clean_up: bool = False) -> None:
        """Make one change with its events, and keep what its caller was told of it."""
        row = change_row(name, *[key] * events)
        if clean_up:
            row.clean_ups.add(kind="page", argument=name.encode())
        self.world.rows[name] = row
        try:
            await self.outbox.commit([Put(_CHANGE + name, b"x", create=True)], row)
        except ConflictError:
            self.world.refused.add(name)
        except GaggleError:
            pass
        else:
            self.world.acknowledged.add(name)

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a call of this process's, which ends with it."""
        task = asyncio.get_running_loop().create_task(work)
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)
        return task

    async def renew(self) -> None:
        """Do what the renewal does each few seconds."""
        with contextlib.suppress(GaggleError):
            tenure = self.outbox._tenure
            if tenure is None or tenure.lost:
                await self.outbox._hold()
            else:
                async with tenure.raising:
                    await self.outbox._save(tenure)

    async def scan(self) -> None:
        """Do what the scan does each few seconds."""
        with contextlib.suppress(GaggleError, CommitFailedError):
            await self.outbox._scan()

    async def idle(self) -> None:
        """Wait until all that this process has to tell is told."""
        await settled(lambda: not self.outbox._queued and not self.outbox._settling)

    async def kill(self) -> None:
        """End at once: from here on nothing that this process does reaches anything."""
        self.link.dead.set()
        await self.quiet()

    async def quiet(self) -> None:
        """End this process's tasks, and those that begin when these end."""
        while tasks := [*self.calls, *self.outbox._tasks, *self.outbox._settling]:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.outbox._tasks = []
            await asyncio.sleep(0)

    async def lives_through(self, work: Callable[["Process"], Awaitable[None]], *, last_step: int = -1) -> bool:
        """Work, and be killed at a step; False if it was."""
        self.link.last_step = last_step

        async def working() -> None:
            await work(self)

        task = self.begin(working())
        death = asyncio.get_running_loop().create_task(self.link.dead.wait())
        await asyncio.wait({task, death}, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        death.cancel()
        alive = not self.link.dead.is_set()
        if alive:
            assert task.done(), f"stuck after {self.link.steps[-5:]}"
            task.result()
        else:
            await self.kill()
        return alive


class World:
    """One store, one broker, and what is known of the changes made."""

    def __init__(self) -> None:
        self.state = MemoryState()
        self.broker = MemoryBroker()
        self.rows: dict[str, document_pb2.OutboxRow] = {}
        self.acknowledged: set[str] = set()
        self.refused: set[str] = set()
        self.cleaned: list[str] = []
        self.processes: list[Process] = []

    def process(self, name: str) -> Process:
        """Make a process, not yet started."""

        async def clean_up(argument: bytes) -> None:
            await asyncio.sleep(0)
            self.cleaned.append(argument.decode())

        process = Process(self, name, {"page": clean_up})
        self.processes.append(process)
        return process

    async def killed(self, name: str, work: Callable[[Process], Awaitable[None]], last_step: int) -> Process | None:
        """Run a process that is killed at a step; None if it ended before."""
        process = self.process(name)
        return None if await process.lives_through(work, last_step=last_step) else process

    def document(self, slot: int) -> document_pb2.OutboxSlot | None:
        """Read a slot's document."""
        item = self.state.items.get(slot_key(slot))
        return None if item is None else document_pb2.OutboxSlot.FromString(item.value)

    def documents(self) -> dict[int, document_pb2.OutboxSlot]:
        """Read the documents that there are."""
        return {slot: one for slot in range(SLOTS) if (one := self.document(slot)) is not None}

    def expire(self) -> None:
        """Let time pass for every lease."""
        for slot, document in self.documents().items():
            document.expire_time.Clear()
            held = self.state.items[slot_key(slot)]
            self.state.items[slot_key(slot)] = Item(document.SerializeToString(), held.etag)

    async def land(self) -> int:
        """Let the transactions that were late arrive; give the number of those that took effect."""
        landed = 0
        for process in self.processes:
            for planned in process.link.late:
                with contextlib.suppress(CommitFailedError):
                    await self.state.commit(planned)
                    landed += 1
            process.link.late.clear()
        return landed

    def others_ranges(self, process: Process) -> list[tuple[int, int]]:
        """Slot and epoch of every listed range that is not this process's present one."""
        tenure = process.outbox._tenure
        own = None if tenure is None else (tenure.slot, tenure.epoch)
        listed = [(slot, one.epoch) for slot, document in self.documents().items() for one in document.ranges]
        return [one for one in listed if one != own]

    async def finish(self, process: Process) -> None:
        """Have the last process alive do what is left."""
        await process.renew()
        for _ in range(20):
            self.expire()
            await process.scan()
            if not self.others_ranges(process):
                break
        assert not self.others_ranges(process), "ranges are left for ever"
        await process.idle()
        await process.renew()

    def committed(self) -> set[str]:
        """The changes that are there."""
        return {key.removeprefix(_CHANGE) for key in self.state.items if key.startswith(_CHANGE)}

    def told(self) -> list[str]:
        """Ids of the events published, each where it came first."""
        return list(dict.fromkeys(data.decode() for _, data in self.broker.published))

    def check(self, where: str = "") -> None:
        """Hold what was published against what was committed."""
        committed, told = self.committed(), self.told()
        expected = {event.event_id for name in committed for event in self.rows[name].events}
        assert set(told) == expected, f"{where}: published is not what was committed"
        assert self.acknowledged <= committed, f"{where}: a change was acknowledged and is not there"
        assert not self.refused & committed, f"{where}: a change was refused and is there"
        works = {one.argument.decode() for name in committed for one in self.rows[name].clean_ups}
        assert set(self.cleaned) == works, f"{where}: work was left, or done for nothing"
        self.check_holders(where)

    def check_holders(self, where: str = "") -> None:
        """No two processes hold one slot in one epoch."""
        tenures = [one.outbox._tenure for one in self.processes]
        held = Counter((one.slot, one.epoch) for one in tenures if one is not None)
        assert all(count == 1 for count in held.values()), f"{where}: two processes hold one slot in one epoch"

    def first_told(self, key: str) -> list[str]:
        """Event ids of one ordering key, in the order of their first publishing."""
        keys = {event.event_id: event.ordering_key for row in self.rows.values() for event in row.events}
        return [event_id for event_id in self.told() if keys[event_id] == key]

    async def close(self) -> None:
        """End every process."""
        for process in self.processes:
            await process.kill()


def change_row(name: str, *keys: str) -> document_pb2.OutboxRow:
    """Build the row of a change: one event for each ordering key named; its payload is its id."""
    row = document_pb2.OutboxRow()
    for part, key in enumerate(keys, start=1):
        row.events.add(topic="t", event_id=f"{name}.{part}", ordering_key=key, payload=f"{name}.{part}".encode())
    return row
