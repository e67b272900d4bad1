"""Makes good what jobs alone do not promise: state is the truth, and the sweep holds the scheduler to it.

The cron component sets it going in every replica; a lease lets one of them work. Each time it

1. sees whether the scheduler still has the token, a job of the far future. If not, its data were lost, and no job is
   taken for granted any more;
2. reads what may be due, from the oldest bucket that is not settled to the horizon. What is overdue fires in its job's
   stead; what lies ahead gets its job if it has none; an entry whose occurrence is no longer to fire goes, and its job;
3. goes on in its round through all tasks with reminders, a few at a time: one whose task is gone, done or changed is
   brought in line, whatever event or call was lost, and so is what no bucket names.

All of it is bounded: buckets, entries and tasks are read a page at a time, and the round takes up where it was.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from gaggle.reminder.state.v1 import document_pb2
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from services.reminder import domain
from services.reminder.arming import Arming
from services.reminder.domain import Document, Job
from services.reminder.firing import Firing, Outcome, current
from services.reminder.following import Following, known
from services.reminder.index import BUCKET_SECONDS, SHARDS, bucket_of, due_key, put
from services.reminder.metrics import ReminderMetrics
from services.reminder.settings import ReminderSettings
from services.reminder.store import ReminderStore
from services.reminder.tasks import Tasks, read
from services.runtime.errors import GaggleError
from services.runtime.state import CommitFailedError, Item, Put, Remove
from services.runtime.times import timestamp
from services.runtime.users import USER_BUCKETS, users_key

SWEEP_KEY = "sweep"
_TOKEN = "sweep-token"  # noqa: S105 - a job's name
_TOKEN_AHEAD = timedelta(days=3650)
_BUCKETS_AT_ONCE = 16
_TASKS_AT_ONCE = 50
_FIRED_AT_ONCE = 16
_ASKED_AT_ONCE = 4
_USER_DOCUMENTS_AT_ONCE = 32

_log = structlog.get_logger()


@dataclass(slots=True)
class Findings:
    """What one sweep has found."""

    overdue: int = 0
    missing: int = 0
    orphaned: int = 0
    diverged: int = 0
    left: int = 0
    """Overdue ones that could not be fired now."""


@dataclass(slots=True)
class _Page:
    """A document of entries as it was read."""

    key: str
    item: Item
    document: document_pb2.DueBucket
    settled: list[int] = field(default_factory=list)
    """Positions of entries that need not be looked at again."""


class Sweep:
    """One at a time in this process, and by the lease in all of them."""

    def __init__(
        self,
        store: ReminderStore,
        firing: Firing,
        following: Following,
        arming: Arming,
        tasks: Tasks,
        issue: Callable[[str], str],
        settings: ReminderSettings,
        metrics: ReminderMetrics,
        *,
        holder: str,
    ) -> None:
        """`holder` names this process; `issue` gives a token of this service for acting for a user."""
        self._store = store
        self._firing = firing
        self._following = following
        self._arming = arming
        self._tasks = tasks
        self._issue = issue
        self._settings = settings
        self._metrics = metrics
        self._holder = holder
        self._asked = asyncio.Event()
        self._asked.set()
        self._held = False

    async def on_tick(self, _data: bytes) -> None:
        """Take the cron component's word that it is time; the work is done behind it."""
        self._asked.set()

    async def run(self) -> None:
        """Sweep whenever it is time, and once at the start; until cancelled.

        A cron component that is silent is not waited for longer than half the lease.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._settings.sweep_lease_seconds / 2)
            self._asked.clear()
            try:
                findings = await self.once()
            except (GaggleError, CommitFailedError) as error:
                _log.warning("sweep_put_off", error=str(error))
                continue
            if findings is not None and findings != Findings():
                _log.info("swept", **{name: getattr(findings, name) for name in Findings.__slots__})

    async def once(self) -> Findings | None:
        """Sweep; None if another process does. Raises UnavailableError, DeadlineError."""
        document = await self._take_lease()
        if document is None:
            self._held = False
            return None
        if not self._held:
            # What others have seen to since is not known here.
            self._arming.known.clear()
            self._held = True
        findings = Findings()
        await self._see_to_scheduler()
        await self._due(document, findings)
        await self._round(document, findings)
        self._metrics.overdue.set(findings.left)
        for kind in ("overdue", "missing", "orphaned", "diverged"):
            self._metrics.repaired.labels(kind).inc(getattr(findings, kind))
        return findings

    # -- who sweeps

    async def _take_lease(self) -> document_pb2.Sweep | None:
        item = await self._store.state.get(SWEEP_KEY)
        document = document_pb2.Sweep.FromString(item.value) if item else document_pb2.Sweep()
        now = self._store.now()
        other = document.holder not in ("", self._holder)
        # A lease beyond any that is given was taken by a clock that was ahead.
        lease = timedelta(seconds=self._settings.sweep_lease_seconds)
        if other and now < document.expire_time.ToDatetime(UTC) <= now + lease:
            return None
        document.holder = self._holder
        if not document.low_bucket:
            document.low_bucket = bucket_of(now) - 1
        # A clock that was set back leaves what is due before where it had come to.
        document.low_bucket = min(document.low_bucket, bucket_of(now) - 1)
        return document if await self._keep(document, item) else None

    async def _keep(self, document: document_pb2.Sweep, item: Item | None) -> bool:
        """Write where the sweep stands; False if another process was faster."""
        lease = timedelta(seconds=self._settings.sweep_lease_seconds)
        document.expire_time.CopyFrom(timestamp(self._store.now() + lease))
        try:
            await self._store.state.commit([put(SWEEP_KEY, document.SerializeToString(), item)])
        except CommitFailedError as error:
            if error.cause is not None:
                _log.info("sweep_lease_not_kept", error=str(error.cause))
            return False
        return True

    async def _advance(self, document: document_pb2.Sweep) -> bool:
        item = await self._store.state.get(SWEEP_KEY)
        if item is None or document_pb2.Sweep.FromString(item.value).holder != self._holder:
            return False
        return await self._keep(document, item)

    # -- the scheduler's memory

    async def _see_to_scheduler(self) -> None:
        """Doubt every job if the scheduler has forgotten the token."""
        try:
            lost = await self._arming.token(_TOKEN, self._store.now() + _TOKEN_AHEAD)
        except GaggleError as error:
            _log.warning("scheduler_not_asked", error=str(error))
            return
        if lost and self._arming.known:
            _log.warning("scheduler_lost_its_data", jobs_known=len(self._arming.known))
            self._arming.known.clear()

    # -- what may be due

    async def _due(self, document: document_pb2.Sweep, findings: Findings) -> None:
        horizon = bucket_of(self._store.now() + timedelta(seconds=self._settings.horizon_seconds))
        low, settled_so_far = document.low_bucket, True
        for first in range(low, horizon + 1, _BUCKETS_AT_ONCE):
            buckets = range(first, min(first + _BUCKETS_AT_ONCE, horizon + 1))
            unsettled = await self._buckets(buckets, findings)
            if settled_so_far:
                # Never past what writers may still be about to enter.
                settled_so_far = not unsettled
                ends = min([*unsettled, buckets.stop])
                document.low_bucket = max(low, min(ends, bucket_of(self._store.now()) - 1))
                if document.low_bucket > first and not await self._advance(document):
                    return
        # Of what lies further ahead the scheduler is asked when it comes near.
        now = self._store.now().timestamp()
        self._arming.remember(now - BUCKET_SECONDS, now + self._settings.horizon_seconds + 2 * BUCKET_SECONDS)

    async def _buckets(self, buckets: Iterable[int], findings: Findings) -> set[int]:
        """Look through some buckets; gives those that still hold something."""
        keys = {due_key(bucket, shard): bucket for bucket in buckets for shard in range(SHARDS)}
        found = await self._store.state.get_many(list(keys))
        # A read that breaks off looks empty. What lies ahead is read again in the next sweep, what is over now.
        if over := [key for key, bucket in keys.items() if self._is_over(bucket) and key not in found]:
            found |= await self._store.state.get_many(over)
        unsettled = set()
        for key, item in found.items():
            document = document_pb2.DueBucket.FromString(item.value)
            chunks = [f"{key}:c{number}" for number in range(document.chunks)]
            settled = True
            for one, chunk in (await self._store.state.get_many(chunks, confirm=chunks)).items():
                page = _Page(one, chunk, document_pb2.DueBucket.FromString(chunk.value))
                settled &= await self._page(page, findings, goes=True)
            # The first document counts the chunks: it goes last, and while its time lasts only if it counts none.
            goes = settled and (self._is_over(keys[key]) or not document.chunks)
            settled &= await self._page(_Page(key, item, document), findings, goes=goes)
            if not settled:
                unsettled.add(keys[key])
        return unsettled

    def _is_over(self, bucket: int) -> bool:
        """Tell whether nobody enters anything in a bucket any more."""
        return bucket < bucket_of(self._store.now()) - 1

    async def _page(self, page: _Page, findings: Findings, *, goes: bool) -> bool:
        """Look through a document of entries, and take out what is settled; True if nothing is left in it.

        With `goes` the document itself is then deleted.
        """
        entries = list(page.document.entries)
        overdue = self._store.now() - timedelta(seconds=self._settings.overdue_seconds)
        for start in range(0, len(entries), _TASKS_AT_ONCE):
            wanted = [
                (place, one)
                for place, one in enumerate(entries[start : start + _TASKS_AT_ONCE], start)
                if _job(one).name not in self._arming.known or one.remind_at.ToDatetime(UTC) <= overdue
            ]
            documents = await self._store.find_many(list({(one.user_id, one.task_id) for _, one in wanted}))
            await self._entries(page, wanted, documents, findings, overdue)
        settled = set(page.settled)
        left = [one for place, one in enumerate(entries) if place not in settled]
        goes = goes and not left
        if not settled and not goes:
            return not left
        operation: Put | Remove = Remove(page.key, etag=page.item.etag)
        if not goes:
            del page.document.entries[:]
            page.document.entries.extend(left)
            operation = Put(page.key, page.document.SerializeToString(), etag=page.item.etag)
        try:
            await self._store.state.commit([operation])
        except CommitFailedError:
            return False  # Somebody has entered something: next time.
        return not left

    async def _entries(
        self,
        page: _Page,
        wanted: Sequence[tuple[int, document_pb2.DueEntry]],
        documents: dict[tuple[str, str], Document],
        findings: Findings,
        overdue: datetime,
    ) -> None:
        fire: list[tuple[int, document_pb2.DueEntry]] = []
        ahead: list[tuple[document_pb2.DueEntry, Job]] = []
        for place, one in wanted:
            document = documents.get((one.user_id, one.task_id))
            live = None if document is None else current(document, one.reminder_id, one.occurrence)
            if live is None:
                # Fired, cancelled, or set anew: its job has gone with it, or is of no use.
                page.settled.append(place)
                if one.remind_at.ToDatetime(UTC) > self._store.now():
                    await self._drop(_job(one), findings)
            elif one.remind_at.ToDatetime(UTC) <= overdue:
                fire.append((place, one))
            else:
                ahead.append((one, _job(one)))
        await _together(_FIRED_AT_ONCE, [self._fire(page, place, one, findings) for place, one in fire])
        await _together(_ASKED_AT_ONCE, [self._ensure(one.user_id, job, findings) for one, job in ahead])

    async def _fire(self, page: _Page, place: int, one: document_pb2.DueEntry, findings: Findings) -> None:
        try:
            outcome = await self._firing.fire(one.user_id, one.task_id, one.reminder_id, one.occurrence, by="sweep")
        except GaggleError as error:
            findings.left += 1
            _log.warning("overdue_put_off", task=one.task_id, error=str(error))
            return
        page.settled.append(place)
        findings.overdue += outcome is Outcome.FIRED
        findings.orphaned += outcome is Outcome.CANCELLED
        findings.diverged += outcome is Outcome.MOVED

    async def _ensure(self, user_id: str, job: Job, findings: Findings) -> None:
        try:
            findings.missing += await self._arming.ensure(user_id, job)
        except GaggleError as error:
            _log.warning("job_not_settled", job=job.name, error=str(error))

    async def _drop(self, job: Job, findings: Findings) -> None:
        try:
            await self._arming.drop(job.name)
        except GaggleError as error:
            _log.warning("job_not_settled", job=job.name, error=str(error))
        else:
            findings.orphaned += 1

    # -- the round through all tasks

    async def _round(self, document: document_pb2.Sweep, findings: Findings) -> None:
        """Go on through all tasks with reminders, a page of them; keeps where it stands."""
        wanted = [task async for task in self._next_tasks(document)]
        documents = await self._store.find_many(wanted)
        live = [(user_id, one) for (user_id, _), one in documents.items() if any(map(domain.is_live, one.reminders))]
        await _together(_ASKED_AT_ONCE, [self._check(user_id, one, findings) for user_id, one in live])
        await self._advance(document)

    async def _next_tasks(self, document: document_pb2.Sweep) -> AsyncIterator[tuple[str, str]]:
        """Give the next tasks, each as user and task, and move the round's place behind them."""
        given = 0
        numbers = [(document.round_users + step) % USER_BUCKETS for step in range(_USER_DOCUMENTS_AT_ONCE)]
        found = await self._store.state.get_many([users_key(number) for number in numbers])
        for number in numbers:
            item = found.get(users_key(number))
            users = runtime_pb2.UserBucket.FromString(item.value).user_ids if item else []
            for user_id in sorted(users):
                if user_id < document.round_user_id:
                    continue
                place: dict[str, int] = {}
                if user_id == document.round_user_id and document.HasField("round_position"):
                    place = {"bucket": document.round_index_bucket, "position": document.round_position}
                async for bucket, position, task_id in self._store.index.newest_first(user_id, **place):
                    if given == self._settings.round_tasks:
                        document.round_user_id = user_id
                        document.round_index_bucket, document.round_position = bucket, position
                        return
                    given += 1
                    yield user_id, task_id
                document.ClearField("round_position")
            document.round_users, document.round_user_id = (number + 1) % USER_BUCKETS, ""

    async def _check(self, user_id: str, document: Document, findings: Findings) -> None:
        """See to one task: what is overdue fires, what has diverged from the task is brought in line."""
        overdue = self._store.now() - timedelta(seconds=self._settings.overdue_seconds)
        try:
            for one in document.reminders:
                if domain.is_live(one) and one.reminder.remind_at.ToDatetime(UTC) <= overdue:
                    reminder = one.reminder
                    outcome = await self._firing.fire(
                        user_id, document.task_id, reminder.id, reminder.occurrence, by="sweep"
                    )
                    findings.overdue += outcome is Outcome.FIRED
            if not self._settings.check_tasks:
                return
            task = await self._tasks.find(document.task_id, self._issue(user_id))
            if task is None:
                await self._following.deleted(user_id, document.task_id)
                findings.orphaned += 1
            elif not known(document, read(task).revision) or not read(task).open:
                await self._following.align(user_id, task)
                findings.diverged += 1
        except GaggleError as error:
            _log.warning("task_put_off", task=document.task_id, error=str(error))


def _job(one: document_pb2.DueEntry) -> Job:
    return Job(one.task_id, one.reminder_id, one.occurrence, one.remind_at.ToDatetime(UTC))


async def _together(most: int, work: Sequence[Awaitable[None]]) -> None:
    """Do things at once, but not too many."""
    gate = asyncio.Semaphore(most)

    async def one(job: Awaitable[None]) -> None:
        async with gate:
            await job

    await asyncio.gather(*map(one, work))
