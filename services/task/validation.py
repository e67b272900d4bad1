"""What a request must be before anything is read for it."""

import asyncio
from collections.abc import Iterable
from datetime import UTC

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.task.v1 import task_pb2
from gaggle.task.v1 import task_service_pb2 as api
from services.runtime.errors import InvalidArgumentError
from services.runtime.recurrence import RuleError, check_yields, parse_rule
from services.runtime.times import find_zone, sensible
from services.runtime.validation import Violations

MAX_TITLE_BYTES = 1024
MAX_DESCRIPTION_BYTES = 16 * 1024
MAX_TAGS = 20
MAX_TAG_BYTES = 64
MAX_OFFSETS = 10
MAX_OFFSET_SECONDS = 366 * 24 * 3600
MAX_TEXT_BYTES = 256
MAX_WORDS = 16


def named(task_id: str, request_id: str = "") -> Violations:
    """Check what nearly every request has."""
    violations = Violations()
    violations.id("task_id", task_id, required=True)
    violations.id("request_id", request_id, required=False)
    return violations


async def create(request: api.CreateTaskRequest) -> None:
    """Check a new task. Raises InvalidArgumentError."""
    violations = Violations()
    violations.id("task_id", request.task_id, required=False)
    violations.id("request_id", request.request_id, required=False)
    _title(violations, request.title)
    _description(violations, request.description)
    _priority(violations, "priority", request.priority)
    _tags(violations, "tags", request.tags)
    _zone(violations, "time_zone", request.time_zone)
    _time(violations, "due_time", request, "due_time")
    _offsets(violations, "reminder_offsets", request.reminder_offsets)
    due = request.HasField("due_time")
    violations.check(ok=due or not request.reminder_offsets, field="reminder_offsets", what="only with a due_time")
    if request.HasField("recurrence"):
        violations.check(ok=due, field="due_time", what="must be set: the task recurs")
        _recurrence(violations, "recurrence", request.recurrence)
    if request.HasField("origin"):
        violations.id("origin.conversation_id", request.origin.conversation_id, required=True)
        violations.id("origin.message_id", request.origin.message_id, required=False)
    violations.raise_if_any()
    if request.HasField("recurrence"):
        await yields("recurrence.rule", request.recurrence.rule, request.due_time, request.time_zone)


def update(request: api.UpdateTaskRequest) -> None:
    """Check a change, as far as that can be done without the task. Raises InvalidArgumentError."""
    violations = named(request.task_id, request.request_id)
    if request.HasField("title"):
        _title(violations, request.title)
    _description(violations, request.description)
    _priority(violations, "priority", request.priority)
    _tags(violations, "tags.tags", request.tags.tags)
    _zone(violations, "due.time_zone", request.due.time_zone)
    _time(violations, "due.due_time", request.due, "due_time")
    _offsets(violations, "reminder_offsets.reminder_offsets", request.reminder_offsets.reminder_offsets)
    violations.check(ok=request.scope in api.EditScope.values(), field="scope", what="is not known")
    only_this = request.scope == api.EDIT_SCOPE_THIS
    violations.check(
        ok=not (only_this and request.HasField("recurrence")), field="recurrence", what="not for one occurrence alone"
    )
    if request.recurrence.HasField("recurrence"):
        _recurrence(violations, "recurrence.recurrence", request.recurrence.recurrence)
    violations.raise_if_any()


def _recurrence(violations: Violations, field: str, wanted: task_pb2.Recurrence) -> None:
    violations.check(ok=wanted.catch_up in task_pb2.CatchUp.values(), field=f"{field}.catch_up", what="is not known")
    try:
        parse_rule(wanted.rule)
    except RuleError as error:
        violations.check(ok=False, field=f"{field}.rule", what=str(error))


async def yields(field: str, rule: str, start: Timestamp, time_zone: str) -> None:
    """Refuse a rule, good in itself, that has no second time after `start`. Raises InvalidArgumentError."""
    zone = find_zone(time_zone or "UTC")
    if zone is None:
        return
    try:
        # In a thread: a rule that never comes true takes a while to say so.
        await asyncio.to_thread(check_yields, parse_rule(rule), start.ToDatetime(UTC), zone)
    except RuleError as error:
        raise InvalidArgumentError({field: str(error)}) from None


def listing(request: api.ListTasksRequest) -> None:
    """Check what a list asks for. Raises InvalidArgumentError."""
    violations = Violations()
    violations.check(ok=request.page_size >= 0, field="page_size", what="must not be negative")
    violations.check(ok=request.status in task_pb2.TaskStatus.values(), field="status", what="is not known")
    violations.check(ok=request.order_by in api.TaskOrder.values(), field="order_by", what="is not known")
    _time(violations, "due_from", request, "due_from")
    _time(violations, "due_before", request, "due_before")
    for index, priority in enumerate(request.priorities):
        _priority(violations, f"priorities[{index}]", priority)
    _tags(violations, "tags", request.tags)
    size = len(request.text.encode())
    violations.check(
        ok=size <= MAX_TEXT_BYTES and len(request.text.split()) <= MAX_WORDS,
        field="text",
        what=f"at most {MAX_TEXT_BYTES} bytes and {MAX_WORDS} words",
    )
    violations.raise_if_any()


def _title(violations: Violations, text: str) -> None:
    ok = bool(text.strip()) and len(text.encode()) <= MAX_TITLE_BYTES
    violations.check(ok=ok, field="title", what=f"must be set, at most {MAX_TITLE_BYTES} bytes")


def _description(violations: Violations, text: str) -> None:
    violations.check(
        ok=len(text.encode()) <= MAX_DESCRIPTION_BYTES,
        field="description",
        what=f"at most {MAX_DESCRIPTION_BYTES} bytes",
    )


def _priority(violations: Violations, field: str, priority: int) -> None:
    violations.check(ok=priority in task_pb2.TaskPriority.values(), field=field, what="is not known")


def _tags(violations: Violations, field: str, tags: Iterable[str]) -> None:
    seen: set[str] = set()
    for index, tag in enumerate(tags):
        violations.check(
            ok=bool(tag.strip()) and len(tag.encode()) <= MAX_TAG_BYTES,
            field=f"{field}[{index}]",
            what=f"must be set, at most {MAX_TAG_BYTES} bytes",
        )
        violations.check(ok=tag not in seen, field=f"{field}[{index}]", what="is there twice")
        violations.check(ok=index < MAX_TAGS, field=field, what=f"at most {MAX_TAGS}")
        seen.add(tag)


def _zone(violations: Violations, field: str, name: str) -> None:
    violations.check(ok=not name or find_zone(name) is not None, field=field, what="is no IANA time zone")


def _time(violations: Violations, field: str, message: object, name: str) -> None:
    if message.HasField(name):  # type: ignore[attr-defined]
        violations.check(ok=sensible(getattr(message, name)), field=field, what="must be a time from 1900 to 2400")


def _offsets(violations: Violations, field: str, offsets: Iterable[Duration]) -> None:
    seen: set[int] = set()
    for index, offset in enumerate(offsets):
        violations.check(
            ok=0 <= offset.seconds <= MAX_OFFSET_SECONDS and not offset.nanos,
            field=f"{field}[{index}]",
            what="must be 0 to 366 days, in whole seconds",
        )
        violations.check(ok=offset.seconds not in seen, field=f"{field}[{index}]", what="is there twice")
        violations.check(ok=index < MAX_OFFSETS, field=field, what=f"at most {MAX_OFFSETS}")
        seen.add(offset.seconds)
