"""The outbox: a change and the events that tell of it in one transaction, published by whoever is alive.

Rows cannot be searched for in a key-value store, so they are numbered. A process leases one of 64 slots; a slot's
document lists, for each holder it ever had, the range of numbers that holder may have used and not finished:

    outbox-slot:{slot}                      OutboxSlot: holder, epoch, expiry, ranges {epoch, low, high}
    outbox:{slot}:{epoch}:{number}          OutboxRow: the events, written in the transaction of the change

1. `high` is raised, durably, before a number below it is used. So every row there is lies in a listed range.
2. A row is created only if there is none. Whoever must know that a number will never be used creates a tombstone at
   it, only if there is none: exactly one of row and tombstone can come to be, however late a transaction arrives.
3. `low` passes a number, and a range leaves the list, only when every number below is published or a tombstone.

Hence no row is ever forgotten (1, 3), a commit whose answer was lost is decided for good by trying the tombstone (2),
and a holder that stalled for hours cannot slip a change past the one who took over (2). Clocks only decide how soon
someone takes over, never whether that is safe. Rows stay for seven days, so that events which a broker lost can be
published again; the relay publishes at least once, and consumers know an event by its id.
"""

import asyncio
import contextlib
import contextvars
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.runtime.state.v1 import document_pb2
from services.runtime.errors import ConflictError, GaggleError, UnavailableError
from services.runtime.sidecar import Sidecar
from services.runtime.state import CommitFailedError, Item, Put, Remove, StateStore
from services.runtime.telemetry import Metrics, part

SLOTS = 64
BLOCK = 256
"""Numbers by which `high` is raised: one write of the slot document for so many commits."""

ROW_TTL_SECONDS = 7 * 24 * 3600
_LEASE_SECONDS = 20.0
_RENEW_SECONDS = 5.0
_SCAN_SECONDS = 10.0
_CHUNK = 64
_PUBLISHERS = 16
_KEPT_ROWS = 20_000
_BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

CleanUpFunction = Callable[[bytes], Awaitable[None]]

_log = structlog.get_logger()


def slot_key(slot: int) -> str:
    """Key of a slot's document."""
    return f"outbox-slot:{slot}"


@dataclass(frozen=True, slots=True)
class Number:
    """A number of the outbox, and so the key of a row."""

    slot: int
    epoch: int
    number: int

    @property
    def key(self) -> str:
        """Key of the row."""
        return f"outbox:{self.slot}:{self.epoch}:{self.number}"


@dataclass(slots=True)
class _Tenure:
    """This process's time as the holder of a slot."""

    slot: int
    epoch: int
    low: int = 0
    next: int = 0
    high: int = 0
    unfinished: set[int] = field(default_factory=set)
    raising: asyncio.Lock = field(default_factory=asyncio.Lock)
    lost: bool = False

    def safe_low(self) -> int:
        return min(self.unfinished, default=self.next)


class Outbox:
    """Numbers commits, and publishes what they have to tell."""

    def __init__(
        self,
        state: StateStore,
        sidecar: Sidecar,
        *,
        pubsub: str,
        holder: str,
        metrics: Metrics,
        clean_ups: Mapping[str, CleanUpFunction],
    ) -> None:
        """`holder` names this process; one that comes back under its name takes its slot again at once."""
        self._state = state
        self._sidecar = sidecar
        self._pubsub = pubsub
        self._holder = holder
        self._metrics = metrics
        self._clean_ups = clean_ups
        self._tenure: _Tenure | None = None
        self._acquiring = asyncio.Lock()
        self._queues: dict[str, deque[tuple[Number, document_pb2.OutboxRow | None]]] = defaultdict(deque)
        self._queued = 0
        self._parts: dict[Number, int] = {}
        self._ready: asyncio.Queue[str] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._settling: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Lease a slot and begin to publish, own changes and those of the dead."""
        await self._hold()
        workers = [self._publish_loop() for _ in range(_PUBLISHERS)]
        self._tasks = [asyncio.create_task(work) for work in (*workers, self._renew_loop(), self._scan_loop())]

    async def stop(self, timeout_seconds: float = 3.0) -> None:
        """Publish what is left within the time, and give the slot back."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self._queued or self._settling:  # noqa: ASYNC110 - a deadline bounds it, at the very end
                    await asyncio.sleep(0.01)
        for task in (*self._tasks, *self._settling):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._settling, return_exceptions=True)
        tenure, self._tenure = self._tenure, None
        if tenure is not None and not tenure.lost:
            with contextlib.suppress(GaggleError, CommitFailedError):
                await self._save(tenure, release=True)

    async def commit(self, operations: Sequence[Put | Remove], row: document_pb2.OutboxRow) -> Number:
        """Commit `operations` and what they have to tell, and see that it is told.

        Returns once it is durable. Raises ConflictError if it was, for certain, not committed and never will be;
        UnavailableError or DeadlineError if the store could not be asked, and the effect may have happened.
        """
        number = await self.reserve()
        await self.commit_reserved(number, row, operations)
        return number

    async def commit_reserved(
        self, number: Number, row: document_pb2.OutboxRow, operations: Sequence[Put | Remove]
    ) -> None:
        """Commit under a number taken by `reserve`, which is spent by it. Errors as of `commit`."""
        if not (row.events or row.clean_ups):
            row.quiet = True
        put = Put(number.key, row.SerializeToString(), create=True, ttl_seconds=ROW_TTL_SECONDS)
        try:
            try:
                await self._state.commit((put, *operations))
            except CommitFailedError as failure:
                if not await self._settle(number, failure):
                    self._finish(number)
                    self._metrics.state_conflicts.inc()
                    raise ConflictError("another writer was faster") from failure
        except ConflictError:
            raise
        except BaseException:
            # Cancelled, or the store can't say: the number stays unfinished until somebody knows.
            self._settle_later(number)
            raise
        self._enqueue(number, row)

    async def reserve(self) -> Number:
        """Take the next number; raises `high` first where needed. Raises UnavailableError."""
        while True:
            tenure = self._tenure
            if tenure is None or tenure.lost:
                await self._hold()
                continue
            if tenure.next < tenure.high:
                number = tenure.next
                tenure.next += 1
                tenure.unfinished.add(number)
                self._metrics.outbox_pending.inc()
                return Number(tenure.slot, tenure.epoch, number)
            async with tenure.raising:
                if tenure.next >= tenure.high and not tenure.lost:
                    await self._save(tenure, high=tenure.high + BLOCK)

    async def row(self, number: Number) -> document_pb2.OutboxRow | None:
        """Read a row; None if there is none, or a tombstone."""
        item = await self._state.get(number.key)
        row = None if item is None else document_pb2.OutboxRow.FromString(item.value)
        return None if row is None or row.tombstone else row

    async def publish_row(self, row: document_pb2.OutboxRow, ordering_key: str | None = None) -> int:
        """Publish a row's events now, in order, and give the row's count of them. Raises UnavailableError.

        With `ordering_key`: only those of that key.
        """
        for event in row.events:
            if ordering_key is not None and event.ordering_key != ordering_key:
                continue
            try:
                await self._sidecar.publish(
                    self._pubsub,
                    event.topic,
                    event.payload,
                    {"partitionKey": event.ordering_key},
                    traceparent=event.traceparent,
                )
            except UnavailableError:
                self._metrics.publish_failures.labels(event.topic).inc()
                raise
            self._metrics.published.labels(event.topic).inc()
        return len(row.events)

    # -- deciding whether a commit happened

    async def _settle(self, number: Number, failure: CommitFailedError | None = None) -> bool:
        """Decide for good whether the row of a number exists; make a tombstone if not.

        Raises UnavailableError or DeadlineError if the store cannot tell now.
        """
        tombstone = document_pb2.OutboxRow(tombstone=True).SerializeToString()
        for _ in range(3):
            item = await self._state.get(number.key)
            if item is not None:
                if not document_pb2.OutboxRow.FromString(item.value).tombstone:
                    return True
                await self._see_who_holds(number)
                return False
            with contextlib.suppress(CommitFailedError):
                await self._state.commit([Put(number.key, tombstone, create=True, ttl_seconds=ROW_TTL_SECONDS)])
                return False
        raise (failure.cause if failure and failure.cause else UnavailableError("statestore"))

    async def _see_who_holds(self, number: Number) -> None:
        """Learn at once, and not at the next renewal, that a number was closed because the slot is another's."""
        tenure = self._tenure
        if tenure is not None and (tenure.slot, tenure.epoch) == (number.slot, number.epoch):
            with contextlib.suppress(GaggleError):
                async with tenure.raising:
                    await self._save(tenure)

    def _settle_later(self, number: Number) -> None:
        tenure = self._tenure
        if tenure is None or (tenure.slot, tenure.epoch) != (number.slot, number.epoch):
            return  # The one who took over decides.

        async def settle() -> None:
            for pause in _backoff():
                try:
                    row = await self.row(number) if await self._settle(number) else None
                except GaggleError:
                    await asyncio.sleep(pause)
                    continue
                if row is None:
                    self._finish(number)
                else:
                    self._enqueue(number, row)
                return

        # Not in the caller's context: its deadline has no say here.
        task = asyncio.create_task(settle(), context=contextvars.Context())
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    # -- publishing

    def _enqueue(self, number: Number, row: document_pb2.OutboxRow) -> None:
        keys = list(dict.fromkeys(event.ordering_key for event in row.events))
        if not keys and row.clean_ups:
            keys = [number.key]
        if not keys:
            self._finish(number)
            return
        if len(keys) > 1:
            self._parts[number] = len(keys)
        for key in keys:
            queue = self._queues[key]
            # A broker that is away must not fill the memory: what is beyond the bound is read again in its turn.
            queue.append((number, row if self._queued < _KEPT_ROWS else None))
            self._queued += 1
            if len(queue) == 1:
                self._ready.put_nowait(key)

    async def _publish_loop(self) -> None:
        while True:
            key = await self._ready.get()
            queue = self._queues[key]
            while queue:
                number, row = queue[0]
                await self._tell(number, row, key)
                queue.popleft()
                self._queued -= 1
                left = self._parts.pop(number, 1) - 1
                if left:
                    self._parts[number] = left
                else:
                    self._finish(number)
            del self._queues[key]

    async def _tell(self, number: Number, row: document_pb2.OutboxRow | None, ordering_key: str | None = None) -> None:
        """Publish and clean up until it is done; the order of an entity's events waits for it.

        With `ordering_key`: that key's part of it, the cleaning up being the first one's.
        """
        for pause in _backoff():
            try:
                row = row or await self.row(number)
                if row is not None:
                    await self.publish_row(row, ordering_key)
                    first = ordering_key is None or not row.events or row.events[0].ordering_key == ordering_key
                    if first and row.clean_ups:
                        with part("clean up", traceparent=row.events[0].traceparent if row.events else ""):
                            for work in row.clean_ups:
                                await self._clean_ups[work.kind](work.argument)
            except (GaggleError, CommitFailedError) as error:
                _log.warning("publish_failed", number=number.key, error=str(error))
            except Exception:  # noqa: BLE001 - as the comment says
                # Nothing may end the relay: what comes later for others must still be told.
                _log.exception("publish_failed", number=number.key)
            else:
                return
            await asyncio.sleep(pause)

    def _finish(self, number: Number) -> None:
        tenure = self._tenure
        held = tenure is not None and (tenure.slot, tenure.epoch) == (number.slot, number.epoch)
        if tenure is not None and held and number.number in tenure.unfinished:
            tenure.unfinished.discard(number.number)
            self._metrics.outbox_pending.dec()

    # -- holding a slot

    async def _hold(self) -> None:
        async with self._acquiring:
            if self._tenure is not None and not self._tenure.lost:
                return
            self._tenure = await self._acquire()
            self._metrics.outbox_pending.set(0)
            _log.info("outbox_slot_held", slot=self._tenure.slot, epoch=self._tenure.epoch)

    async def _acquire(self) -> _Tenure:
        found = await self._state.get_many([slot_key(slot) for slot in range(SLOTS)])
        slots = {slot: _read(found.get(slot_key(slot))) for slot in range(SLOTS)}
        # One's own of before the restart first, then those that nobody ever had, then those that ran out.
        order = sorted(slots, key=lambda slot: (slots[slot].holder != self._holder, slots[slot].epoch, slot))
        for slot in order:
            document = slots[slot]
            if document.holder not in ("", self._holder) and not _expired(document):
                continue
            tenure = _Tenure(slot, document.epoch + 1)
            document.holder, document.epoch = self._holder, tenure.epoch
            document.ranges.add(epoch=tenure.epoch, low=0, high=BLOCK)
            with contextlib.suppress(CommitFailedError):
                await self._write(slot, document, found.get(slot_key(slot)))
                tenure.high = BLOCK
                return tenure
        raise UnavailableError("outbox slot")

    async def _save(self, tenure: _Tenure, *, high: int = 0, release: bool = False) -> None:
        """Renew the lease, move `low`, raise `high`. Marks the tenure lost when another holds the slot.

        Raises UnavailableError or DeadlineError.
        """
        for _ in range(10):
            item = await self._state.get(slot_key(tenure.slot))
            document = _read(item)
            if document.epoch != tenure.epoch:
                tenure.lost = True
                return
            own = next((one for one in document.ranges if one.epoch == tenure.epoch), None)
            if own is None:  # Given back, and the answer was lost.
                tenure.lost = True
                return
            own.low, own.high = tenure.safe_low(), max(own.high, high)
            if release:
                document.holder = ""
                own.high = tenure.next
                if own.low >= own.high:
                    document.ranges.remove(own)
            try:
                await self._write(tenure.slot, document, item)
            except CommitFailedError:
                continue  # The one who clears a dead epoch's range writes here too: read again.
            tenure.high = own.high
            return
        raise UnavailableError("statestore")

    async def _write(self, slot: int, document: document_pb2.OutboxSlot, item: Item | None) -> None:
        document.expire_time.FromNanoseconds(time.time_ns() + int(_LEASE_SECONDS * 1e9))
        value = document.SerializeToString()
        etag = item.etag if item else ""
        await self._state.commit([Put(slot_key(slot), value, etag=etag, create=item is None)])

    async def _renew_loop(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            tenure = self._tenure
            try:
                if tenure is None or tenure.lost:
                    await self._hold()
                else:
                    async with tenure.raising:
                        await self._save(tenure)
            except GaggleError as error:
                _log.warning("outbox_lease_not_renewed", error=str(error))
            except Exception:  # noqa: BLE001 - the lease must be renewed whatever happens
                _log.exception("outbox_lease_not_renewed")

    # -- the work of the dead

    async def _scan_loop(self) -> None:
        while True:
            try:
                await self._scan()
            except (GaggleError, CommitFailedError) as error:
                _log.warning("outbox_scan_failed", error=str(error))
            except Exception:  # noqa: BLE001 - as above
                _log.exception("outbox_scan_failed")
            await asyncio.sleep(_SCAN_SECONDS)

    async def _scan(self) -> None:
        found = await self._state.get_many([slot_key(slot) for slot in range(SLOTS)])
        for slot in range(SLOTS):
            item = found.get(slot_key(slot))
            if item is None:
                continue
            document = _read(item)
            own = self._tenure is not None and self._tenure.slot == slot
            if not own and not (document.holder == "" or _expired(document)):
                continue
            left = [one for one in document.ranges if not own or one.epoch != document.epoch]
            if not left:
                continue
            if not own:
                # Raise the epoch, so that the former holder learns of it at its next renewal.
                document.holder, document.epoch = "", document.epoch + 1
                with contextlib.suppress(CommitFailedError):
                    await self._write(slot, document, item)
                    await self._take_over(slot, left)
            else:
                await self._take_over(slot, left)

    async def _take_over(self, slot: int, ranges: Sequence[document_pb2.OutboxRange]) -> None:
        for one in ranges:
            for low in range(one.low, one.high, _CHUNK):
                numbers = [Number(slot, one.epoch, n) for n in range(low, min(low + _CHUNK, one.high))]
                for number, row in await self._decide(numbers):
                    await self._tell(number, row)
            await self._forget(slot, one.epoch)
            _log.info("outbox_range_taken_over", slot=slot, epoch=one.epoch, low=one.low, high=one.high)

    async def _decide(self, numbers: Sequence[Number]) -> list[tuple[Number, document_pb2.OutboxRow]]:
        """Find the rows of these numbers, and make sure that the others never come to be."""
        tombstone = document_pb2.OutboxRow(tombstone=True).SerializeToString()
        while True:
            found = await self._state.get_many([number.key for number in numbers])
            missing = [number.key for number in numbers if number.key not in found]
            if missing:
                try:
                    await self._state.commit(
                        [Put(key, tombstone, create=True, ttl_seconds=ROW_TTL_SECONDS) for key in missing]
                    )
                except CommitFailedError:
                    continue  # One of them is there after all: read again.
            rows = [
                (number, document_pb2.OutboxRow.FromString(found[number.key].value))
                for number in numbers
                if number.key in found
            ]
            return [(number, row) for number, row in rows if not row.tombstone]

    async def _forget(self, slot: int, epoch: int) -> None:
        for _ in range(10):
            item = await self._state.get(slot_key(slot))
            document = _read(item)
            kept = [one for one in document.ranges if one.epoch != epoch]
            if len(kept) == len(document.ranges):
                return
            del document.ranges[:]
            document.ranges.extend(kept)
            value = document.SerializeToString()
            with contextlib.suppress(CommitFailedError):
                await self._state.commit([Put(slot_key(slot), value, etag=item.etag if item else "")])
                return


def _read(item: Item | None) -> document_pb2.OutboxSlot:
    return document_pb2.OutboxSlot() if item is None else document_pb2.OutboxSlot.FromString(item.value)


def _expired(document: document_pb2.OutboxSlot) -> bool:
    now = Timestamp()
    now.GetCurrentTime()
    return bool(document.expire_time.ToNanoseconds() < now.ToNanoseconds())


def _backoff() -> "_Backoff":
    return _Backoff()


class _Backoff:
    """Pauses that grow to two seconds and then stay."""

    def __init__(self) -> None:
        self._step = -1

    def __iter__(self) -> "_Backoff":
        return self

    def __next__(self) -> float:
        self._step = min(self._step + 1, len(_BACKOFF_SECONDS) - 1)
        return _BACKOFF_SECONDS[self._step]
