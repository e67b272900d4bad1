"""Makes and deletes jobs, behind the commits that want them.

Callers do not wait for the scheduler. While it is away, what is to be done stays in line; a line that is full, or a
process that dies, loses it, and the sweep finds it again.
"""

import asyncio
from dataclasses import dataclass
from datetime import datetime

import structlog

from gaggle.reminder.state.v1 import document_pb2
from services.reminder.domain import Edit, Job
from services.reminder.metrics import ReminderMetrics
from services.reminder.store import job_data
from services.runtime.errors import GaggleError
from services.runtime.jobs import Jobs

_WORKERS = 8
_MOST_PENDING = 20_000
_PAUSES_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Order:
    user_id: str
    job: Job
    wanted: bool


class Arming:
    """The line of jobs to be made and deleted."""

    def __init__(self, jobs: Jobs, metrics: ReminderMetrics) -> None:
        """`jobs` is the scheduler, by way of the sidecar."""
        self._jobs = jobs
        self._metrics = metrics
        self._queue: asyncio.Queue[_Order] = asyncio.Queue(_MOST_PENDING)
        self.known: dict[str, float] = {}
        """Names of jobs that this process knows to be there, with their time: the sweep need not ask for them."""

    def committed(self, user_id: str, edit: Edit) -> None:
        """Take what a commit wants; never waits."""
        for job in edit.set.values():
            self._metrics.scheduled.inc()
            self._take(_Order(user_id, job, wanted=True))
        for job in edit.unset:
            self._take(_Order(user_id, job, wanted=False))

    def _take(self, order: _Order) -> None:
        try:
            self._queue.put_nowait(order)
        except asyncio.QueueFull:
            _log.warning("job_left_to_the_sweep", job=order.job.name)
        self._metrics.jobs_pending.set(self._queue.qsize())

    async def run(self) -> None:
        """Work through the line, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_WORKERS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            order = await self._queue.get()
            attempt = 0
            while not await self._done(order):
                await asyncio.sleep(_PAUSES_SECONDS[min(attempt, len(_PAUSES_SECONDS) - 1)])
                attempt += 1
            self._metrics.jobs_pending.set(self._queue.qsize())

    async def _done(self, order: _Order) -> bool:
        try:
            if order.wanted:
                await self.ensure(order.user_id, order.job)
            else:
                await self.drop(order.job.name)
        except GaggleError as error:
            _log.warning("job_not_settled", job=order.job.name, error=str(error))
            return False
        return True

    async def ensure(self, user_id: str, job: Job) -> bool:
        """See that there is a job; True if there was none. Raises UnavailableError or DeadlineError."""
        made = await self._jobs.schedule(job.name, job.remind_at, job_data(user_id, job))
        self.known[job.name] = job.remind_at.timestamp()
        return made

    async def token(self, name: str, at: datetime) -> bool:
        """See that there is a job that is for nothing; True if there was none. Raises as `ensure`."""
        return await self._jobs.schedule(name, at, document_pb2.JobData())

    async def drop(self, name: str) -> None:
        """See that there is no job. Raises UnavailableError or DeadlineError."""
        self.known.pop(name, None)
        await self._jobs.delete(name)

    def remember(self, first: float, last: float) -> None:
        """Forget what is known of jobs outside of these times, in seconds since 1970."""
        self.known = {name: at for name, at in self.known.items() if first <= at <= last}
