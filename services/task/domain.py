"""What a task is and what may be done to it. Knows neither gRPC nor Dapr.

A recurring task is one occurrence of a series. The series lives in its newest task: rule, zone and DTSTART, which of
the rule's times this one is, and, once this one was changed for itself alone, the template of those to come.
"""

import unicodedata
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from gaggle.task.state.v1 import document_pb2
from gaggle.task.v1 import task_pb2
from gaggle.task.v1 import task_service_pb2 as api
from services.runtime.times import timestamp

EVENT_REFERENCES = 128
"""References to outbox rows that a task keeps: those of its newest revisions."""

_TEMPLATE_FIELDS = ("title", "description", "priority", "tags", "reminder_offsets")
_NEVER = 2**62

SortKey = tuple[int, int, int, str]
"""What a list is sorted by; the id makes it unique."""


def new_document(request: api.CreateTaskRequest, task_id: str, now: datetime) -> document_pb2.TaskDocument:
    """Make the task that a request describes."""
    document = document_pb2.TaskDocument(revision=1, incarnation=int(now.timestamp()))
    task = document.task
    task.id = task_id
    task.title, task.description, task.priority = request.title, request.description, request.priority
    task.tags.extend(request.tags)
    task.time_zone = request.time_zone or "UTC"
    task.status = task_pb2.TASK_STATUS_OPEN
    if request.HasField("due_time"):
        task.due_time.CopyFrom(whole_microseconds(request.due_time))
        task.reminder_offsets.extend(request.reminder_offsets)
    if request.HasField("recurrence"):
        task.recurrence.CopyFrom(request.recurrence)
        begin_series(task)
    if request.HasField("origin"):
        task.origin.CopyFrom(request.origin)
    task.create_time.CopyFrom(timestamp(now))
    task.update_time.CopyFrom(task.create_time)
    return document


def begin_series(task: task_pb2.Task) -> None:
    """Make this task the first occurrence of its rule."""
    previous = task.series.previous_task_id
    task.series.CopyFrom(
        task_pb2.Series(
            id=task.series.id or task.id,
            occurrence=1,
            occurrence_time=task.due_time,
            start_time=task.due_time,
            time_zone=task.time_zone,
            previous_task_id=previous,
        )
    )


def next_document(
    done: document_pb2.TaskDocument, task_id: str, occurrence: int, time: Timestamp, now: datetime
) -> document_pb2.TaskDocument:
    """Make the next occurrence of a series."""
    document = document_pb2.TaskDocument(revision=1, incarnation=int(now.timestamp()))
    task = document.task
    task.CopyFrom(done.task)
    if done.HasField("template"):
        copy_fields(done.template, task, _TEMPLATE_FIELDS)
    task.id = task_id
    task.status = task_pb2.TASK_STATUS_OPEN
    task.due_time.CopyFrom(time)
    task.time_zone = done.task.series.time_zone
    task.series.occurrence = occurrence
    task.series.occurrence_time.CopyFrom(time)
    task.series.previous_task_id = done.task.id
    task.series.next_task_id = ""
    task.ClearField("complete_time")
    task.create_time.CopyFrom(timestamp(now))
    task.update_time.CopyFrom(task.create_time)
    return document


def update(document: document_pb2.TaskDocument, request: api.UpdateTaskRequest) -> list[str]:
    """Change what a request names; gives which fields that were, as their contract names them."""
    task = document.task
    before = task_pb2.Task()
    before.CopyFrom(task)
    for name in ("title", "description", "priority"):
        if request.HasField(name):
            setattr(task, name, getattr(request, name))
    if request.HasField("tags"):
        task.ClearField("tags")
        task.tags.extend(request.tags.tags)
    if request.HasField("reminder_offsets"):
        task.ClearField("reminder_offsets")
        task.reminder_offsets.extend(request.reminder_offsets.reminder_offsets)
    if request.HasField("due"):
        task.time_zone = request.due.time_zone or task.time_zone
        task.ClearField("due_time")
        if request.due.HasField("due_time"):
            task.due_time.CopyFrom(whole_microseconds(request.due.due_time))
    names = ("title", "description", "priority", "tags", "due_time", "time_zone", "reminder_offsets")
    changed: list[str] = [name for name in names if getattr(task, name) != getattr(before, name)]
    if task.HasField("due_time") != before.HasField("due_time") and "due_time" not in changed:
        changed.append("due_time")  # It was, or is, 1970 to the second.
    _update_series(document, before, request, changed)
    return changed


def _update_series(
    document: document_pb2.TaskDocument, before: task_pb2.Task, request: api.UpdateTaskRequest, changed: list[str]
) -> None:
    task = document.task
    if request.HasField("recurrence"):
        if not request.recurrence.HasField("recurrence"):
            task.ClearField("recurrence")
            task.ClearField("series")
            document.ClearField("template")
        elif request.recurrence.recurrence != before.recurrence:
            task.recurrence.CopyFrom(request.recurrence.recurrence)
            begin_series(task)
        if task.HasField("recurrence") != before.HasField("recurrence") or task.recurrence != before.recurrence:
            changed.append("recurrence")
    if not before.HasField("recurrence") or not task.HasField("recurrence"):
        return
    if request.scope == api.EDIT_SCOPE_THIS:
        if not document.HasField("template"):
            document.template.SetInParent()
            copy_fields(before, document.template, _TEMPLATE_FIELDS)
        return
    if "due_time" in changed or "time_zone" in changed:
        task.series.occurrence_time.CopyFrom(task.due_time)
        task.series.start_time.CopyFrom(task.due_time)
        task.series.time_zone = task.time_zone
    if document.HasField("template"):
        copy_fields(task, document.template, [name for name in _TEMPLATE_FIELDS if name in changed])


def copy_fields(source: task_pb2.Task, target: task_pb2.Task, names: Iterable[str]) -> None:
    """Make some fields of a task like another's."""
    for name in names:
        target.ClearField(name)  # type: ignore[arg-type]
        if name in ("tags", "reminder_offsets"):
            getattr(target, name).extend(getattr(source, name))
        else:
            setattr(target, name, getattr(source, name))


def waits_for_next(task: task_pb2.Task) -> bool:
    """Tell whether a task, completed, is to be followed by another."""
    return task.HasField("recurrence") and not task.series.next_task_id


def whole_microseconds(stamp: Timestamp) -> Timestamp:
    """Cut a time to microseconds, which is what times are kept to."""
    return Timestamp(seconds=stamp.seconds, nanos=stamp.nanos // 1000 * 1000)


def microseconds(stamp: Timestamp) -> int:
    """Give a time as microseconds since 1970, the next one if it lies between two."""
    return int(stamp.seconds) * 1_000_000 + -(-int(stamp.nanos) // 1000)


def entry(document: document_pb2.TaskDocument) -> document_pb2.IndexEntry:
    """Write what the index keeps of a task."""
    task = document.task
    found = document_pb2.IndexEntry(
        task_id=task.id,
        create_time=microseconds(task.create_time),
        update_time=microseconds(task.update_time),
        priority=task.priority,
        tags=(tag_hash(tag) for tag in task.tags),
    )
    if task.HasField("due_time"):
        found.due_time = microseconds(task.due_time)
    end = document.delete_time if document.HasField("delete_time") else task.complete_time
    found.end_time = microseconds(end)
    return found


def tag_hash(tag: str) -> int:
    """Give what the index keeps of a tag."""
    return zlib.crc32(tag.encode())


class Filter:
    """What a list asks for."""

    def __init__(self, request: api.ListTasksRequest) -> None:
        """`request` has been validated."""
        self._status = request.status
        self._by_due = request.HasField("due_from") or request.HasField("due_before")
        self._due_from = microseconds(request.due_from) if request.HasField("due_from") else -_NEVER
        self._due_before = microseconds(request.due_before) if request.HasField("due_before") else _NEVER
        self._priorities = set(request.priorities)
        self._tags = set(request.tags)
        self._hashes = {tag_hash(tag) for tag in request.tags}
        self._words = fold(request.text).split()

    def may(self, one: document_pb2.IndexEntry) -> bool:
        """Tell whether the index does not rule a task out."""
        return (
            (not self._by_due or (one.HasField("due_time") and self._due_from <= one.due_time < self._due_before))
            and (not self._priorities or one.priority in self._priorities)
            and self._hashes <= set(one.tags)
        )

    def takes(self, document: document_pb2.TaskDocument) -> bool:
        """Tell whether a task is one of those asked for."""
        task = document.task
        if document.HasField("delete_time") or (self._status and task.status != self._status):
            return False
        if not self.may(entry(document)) or not self._tags <= set(task.tags):
            return False
        text = fold("\n".join((task.title, task.description, *task.tags))) if self._words else ""
        return all(word in text for word in self._words)


def fold(text: str) -> str:
    """Write text so that case and composed letters make no difference."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def sort_key(order: int, one: document_pb2.IndexEntry) -> SortKey:
    """Give an open task's place in a list: ascending keys are the order of the contract."""
    due = one.due_time if one.HasField("due_time") else _NEVER
    first, second = 0, 0
    if order == api.TASK_ORDER_DUE_TIME:
        first = due
    elif order == api.TASK_ORDER_PRIORITY:
        first, second = -one.priority, due
    elif order == api.TASK_ORDER_UPDATE_TIME:
        first = -one.update_time
    return first, second, -one.create_time, one.task_id


def completed_key(one: document_pb2.IndexEntry) -> SortKey:
    """Give a completed task's place within its bucket: last completed first."""
    return -one.end_time, 0, 0, one.task_id


def describe(document: document_pb2.TaskDocument) -> task_pb2.Task:
    """Write the task as callers see it."""
    task = task_pb2.Task()
    task.CopyFrom(document.task)
    task.etag = str(document.revision)
    return task


def refer(document: document_pb2.TaskDocument, reference: runtime_pb2.EventReference) -> None:
    """Note which outbox row tells of the task's revision."""
    document.events.append(reference)
    del document.events[:-EVENT_REFERENCES]


def tombstone(document: document_pb2.TaskDocument, now: datetime) -> document_pb2.TaskDocument:
    """Make what is left of a deleted task."""
    left = document_pb2.TaskDocument(
        revision=document.revision + 1, incarnation=document.incarnation, events=document.events
    )
    left.task.id = document.task.id
    left.task.create_time.CopyFrom(document.task.create_time)
    left.delete_time.CopyFrom(timestamp(now))
    return left


def touch(document: document_pb2.TaskDocument) -> Timestamp:
    """Take the next revision, now."""
    now = timestamp(datetime.now(UTC))
    document.revision += 1
    document.task.update_time.CopyFrom(now)
    return now
