"""When a reminder fires, and what becomes of it. Knows neither gRPC nor Dapr.

All reminders of a task are one document with one revision. An Edit is a change to it in the making: it keeps count of
what has to be told, and of the jobs that come and go with it. A reminder's `occurrence` is raised whenever it is set
anew, and a job names the occurrence that it is for: one that comes for an earlier occurrence has nothing to do.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from google.protobuf import json_format

from gaggle.reminder.state.v1 import document_pb2
from gaggle.reminder.v1 import event_pb2, reminder_pb2
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from services.runtime import topics
from services.runtime.errors import FailedPreconditionError, InvalidArgumentError, TooLargeError
from services.runtime.events import Telling
from services.runtime.times import LATEST, find_zone, timestamp

MAX_LIVE = 16
"""Reminders of one task that are to fire."""

MAX_STORED = 64
"""Reminders of one task that are kept, those that will not fire included."""

EVENT_REFERENCES = 64
KEPT = timedelta(days=30)
"""How long a reminder is kept that will not fire any more."""

LATE = timedelta(minutes=1)
"""A time that went by no longer ago is late, not past."""

LIVE = frozenset({reminder_pb2.REMINDER_STATE_SCHEDULED, reminder_pb2.REMINDER_STATE_SNOOZED})
RELATIVE = frozenset({"before_due", "calendar_before_due"})
COMPLETED, DELETED, REMOVED, MISSED, CANCELLED, ERASED = (
    "completed",
    "deleted",
    "removed",
    "missed",
    "cancelled",
    "erased",
)
# What the task has done to a reminder, the task can undo.
_UNDONE = frozenset({COMPLETED, DELETED, REMOVED})
_LOCAL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?")
_TIME_OF_DAY = re.compile(r"\d\d:\d\d(:\d\d)?")

Document = document_pb2.TaskReminders
Stored = document_pb2.StoredReminder


@dataclass(frozen=True, slots=True)
class Task:
    """What a task says that its reminders go by."""

    id: str
    title: str
    due_at: datetime | None
    time_zone: str
    revision: int = 0
    """0: nobody counts."""

    open: bool = True


@dataclass(frozen=True, slots=True)
class Job:
    """An occurrence of a reminder: what a job is for."""

    task_id: str
    reminder_id: str
    occurrence: int
    remind_at: datetime

    @property
    def name(self) -> str:
        """The job's name."""
        return f"reminder-{self.task_id}-{self.reminder_id}-{self.occurrence}"


def job_of(document: Document, one: Stored) -> Job:
    """Give the job of a reminder as it stands."""
    reminder = one.reminder
    return Job(document.task_id, reminder.id, reminder.occurrence, reminder.remind_at.ToDatetime(UTC))


def is_live(one: Stored) -> bool:
    """Tell whether a reminder is to fire."""
    return one.reminder.state in LIVE


def is_relative(when: reminder_pb2.ReminderTime) -> bool:
    """Tell whether a reminder goes by its task's due time."""
    return when.WhichOneof("time") in RELATIVE


# -- times


def resolve(local: datetime, zone: ZoneInfo) -> datetime:
    """Read a wall clock: RFC 5545, 3.3.5.

    What a change of the clocks leaves out is read with the offset before it, so that it moves on by what was left out;
    what comes twice is the first of the two. Both are what `fold` 0 means (PEP 495).
    """
    return local.replace(tzinfo=zone, fold=0).astimezone(UTC)


def parse_local(text: str) -> datetime | None:
    """Read a date and time of a wall clock; None if it is none."""
    if not _LOCAL.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def parse_time_of_day(text: str) -> time | None:
    """Read a time of a wall clock; None if it is none."""
    if not _TIME_OF_DAY.fullmatch(text):
        return None
    try:
        return time.fromisoformat(text)
    except ValueError:
        return None


def remind_at(when: reminder_pb2.ReminderTime, due_at: datetime | None, time_zone: str) -> datetime | None:
    """Compute when a reminder fires; None if it is relative to a due time that there is not.

    Both `when` and the zone have been checked.
    """
    kind = when.WhichOneof("time")
    zone = find_zone(time_zone) or ZoneInfo("UTC")
    if kind == "at":
        return when.at.ToDatetime(UTC)
    if kind == "at_local":
        local = parse_local(when.at_local)
        return None if local is None else resolve(local, zone)
    if due_at is None:
        return None
    if kind == "before_due":
        return due_at - when.before_due.ToTimedelta()
    due_local = due_at.astimezone(zone)
    day: date = due_local.date() - timedelta(days=when.calendar_before_due.days)
    clock = parse_time_of_day(when.calendar_before_due.time_of_day) or due_local.time()
    return resolve(datetime.combine(day, clock), zone)


# -- changes


@dataclass(slots=True)
class Edit:
    """A change of a task's reminders in the making."""

    document: Document
    now: datetime
    user_id: str
    traceparent: str = ""
    told: list[Telling] = field(default_factory=list)
    set: dict[str, Job] = field(default_factory=dict)
    """Jobs that there have to be, by reminder."""

    unset: list[Job] = field(default_factory=list)
    """Jobs that nobody needs any more."""

    changed: bool = False

    def find(self, reminder_id: str) -> Stored | None:
        """Find a reminder by its id."""
        return next((one for one in self.document.reminders if one.reminder.id == reminder_id), None)

    def live(self) -> list[Stored]:
        """Give what is to fire."""
        return [one for one in self.document.reminders if is_live(one)]

    def note_task(self, task: Task) -> None:
        """Take over what the task says."""
        document = self.document
        before = document.SerializeToString(deterministic=True)
        document.title = task.title or document.title
        document.time_zone = task.time_zone or document.time_zone or "UTC"
        document.ClearField("due_at")
        if task.due_at is not None:
            document.due_at.CopyFrom(timestamp(task.due_at))
        # Of a task that takes a deleted one's id, revisions count from the beginning.
        document.task_revision = task.revision if document.task_gone else max(document.task_revision, task.revision)
        document.task_gone = False
        self.changed |= document.SerializeToString(deterministic=True) != before

    @property
    def due_at(self) -> datetime | None:
        """When the task is due."""
        return self.document.due_at.ToDatetime(UTC) if self.document.HasField("due_at") else None

    def add(self, reminder_id: str, when: reminder_pb2.ReminderTime, *, from_task: bool) -> Stored:
        """Enter a reminder, not yet set."""
        one = self.document.reminders.add(from_task=from_task)
        one.reminder.id = reminder_id
        one.reminder.task_id = self.document.task_id
        one.reminder.when.CopyFrom(when)
        one.reminder.create_time.CopyFrom(timestamp(self.now))
        self.changed = True
        return one

    def arm(self, one: Stored, at: datetime) -> None:
        """Set a reminder, for the first time or anew."""
        self._set(one, at, reminder_pb2.REMINDER_STATE_SCHEDULED)
        payload = event_pb2.ReminderScheduledEvent(when=one.reminder.when)
        self._tell("reminder.scheduled", one, payload)

    def snooze(self, one: Stored, at: datetime, *, task_too: bool) -> None:
        """Put a reminder off. Raises FailedPreconditionError if it was cancelled, or missed."""
        state = one.reminder.state
        if not is_live(one) and state != reminder_pb2.REMINDER_STATE_FIRED:
            name = reminder_pb2.ReminderState.Name(state).removeprefix("REMINDER_STATE_").lower()
            raise FailedPreconditionError(f"the reminder is {name}", metadata={"state": name})
        payload = event_pb2.ReminderSnoozedEvent(snoozed_from=one.reminder.remind_at, task_snoozed=task_too)
        self._set(one, at, reminder_pb2.REMINDER_STATE_SNOOZED)
        self._tell("reminder.snoozed", one, payload)

    def fire(self, one: Stored, *, unchecked: bool) -> None:
        """Have a reminder take effect."""
        reminder = one.reminder
        reminder.state = reminder_pb2.REMINDER_STATE_FIRED
        reminder.fire_time.CopyFrom(timestamp(self.now))
        self._touch(one)
        payload = event_pb2.ReminderDueEvent(fire_time=reminder.fire_time, task_unchecked=unchecked)
        self._tell("reminder.due", one, payload)

    def cancel(self, one: Stored, cause: str) -> None:
        """See that a reminder does not fire; one that would not anyway stays as it is."""
        if not is_live(one):
            return
        self._drop(one)
        missed = cause == MISSED
        one.reminder.state = reminder_pb2.REMINDER_STATE_MISSED if missed else reminder_pb2.REMINDER_STATE_CANCELLED
        one.cause = cause
        self._touch(one)
        self._tell("reminder.cancelled", one, event_pb2.ReminderCancelledEvent(cause=cause))

    def remove(self, one: Stored) -> None:
        """Take a reminder out of the task's set, whether it is to fire or has fired."""
        self.cancel(one, REMOVED)
        if one.cause != REMOVED:
            one.cause = REMOVED
            self.changed = True

    def put_missed(self, one: Stored, policy: reminder_pb2.MissedPolicy) -> None:
        """Change the policy for what was missed."""
        if one.reminder.missed != policy:
            one.reminder.missed.CopyFrom(policy)
            self._touch(one)

    def skip(self, one: Stored, at: datetime) -> None:
        """Note that a reminder's time had gone by before it was set; nobody is told unless it was to fire."""
        if is_live(one):
            self.cancel(one, MISSED)
        one.reminder.state = reminder_pb2.REMINDER_STATE_MISSED
        one.reminder.remind_at.CopyFrom(timestamp(at))
        one.cause = MISSED
        self._touch(one)

    def cancel_all(self, cause: str) -> None:
        """Cancel what is to fire."""
        for one in self.live():
            self.cancel(one, cause)

    def finish(self) -> None:
        """Close the change: let go of what is old, raise the revision if there is something to tell.

        Each revision has its events, or whoever compares revisions with events would miss some. Raises TooLargeError.
        """
        document = self.document
        if len(self.live()) > MAX_LIVE:
            raise TooLargeError("reminders of the task that are to fire", size=len(self.live()), limit=MAX_LIVE)
        done = [one for one in document.reminders if not is_live(one)]
        limit = timestamp(self.now - KEPT).ToNanoseconds()
        done = [one for one in done if one.reminder.update_time.ToNanoseconds() > limit]
        done.sort(key=lambda one: one.reminder.update_time.ToNanoseconds())
        gone = {one.reminder.id for one in done[: max(0, len(done) + len(self.live()) - MAX_STORED)]}
        kept = {one.reminder.id for one in (*done, *self.live())} - gone
        if len(kept) < len(document.reminders):
            left = [one for one in document.reminders if one.reminder.id in kept]
            del document.reminders[:]
            document.reminders.extend(left)
        document.revision += bool(self.told)

    def _set(self, one: Stored, at: datetime, state: "reminder_pb2.ReminderState.ValueType") -> None:
        if at >= LATEST:
            raise InvalidArgumentError({"remind_at": "must be before the year 2400"})
        self._drop(one)
        reminder = one.reminder
        reminder.state = state
        reminder.remind_at.CopyFrom(timestamp(at))
        reminder.occurrence += 1
        one.traceparent = self.traceparent
        one.cause = ""
        self._touch(one)
        self.set[reminder.id] = job_of(self.document, one)

    def _drop(self, one: Stored) -> None:
        """Note the job of a reminder as not needed."""
        if not is_live(one):
            return
        if self.set.pop(one.reminder.id, None) is None:
            self.unset.append(job_of(self.document, one))

    def _touch(self, one: Stored) -> None:
        one.reminder.update_time.CopyFrom(timestamp(self.now))
        self.changed = True

    def _tell(self, event_type: str, one: Stored, payload: "_Payload") -> None:
        payload.task_id = self.document.task_id
        payload.user_id = self.user_id
        payload.occurrence = one.reminder.occurrence
        payload.reminder_id = one.reminder.id
        payload.remind_at.CopyFrom(one.reminder.remind_at)
        if not isinstance(payload, event_pb2.ReminderCancelledEvent):
            payload.title = self.document.title
            payload.time_zone = self.document.time_zone
            if self.document.HasField("due_at"):
                payload.due_at.CopyFrom(self.document.due_at)
        data = json_format.MessageToDict(payload, preserving_proto_field_name=True)
        self.told.append(Telling(topics.REMINDERS, event_type, data))


_Payload = (
    event_pb2.ReminderDueEvent
    | event_pb2.ReminderScheduledEvent
    | event_pb2.ReminderCancelledEvent
    | event_pb2.ReminderSnoozedEvent
)


def describe(document: Document, one: Stored) -> reminder_pb2.Reminder:
    """Shape a reminder for the contract."""
    shaped = reminder_pb2.Reminder()
    shaped.CopyFrom(one.reminder)
    shaped.title = document.title
    shaped.time_zone = document.time_zone
    shaped.etag = str(document.revision)
    if document.HasField("due_at"):
        shaped.due_at.CopyFrom(document.due_at)
    return shaped


# -- what callers and tasks ask for


@dataclass(frozen=True, slots=True)
class Past:
    """What to do with times that have gone by."""

    refuse: bool = False
    fire: bool = False
    since: datetime | None = None
    """Late counts from here; None: from now."""


def schedule(
    edit: Edit,
    wanted: Iterable[tuple[str, reminder_pb2.ReminderTime]],
    missed: reminder_pb2.MissedPolicy,
    past: Past,
    *,
    from_task: bool,
) -> list[Stored]:
    """Set reminders, each given with an id in case it is new; gives them as they then are.

    Raises InvalidArgumentError naming the one whose time has gone by, FailedPreconditionError for one that is relative
    to a due time which there is not.
    """
    found = []
    violations: dict[str, str] = {}
    for position, (new_id, when) in enumerate(wanted):
        at = remind_at(when, edit.due_at, edit.document.time_zone)
        if at is None:
            raise FailedPreconditionError("the task has no due time to be reminded before", metadata={"state": "undue"})
        if past.refuse and is_past(at, edit.now):
            violations[f"reminders[{position}]"] = f"its time, {at:%Y-%m-%d %H:%M:%S} UTC, has gone by"
            continue
        one = _same(edit, when, from_task=from_task)
        if one is None:
            one = edit.add(new_id, when, from_task=from_task)
        elif is_live(one) and one.reminder.remind_at.ToDatetime(UTC) == at and one.reminder.missed == missed:
            found.append(one)
            continue
        one.reminder.missed.CopyFrom(missed)
        _set_or_skip(edit, one, at, past)
        found.append(one)
    if violations:
        raise InvalidArgumentError(violations)
    return found


def follow(
    edit: Edit,
    task: Task,
    wanted: Iterable[tuple[str, reminder_pb2.ReminderTime]] | None,
    missed: reminder_pb2.MissedPolicy | None,
    past: Past,
    *,
    from_task: bool,
) -> None:
    """Bring a task's reminders in line with what the task has become.

    `wanted` replaces the relative reminders of that origin; None: there is nothing to replace.
    """
    before = (edit.due_at, edit.document.time_zone)
    edit.note_task(task)
    moved = before != (edit.due_at, edit.document.time_zone)
    given = None if wanted is None else list(wanted)
    kept = {when.SerializeToString(deterministic=True) for _, when in given or ()}
    for one in list(edit.document.reminders):
        when = one.reminder.when
        replaced = given is not None and one.from_task == from_task and is_relative(when)
        if missed is not None and is_live(one):
            edit.put_missed(one, missed)
        if replaced and when.SerializeToString(deterministic=True) not in kept:
            edit.remove(one)
        elif one.cause == CANCELLED or (one.cause == REMOVED and not replaced):
            # What a person cancelled stays so, and what was taken out of the set comes back with it alone.
            continue
        elif (is_relative(when) and moved) or one.cause in _UNDONE:
            _move(edit, one, past)
    for new_id, when in given or ():
        if _same(edit, when, from_task=from_task) is None:
            at = remind_at(when, edit.due_at, edit.document.time_zone)
            if at is not None:
                one = edit.add(new_id, when, from_task=from_task)
                if missed is not None:
                    one.reminder.missed.CopyFrom(missed)
                _set_or_skip(edit, one, at, past)


def _move(edit: Edit, one: Stored, past: Past) -> None:
    at = remind_at(one.reminder.when, edit.due_at, edit.document.time_zone)
    if at is None:
        edit.cancel(one, REMOVED)
    elif not is_past(at, past.since or edit.now):
        _set_or_skip(edit, one, at, past)
    elif is_live(one):
        # One that has fired or was cancelled, and would be past again, stays as it is.
        _set_or_skip(edit, one, at, past)


def _set_or_skip(edit: Edit, one: Stored, at: datetime, past: Past) -> None:
    if not is_past(at, past.since or edit.now):
        edit.arm(one, at)
    elif past.fire:
        # From now on, or its policy for what was missed would have it never fire.
        edit.arm(one, edit.now)
    else:
        edit.skip(one, at)


def _same(edit: Edit, when: reminder_pb2.ReminderTime, *, from_task: bool) -> Stored | None:
    found = (one for one in edit.document.reminders if one.reminder.when == when and one.from_task == from_task)
    return next(found, None)


def is_past(at: datetime, now: datetime) -> bool:
    """Tell whether a time has gone by, and not merely a moment ago."""
    return at < now - LATE


def too_late(one: Stored, now: datetime) -> bool:
    """Tell whether a reminder's policy is not to fire any more."""
    policy = one.reminder.missed
    if not policy.HasField("skip_after"):
        return False
    late: timedelta = now - one.reminder.remind_at.ToDatetime(UTC)
    return late > policy.skip_after.ToTimedelta()


def refer(document: Document, reference: runtime_pb2.EventReference) -> None:
    """Note which outbox row tells of the newest revision."""
    document.events.append(reference)
    if len(document.events) > EVENT_REFERENCES:
        del document.events[: len(document.events) - EVENT_REFERENCES]
