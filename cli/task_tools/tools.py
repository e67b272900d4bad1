"""The tools themselves, each a few calls of the mesh.

A task is named as people name it: by its id, by its title, or by a part of the title that no other open task has. A
call that says its id (`gaggle/call-id` in `_meta`) may be repeated and has one effect.
"""

import hashlib
import re
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult
from pydantic import Field

from cli.conversations.errors import ServiceRefusedError
from cli.errors import CommandError, NotRunning
from cli.task_tools.mesh import Peers, call_token
from cli.task_tools.times import read_long_span, read_when
from cli.task_tools.wording import line, listed, moment, said
from cli.tasks.times import NoTimeError
from gaggle.notification.v1 import notification_service_pb2 as notification_api
from gaggle.reminder.v1 import reminder_pb2
from gaggle.reminder.v1 import reminder_service_pb2 as reminder_api
from gaggle.task.v1 import task_pb2
from gaggle.task.v1 import task_service_pb2 as api

CALL_ID = "gaggle/call-id"
TOKEN = "gaggle/token"  # noqa: S105 - a name
"""Members of a call's `_meta`: its idempotency key, and the token of the user for whom it is made."""

_OPEN, _COMPLETED = task_pb2.TASK_STATUS_OPEN, task_pb2.TASK_STATUS_COMPLETED
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RULES = frozenset({"daily", "weekly", "monthly", "yearly"})
_BEFORE = re.compile(r"(?P<span>.+?)\s+(?:before|earlier|ahead)(?:\s.*)?", re.IGNORECASE)
_AT_DUE = frozenset({"when due", "at due time", "when it is due", "on time"})
_NONE = "none"
_MOST_SEARCH_WORDS = 16
_MOST_SEARCH_BYTES = 256
_CANDIDATES = 5
_DONE_BEFORE = frozenset({"ALREADY_EXISTS", "REQUEST_ID_REUSED"})


class Priority(StrEnum):
    """How pressing a task is."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    URGENT = "urgent"


class Status(StrEnum):
    """Which tasks are listed."""

    OPEN = "open"
    COMPLETED = "completed"
    ALL = "all"


class Order(StrEnum):
    """How open tasks are sorted."""

    CREATED = "created"
    DUE = "due"
    PRIORITY = "priority"


_PRIORITIES = list(Priority)
_ORDERS = {
    Order.CREATED: api.TASK_ORDER_CREATE_TIME,
    Order.DUE: api.TASK_ORDER_DUE_TIME,
    Order.PRIORITY: api.TASK_ORDER_PRIORITY,
}
_STATUSES = {
    Status.OPEN: _OPEN,
    Status.COMPLETED: _COMPLETED,
    Status.ALL: task_pb2.TASK_STATUS_UNSPECIFIED,
}

_WhichTask = Annotated[str, Field(description="The task: its id, its title, or a part of it that no other task has.")]
_When = Annotated[
    str,
    Field(
        description="A time as people say it: 'tomorrow 9am', 'next friday 17:30', 'in 2 hours', '2031-05-01 09:00'."
    ),
]
_Zone = Annotated[str, Field(description="IANA zone in which times are meant. Empty: the user's own.")]
_Spans = Annotated[list[str], Field(description="How long before the due time to remind: '10m', '2 hours', '1 day'.")]
_Repeat = Annotated[
    str, Field(description="daily, weekly, monthly, yearly, or an RRULE of RFC 5545: 'FREQ=MONTHLY;BYMONTHDAY=-1'.")
]


class TaskTools:
    """What a server of tasks offers."""

    def __init__(self, peers: Peers, zone: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """`zone`: in which times are meant where neither a call nor the user's preferences name one."""
        self._peers = peers
        self._zone = zone
        self._now = now

    async def add_task(
        self,
        title: Annotated[str, Field(description="What is to be done.")],
        ctx: Context,
        due: _When = "",
        description: Annotated[str, Field(description="More about it.")] = "",
        priority: Priority = Priority.NONE,
        tags: Annotated[list[str], Field(description="At most 20.")] = [],  # noqa: B006 - never changed
        remind_before: _Spans = [],  # noqa: B006 - never changed
        repeat: _Repeat = "",
        time_zone: _Zone = "",
    ) -> CallToolResult:
        """Add a task, with a due time, reminders and repetition if wanted."""
        call = _Call(ctx)
        zone = await self._user_zone(time_zone) if due else (time_zone or "UTC")
        request = api.CreateTaskRequest(
            request_id=call.request_id,
            task_id=call.request_id if call.repeatable else "",
            title=title,
            description=description,
            priority=_priority(priority),
            tags=tags,
            due_time=self._stamp(due, zone) if due else None,
            time_zone=zone,
            reminder_offsets=[_span(one) for one in remind_before],
            recurrence=task_pb2.Recurrence(rule=_rule(repeat)) if repeat else None,
        )
        try:
            task = (await self._ask("task", "CreateTask", request, api.CreateTaskResponse)).task
        except _RefusedError as refused:
            # "In two hours" is another time when the call is repeated: the first one counts.
            if not call.repeatable or refused.reason not in _DONE_BEFORE:
                raise
            task = await self._get(request.task_id)
        return said(f"Added {line(task)}.", task=task)

    async def list_tasks(
        self,
        ctx: Context,
        status: Status = Status.OPEN,
        text: Annotated[str, Field(description="Words that are in title, description or tags.")] = "",
        tags: Annotated[list[str], Field(description="All of these.")] = [],  # noqa: B006 - never changed
        due_from: Annotated[str, Field(description="Due then or later; as of add_task.")] = "",
        due_before: Annotated[str, Field(description="Due before then; as of add_task.")] = "",
        order: Order = Order.DUE,
        limit: Annotated[int, Field(ge=1, le=200)] = 50,
        time_zone: _Zone = "",
    ) -> CallToolResult:
        """List tasks: the open ones, due soonest first, unless asked otherwise."""
        _Call(ctx)
        zone = await self._user_zone(time_zone) if due_from or due_before else ""
        request = api.ListTasksRequest(
            page_size=limit,
            status=_STATUSES[status],
            text=text,
            tags=tags,
            order_by=_ORDERS[order],
            due_from=self._stamp(due_from, zone) if due_from else None,
            due_before=self._stamp(due_before, zone) if due_before else None,
        )
        tasks, more = await self._list(request, limit)
        if not tasks:
            return said("There are no such tasks." if text or tags or zone else "There are no tasks.", tasks=[])
        rest = "\nThere are more." if more else ""
        return said(f"{listed(tasks)}{rest}", tasks=tasks)

    async def complete_task(self, task: _WhichTask, ctx: Context) -> CallToolResult:
        """Complete a task. One that repeats comes again by itself."""
        call = _Call(ctx)
        found = await self._find(task, _OPEN, _COMPLETED)
        request = api.CompleteTaskRequest(request_id=call.request_id, task_id=found.id)
        await self._ask("task", "CompleteTask", request, api.CompleteTaskResponse)
        completed = await self._get(found.id)
        return said(f"Completed {line(completed)}.", task=completed)

    async def update_task(
        self,
        task: _WhichTask,
        ctx: Context,
        title: Annotated[str, Field(description="The new title; empty: as it is.")] = "",
        due: Annotated[str, Field(description="The new due time, as of add_task, or 'none'; empty: as it is.")] = "",
        description: Annotated[str | None, Field(description="The new description.")] = None,
        priority: Priority | None = None,
        tags: Annotated[list[str] | None, Field(description="These in place of the tags that it has.")] = None,
        remind_before: Annotated[
            list[str] | None, Field(description="These in place of the reminders that it has; as of add_task.")
        ] = None,
        repeat: Annotated[str, Field(description="As of add_task, or 'none'; empty: as it is.")] = "",
        only_this: Annotated[  # noqa: FBT002 - tools are called by name
            bool, Field(description="Of a task that repeats, this occurrence alone.")
        ] = False,
        time_zone: _Zone = "",
    ) -> CallToolResult:
        """Change a task: what is named, and nothing else."""
        call = _Call(ctx)
        found = await self._find(task, _OPEN, _COMPLETED)
        request = api.UpdateTaskRequest(
            request_id=call.request_id,
            task_id=found.id,
            title=title or None,
            description=description,
            priority=None if priority is None else _priority(priority),
            scope=api.EDIT_SCOPE_THIS if only_this else api.EDIT_SCOPE_FOLLOWING,
        )
        if due:
            request.due.SetInParent()
            if due.strip().lower() != _NONE:
                zone = await self._user_zone(time_zone)
                request.due.due_time.CopyFrom(self._stamp(due, zone))
                request.due.time_zone = zone
        if tags is not None:
            request.tags.SetInParent()
            request.tags.tags.extend(tags)
        if remind_before is not None:
            request.reminder_offsets.SetInParent()
            request.reminder_offsets.reminder_offsets.extend(_span(one) for one in remind_before)
        if repeat:
            request.recurrence.SetInParent()
            if repeat.strip().lower() != _NONE:
                request.recurrence.recurrence.rule = _rule(repeat)
        try:
            await self._ask("task", "UpdateTask", request, api.UpdateTaskResponse)
        except _RefusedError as refused:
            if not call.repeatable or refused.reason not in _DONE_BEFORE:
                raise
        updated = await self._get(found.id)
        return said(f"Updated {line(updated)}.", task=updated)

    async def delete_task(self, task: _WhichTask, ctx: Context) -> CallToolResult:
        """Delete a task for good. One that repeats does not come again."""
        call = _Call(ctx)
        found = await self._find(task, _OPEN, _COMPLETED)
        request = api.DeleteTaskRequest(request_id=call.request_id, task_id=found.id)
        await self._ask("task", "DeleteTask", request, api.DeleteTaskResponse)
        return said(f"Deleted {line(found)}.", task=found)

    async def set_reminder(
        self,
        task: _WhichTask,
        when: Annotated[
            str, Field(description="'10 minutes before', 'when due', or a time: 'tomorrow 8am', '2031-05-01 09:00'.")
        ],
        ctx: Context,
        time_zone: _Zone = "",
    ) -> CallToolResult:
        """Set a reminder for a task, so long before it is due or at a time of its own."""
        call = _Call(ctx)
        found = await self._find(task, _OPEN)
        words = " ".join(when.split())
        wanted = reminder_pb2.ReminderTime()
        if words.lower() in _AT_DUE:
            wanted.before_due.SetInParent()
        elif match := _BEFORE.fullmatch(words):
            wanted.before_due.CopyFrom(_span(match["span"]))
        else:
            wanted.at.CopyFrom(self._stamp(words, await self._user_zone(time_zone)))
        request = reminder_api.ScheduleRemindersRequest(
            request_id=call.request_id, task_id=found.id, reminders=[wanted]
        )
        try:
            given = await self._ask("reminder", "ScheduleReminders", request, reminder_api.ScheduleRemindersResponse)
        except _RefusedError as refused:
            if not call.repeatable or refused.reason not in _DONE_BEFORE:
                raise
            asked = reminder_api.ListRemindersRequest(task_id=found.id)
            given = await self._ask("reminder", "ListReminders", asked, reminder_api.ListRemindersResponse)
            if not given.reminders:
                return said(f'The reminder of "{found.title}" has been set, and fired.', task=found)
        reminder = given.reminders[0]
        at = moment(reminder.remind_at, reminder.time_zone)
        return said(f'Reminder of "{found.title}" set for {at}.', reminder=reminder, task=found)

    # -- the mesh

    async def _ask(self, service: str, method: str, request: Any, answer: type[Any]) -> Any:
        """Call the mesh; what it refuses, the model is told. Raises ToolError."""
        try:
            return await self._peers.ask(service, method, request, answer)
        except ServiceRefusedError as error:
            raise _RefusedError(str(error), error.failure.reason) from error
        except CommandError as error:
            raise ToolError(str(error)) from error

    async def _get(self, task_id: str) -> task_pb2.Task:
        request = api.GetTaskRequest(task_id=task_id)
        task: task_pb2.Task = (await self._ask("task", "GetTask", request, api.GetTaskResponse)).task
        return task

    async def _list(self, request: api.ListTasksRequest, limit: int) -> tuple[list[task_pb2.Task], bool]:
        """Read at most so many, and whether there are more. A page may be short, or empty, before the list ends."""
        tasks: list[task_pb2.Task] = []
        while True:
            page = await self._ask("task", "ListTasks", request, api.ListTasksResponse)
            tasks += page.tasks
            request.page_token = page.next_page_token
            if not request.page_token or len(tasks) >= limit:
                return tasks[:limit], bool(request.page_token) or len(tasks) > limit

    async def _find(self, named: str, *statuses: "task_pb2.TaskStatus.ValueType") -> task_pb2.Task:
        """Find the one task that is meant, in the first state that has one. Raises ToolError."""
        wanted = " ".join(named.split())
        if not wanted:
            raise ToolError("Say which task.")
        if _ID.fullmatch(wanted):
            try:
                return await self._get(wanted)
            except _RefusedError as refused:
                if refused.reason != "NOT_FOUND":
                    raise
        for status in statuses:
            request = api.ListTasksRequest(page_size=200, status=status, text=_search(wanted))
            tasks, _ = await self._list(request, 200)
            if found := _meant(wanted, tasks):
                if len(found) > 1:
                    raise ToolError(f"Which one? Name it by its id:\n{listed(found[:_CANDIDATES])}")
                return found[0]
        state = "open task" if statuses == (_OPEN,) else "task"
        raise ToolError(f'There is no {state} "{wanted}".')

    # -- times

    async def _user_zone(self, named: str) -> str:
        """Give the zone in which the user's times are meant. Raises ToolError."""
        zone = named or self._zone or await self._preferred_zone()
        try:
            return ZoneInfo(zone).key
        except (ValueError, OSError, KeyError):
            raise ToolError(f"{zone!r} is no IANA time zone.") from None

    async def _preferred_zone(self) -> str:
        try:
            request = notification_api.GetPreferencesRequest()
            given = await self._peers.ask(
                "notification", "GetPreferences", request, notification_api.GetPreferencesResponse
            )
        except NotRunning as error:
            if not self._peers.has("notification"):
                return "UTC"
            raise ToolError(f"The user's time zone can't be had now, so name one: {error}") from error
        except CommandError as error:
            raise ToolError(f"The user's time zone can't be had, so name one: {error}") from error
        return str(given.preferences.time_zone)

    def _stamp(self, text: str, zone: str) -> Timestamp:
        stamp = Timestamp()
        try:
            stamp.FromDatetime(read_when(text, ZoneInfo(zone), self._now()))
        except (NoTimeError, OverflowError, ValueError) as error:
            raise ToolError(str(error)) from None
        return stamp


class _Call:
    """What a call brings along: its idempotency key, and its user's token, which is noted for what it calls."""

    def __init__(self, ctx: Context) -> None:
        meta: Any = ctx.request_context.meta or {}
        call_id = str(meta.get(CALL_ID) or "")
        call_token.set(str(meta.get(TOKEN) or ""))
        self.repeatable = bool(call_id)
        digest = hashlib.blake2b(call_id.encode(), digest_size=16).hexdigest()
        self.request_id = f"mcp-{digest}" if call_id else f"mcp-{uuid.uuid4()}"


class _RefusedError(ToolError):
    """A service said no."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


def _meant(wanted: str, tasks: Sequence[task_pb2.Task]) -> list[task_pb2.Task]:
    """Those whose title it is, else those whose title begins with it, else those whose title has it."""
    key = wanted.casefold()
    titles = [" ".join(one.title.split()).casefold() for one in tasks]
    tests: tuple[Callable[[str], bool], ...] = (
        key.__eq__,
        lambda title: title.startswith(key),
        lambda title: key in title,
    )
    for test in tests:
        if found := [one for one, title in zip(tasks, titles, strict=True) if test(title)]:
            return found
    return []


def _search(wanted: str) -> str:
    """Cut a title to what the service searches for."""
    words: list[str] = []
    size = 0
    for word in wanted.split()[:_MOST_SEARCH_WORDS]:
        size += len(word.encode()) + 1
        if size > _MOST_SEARCH_BYTES:
            break
        words.append(word)
    return " ".join(words)


def _priority(priority: Priority) -> "task_pb2.TaskPriority.ValueType":
    return _PRIORITIES.index(priority)  # type: ignore[return-value]


def _rule(text: str) -> str:
    return f"FREQ={text.strip().upper()}" if text.strip().lower() in _RULES else text.strip()


def _span(text: str) -> Duration:
    span = Duration()
    try:
        span.FromTimedelta(read_long_span(text))
    except (NoTimeError, OverflowError) as error:
        raise ToolError(str(error)) from None
    return span
