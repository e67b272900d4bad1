"""What happens when a reminder's time has come.

The job, or in its stead the sweep, names an occurrence. The document decides: if that occurrence is still to fire, the
task is asked once more, and one commit makes the reminder FIRED and leaves its event in the outbox. Whoever comes
second, by a job delivered twice or from another replica, finds it FIRED.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, timedelta
from enum import Enum

import structlog

from gaggle.reminder.state.v1 import document_pb2
from gaggle.task.v1 import task_pb2
from services.reminder import domain, following
from services.reminder.domain import Document, Edit, Stored
from services.reminder.metrics import ReminderMetrics
from services.reminder.settings import ReminderSettings
from services.reminder.store import ReminderStore
from services.reminder.tasks import Tasks, read
from services.runtime.errors import DeadlineError, UnavailableError
from services.runtime.jobs import SCHEDULER, JobEvent
from services.runtime.telemetry import current_traceparent, part

_EARLY = timedelta(seconds=2)
"""How much too early a job may come and be waited for here."""

_log = structlog.get_logger()


class Outcome(Enum):
    """What became of an occurrence."""

    FIRED = "fired"
    STALE = "stale"
    """It was set anew, cancelled, or has fired before."""

    CANCELLED = "cancelled"
    """Its task is done or gone, or its policy is not to fire so late."""

    MOVED = "moved"
    """Its task had changed, and nobody had told."""


class Firing:
    """Fires reminders."""

    def __init__(
        self,
        store: ReminderStore,
        tasks: Tasks,
        issue: Callable[[str], str],
        settings: ReminderSettings,
        metrics: ReminderMetrics,
    ) -> None:
        """`issue` gives a token of this service for acting for a user."""
        self._store = store
        self._tasks = tasks
        self._issue = issue
        self._check = settings.check_tasks
        self._patience = timedelta(seconds=settings.task_patience_seconds)
        self._metrics = metrics

    async def on_job(self, event: JobEvent) -> None:
        """Take a job; an error has it delivered again. Raises UnavailableError or DeadlineError."""
        data = document_pb2.JobData()
        if not event.data.Unpack(data):
            # Not one of ours; delivering it again would not help.
            _log.error("job_not_readable", job=event.name)
            return
        outcome = await self.fire(data.user_id, data.task_id, data.reminder_id, data.occurrence, by="job")
        if outcome is Outcome.STALE:
            _log.info("job_without_effect", job=event.name)

    async def fire(self, user_id: str, task_id: str, reminder_id: str, occurrence: int, *, by: str) -> Outcome:
        """Fire one occurrence, if it still is to. Raises UnavailableError, DeadlineError, ConflictError."""
        document = await self._store.find(user_id, task_id)
        one = None if document is None else current(document, reminder_id, occurrence)
        if document is None or one is None:
            return Outcome.STALE
        await self._wait(one)
        outcome = Outcome.STALE
        with part(f"reminder due, by {by}", traceparent=one.traceparent):
            task, unchecked = await self._task(user_id, document, one)

            def apply(edit: Edit) -> bytes:
                nonlocal outcome
                outcome = self._apply(edit, reminder_id, occurrence, task, unchecked=unchecked)
                return b""

            await self._store.change(user_id, task_id, apply, traceparent=current_traceparent() or one.traceparent)
        if outcome is Outcome.FIRED:
            self._metrics.fired.labels(by).inc()
            late = (self._store.now() - one.reminder.remind_at.ToDatetime(UTC)).total_seconds()
            self._metrics.lateness.observe(max(late, 0.0))
        return outcome

    async def _wait(self, one: Stored) -> None:
        """See that it is not too early: the scheduler's clock is another one, and clocks are set."""
        early = one.reminder.remind_at.ToDatetime(UTC) - self._store.now()
        if early > _EARLY:
            raise UnavailableError(f"{SCHEDULER}: {early} too early")
        if early > timedelta(0):
            await asyncio.sleep(early.total_seconds())

    async def _task(self, user_id: str, document: Document, one: Stored) -> tuple[task_pb2.Task | None, bool]:
        """Ask for the task; gives it, None if it is gone, and whether it could not be asked."""
        if not self._check:
            return None, True
        try:
            return await self._tasks.find(document.task_id, self._issue(user_id)), False
        except (UnavailableError, DeadlineError):
            late: timedelta = self._store.now() - one.reminder.remind_at.ToDatetime(UTC)
            if late < self._patience:
                raise
            _log.warning("task_unchecked", task=document.task_id, late_seconds=late.total_seconds())
            return None, True

    def _apply(
        self, edit: Edit, reminder_id: str, occurrence: int, task: task_pb2.Task | None, *, unchecked: bool
    ) -> Outcome:
        if current(edit.document, reminder_id, occurrence) is None:
            return Outcome.STALE
        if not unchecked:
            if task is None:
                following.gone(edit)
                return Outcome.CANCELLED
            if not read(task).open:
                edit.cancel_all(domain.COMPLETED)
            else:
                # Its change may not have arrived, and may have moved just this reminder.
                following.align(edit, task, since=edit.now)
        one = current(edit.document, reminder_id, occurrence)
        if one is None:
            found = edit.find(reminder_id)
            return Outcome.MOVED if found is not None and domain.is_live(found) else Outcome.CANCELLED
        if domain.too_late(one, edit.now):
            edit.cancel(one, domain.MISSED)
            self._metrics.missed.inc()
            return Outcome.CANCELLED
        edit.fire(one, unchecked=unchecked and self._check)
        return Outcome.FIRED


def current(document: Document, reminder_id: str, occurrence: int) -> Stored | None:
    """Give a reminder that is still to fire in this occurrence."""
    for one in document.reminders:
        if one.reminder.id == reminder_id and one.reminder.occurrence == occurrence and domain.is_live(one):
            return one
    return None
