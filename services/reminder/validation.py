"""What a request must be before anything is read for it."""

from collections.abc import Iterable
from datetime import UTC

from google.protobuf.duration_pb2 import Duration

from gaggle.reminder.v1 import reminder_pb2
from gaggle.reminder.v1 import reminder_service_pb2 as api
from services.reminder.domain import is_relative, parse_local, parse_time_of_day
from services.runtime.times import EARLIEST, LATEST, find_zone, sensible
from services.runtime.validation import Violations

MAX_TIMES = 10
MAX_TITLE_BYTES = 1024
MAX_DAYS = 366
MAX_IDS = 64
_DAY_SECONDS = 86_400
_SECOND_NANOS = 1_000_000_000
_NOT_SPAN = "must be 0 to 366 days"
_NOT_TIME = "must be a time from 1900 to 2400"
_NOT_LOCAL = "must be a date and time of a wall clock, 2027-03-28T02:30"


def named(task_id: str, request_id: str = "") -> Violations:
    """Check what nearly every request has."""
    violations = Violations()
    violations.id("task_id", task_id, required=True)
    violations.id("request_id", request_id, required=False)
    return violations


def schedule(request: api.ScheduleRemindersRequest) -> None:
    """Check a request to set reminders. Raises InvalidArgumentError."""
    violations = named(request.task_id, request.request_id)
    _task(violations, request)
    violations.check(ok=1 <= len(request.reminders) <= MAX_TIMES, field="reminders", what=f"must be 1 to {MAX_TIMES}")
    times(violations, "reminders", request.reminders)
    violations.check(ok=request.past in api.PastPolicy.values(), field="past", what="must be a policy")
    missed(violations, request.missed)
    violations.raise_if_any()


def reschedule(request: api.RescheduleRemindersRequest) -> None:
    """Check what a task has become. Raises InvalidArgumentError."""
    violations = named(request.task_id, request.request_id)
    _task(violations, request)
    wanted = request.reminders.times
    violations.check(ok=len(wanted) <= MAX_TIMES, field="reminders.times", what=f"at most {MAX_TIMES}")
    times(violations, "reminders.times", wanted)
    for position, one in enumerate(wanted):
        violations.check(
            ok=is_relative(one), field=f"reminders.times[{position}]", what="must be relative to the due time"
        )
    violations.check(ok=request.past in api.PastPolicy.values(), field="past", what="must be a policy")
    missed(violations, request.missed)
    violations.raise_if_any()


def cancel(request: api.CancelRemindersRequest) -> None:
    """Check a request to cancel. Raises InvalidArgumentError."""
    violations = named(request.task_id, request.request_id)
    violations.check(ok=len(request.reminder_ids) <= MAX_IDS, field="reminder_ids", what=f"at most {MAX_IDS}")
    for position, one in enumerate(request.reminder_ids):
        violations.id(f"reminder_ids[{position}]", one, required=True)
    violations.raise_if_any()


def snooze(request: api.SnoozeReminderRequest) -> None:
    """Check a request to put off. Raises InvalidArgumentError."""
    violations = named(request.task_id, request.request_id)
    violations.id("reminder_id", request.reminder_id, required=True)
    kind = request.WhichOneof("time")
    violations.check(ok=kind is not None, field="time", what="say delay, until or until_local")
    if kind == "delay":
        violations.check(
            ok=_whole(request.delay) and 1 <= request.delay.seconds <= MAX_DAYS * _DAY_SECONDS,
            field="delay",
            what="must be 1 second to 366 days",
        )
    elif kind == "until":
        violations.check(ok=sensible(request.until), field="until", what=_NOT_TIME)
    elif kind == "until_local":
        violations.check(ok=parse_local(request.until_local) is not None, field="until_local", what=_NOT_LOCAL)
    violations.raise_if_any()


def listing(request: api.ListRemindersRequest) -> None:
    """Check a request for a list. Raises InvalidArgumentError."""
    violations = Violations()
    violations.id("task_id", request.task_id, required=False)
    violations.check(ok=request.page_size >= 0, field="page_size", what="must not be negative")
    known = set(reminder_pb2.ReminderState.values()) - {reminder_pb2.REMINDER_STATE_UNSPECIFIED}
    for position, one in enumerate(request.states):
        violations.check(ok=one in known, field=f"states[{position}]", what="must be a state")
    violations.raise_if_any()


def due(request: api.ListDueRemindersRequest) -> None:
    """Check a request for what fires next. Raises InvalidArgumentError."""
    violations = Violations()
    violations.check(ok=request.page_size >= 0, field="page_size", what="must not be negative")
    violations.check(ok=_whole(request.horizon), field="horizon", what="must not be negative")
    violations.raise_if_any()


def _task(violations: Violations, request: api.ScheduleRemindersRequest | api.RescheduleRemindersRequest) -> None:
    """Check what is said of the task."""
    size = len(request.title.encode())
    violations.check(ok=size <= MAX_TITLE_BYTES, field="title", what=f"at most {MAX_TITLE_BYTES} bytes")
    if request.HasField("due_at"):
        violations.check(ok=sensible(request.due_at), field="due_at", what=_NOT_TIME)
    if request.time_zone:
        violations.check(
            ok=find_zone(request.time_zone) is not None, field="time_zone", what="must be a zone of the IANA's names"
        )


def times(violations: Violations, field: str, wanted: Iterable[reminder_pb2.ReminderTime]) -> None:
    """Check when to remind."""
    seen: set[bytes] = set()
    for position, one in enumerate(wanted):
        at = f"{field}[{position}]"
        kind = one.WhichOneof("time")
        violations.check(ok=kind is not None, field=at, what="say when")
        if kind == "before_due":
            span = one.before_due
            ok = _whole(span) and 0 <= span.seconds <= MAX_DAYS * _DAY_SECONDS
            violations.check(ok=ok, field=f"{at}.before_due", what=_NOT_SPAN)
        elif kind == "calendar_before_due":
            calendar = one.calendar_before_due
            violations.check(ok=calendar.days <= MAX_DAYS, field=f"{at}.calendar_before_due.days", what=_NOT_SPAN)
            clock = calendar.time_of_day
            violations.check(
                ok=not clock or parse_time_of_day(clock) is not None,
                field=f"{at}.calendar_before_due.time_of_day",
                what="must be a time of day, 09:00",
            )
        elif kind == "at":
            violations.check(ok=sensible(one.at), field=f"{at}.at", what=_NOT_TIME)
        elif kind == "at_local":
            local = parse_local(one.at_local)
            violations.check(ok=local is not None, field=f"{at}.at_local", what=_NOT_LOCAL)
            in_range = local is None or EARLIEST <= local.replace(tzinfo=UTC) < LATEST
            violations.check(ok=in_range, field=f"{at}.at_local", what=_NOT_TIME)
        key = one.SerializeToString(deterministic=True)
        violations.check(ok=key not in seen, field=at, what="is there twice")
        seen.add(key)


def missed(violations: Violations, policy: reminder_pb2.MissedPolicy) -> None:
    """Check a policy for what was missed."""
    if policy.HasField("skip_after"):
        span = policy.skip_after
        ok = _whole(span) and 0 <= span.seconds <= MAX_DAYS * _DAY_SECONDS
        violations.check(ok=ok, field="missed.skip_after", what=_NOT_SPAN)


def _whole(span: Duration) -> bool:
    """Tell whether a duration is a valid one, and not negative."""
    return 0 <= span.nanos < _SECOND_NANOS and span.seconds >= 0
