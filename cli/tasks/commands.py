"""The commands of `gaggle tasks`."""

import sys
import uuid
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from cli.calling import (
    AddressOption,
    AppIdOption,
    JsonOption,
    TimeoutOption,
    TokenOption,
    UserOption,
    ViaOption,
    call,
    print_json,
)
from cli.mesh_commands import DataOption
from cli.tasks.times import NoTimeError, local_zone, read_span, read_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from cli.conversations.client import Client

app = typer.Typer(
    help="Add, list, complete, change and remove tasks.",
    epilog="Exit codes: 0 done; 1 the service refused, and stderr says why; 2 wrong usage; 3 no mesh answers.",
    no_args_is_help=True,
)


class Priority(StrEnum):
    """How pressing a task is."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    URGENT = "urgent"


class Order(StrEnum):
    """How open tasks are sorted."""

    CREATED = "created"
    DUE = "due"
    PRIORITY = "priority"
    CHANGED = "changed"


_ORDERS = {Order.CREATED: 1, Order.DUE: 2, Order.PRIORITY: 3, Order.CHANGED: 4}
_PRIORITIES = list(Priority)
_RULES = {"daily", "weekly", "monthly", "yearly"}
_NOTHING = "none"

DueOption = Annotated[
    str, typer.Option(metavar="WHEN", help="2031-05-01 09:00, 2031-05-01 (at 9), tomorrow 9am, today 17:30, +2h.")
]
ZoneOption = Annotated[str, typer.Option(metavar="ZONE", help="IANA zone of the wall clock. Default: this machine's.")]
RemindOption = Annotated[
    list[str] | None, typer.Option("--remind", metavar="SPAN", help="So long before: 10m, 2h, 1d. Repeatable.")
]
RepeatOption = Annotated[
    str,
    typer.Option(metavar="RULE", help="daily, weekly, monthly, yearly, or an RRULE: FREQ=MONTHLY;BYMONTHDAY=-1."),
]
TagOption = Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="Repeatable.")]
IdArgument = Annotated[list[str], typer.Argument(metavar="ID", help="Of the tasks.")]


@app.command(
    epilog='Examples: gaggle tasks add "Water the plants" --due "tomorrow 9am" --remind 10m --repeat daily; '
    'gaggle tasks add "Pay rent" --due 2031-01-31 --repeat "FREQ=MONTHLY;BYMONTHDAY=-1"'
)
def add(
    title: Annotated[str, typer.Argument(help="What is to be done.")],
    *,
    due: DueOption = "",
    zone: ZoneOption = "",
    description: Annotated[str, typer.Option("--description", "-d", help="More about it.")] = "",
    priority: Annotated[Priority, typer.Option("--priority", "-p")] = Priority.NONE,
    tag: TagOption = None,
    remind: RemindOption = None,
    repeat: RepeatOption = "",
    task_id: Annotated[str, typer.Option("--id", help="An id of your own. Default: the server's.")] = "",
    as_json: JsonOption = False,
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Add a task; prints its id."""
    from gaggle.task.v1 import task_pb2
    from gaggle.task.v1 import task_service_pb2 as pb

    zone = zone or local_zone()
    request = pb.CreateTaskRequest(
        request_id=_request_id(),
        task_id=task_id,
        title=title,
        description=description,
        priority=_PRIORITIES.index(priority),  # type: ignore[arg-type]
        tags=tag or [],
        due_time=_due(due, zone) if due else None,
        time_zone=zone,
        reminder_offsets=_spans(remind or []),
        recurrence=task_pb2.Recurrence(rule=_rule(repeat)) if repeat else None,
    )

    async def work(client: "Client", stub: Any) -> None:
        task = (await client.call(stub.CreateTask, request, pb.CreateTaskResponse)).task
        if as_json:
            print_json(task)
        else:
            typer.echo(task.id)

    _run(work, user, timeout, data, address, via, app_id, token)


@app.command(
    "list", epilog="Examples: gaggle tasks list; gaggle tasks list --by due --tag home; gaggle tasks list --done"
)
def list_tasks(
    *,
    done: Annotated[bool, typer.Option("--done", help="Completed ones, last completed first.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Open ones, then completed ones.")] = False,
    by: Annotated[Order, typer.Option(help="Order of the open ones.")] = Order.CREATED,
    tag: TagOption = None,
    priority: Annotated[list[Priority] | None, typer.Option("--priority", "-p", help="Any of these.")] = None,
    due_from: Annotated[str, typer.Option(metavar="WHEN", help="Due then or later.")] = "",
    due_before: Annotated[str, typer.Option(metavar="WHEN", help="Due before then.")] = "",
    text: Annotated[str, typer.Option(help="Words of title, description or tags.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 50,
    zone: ZoneOption = "",
    as_json: JsonOption = False,
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """List tasks: the open ones, unless asked otherwise."""
    from gaggle.task.v1 import task_pb2
    from gaggle.task.v1 import task_service_pb2 as pb

    zone = zone or local_zone()
    status = task_pb2.TASK_STATUS_COMPLETED if done else task_pb2.TASK_STATUS_OPEN
    request = pb.ListTasksRequest(
        page_size=min(limit or 200, 200),
        status=task_pb2.TASK_STATUS_UNSPECIFIED if everything else status,
        order_by=_ORDERS[by],  # type: ignore[arg-type]
        tags=tag or [],
        priorities=[_PRIORITIES.index(one) for one in priority or []],  # type: ignore[misc]
        due_from=_due(due_from, zone) if due_from else None,
        due_before=_due(due_before, zone) if due_before else None,
        text=text,
    )

    async def work(client: "Client", stub: Any) -> None:
        found: list[Any] = []
        while True:
            page = await client.call(stub.ListTasks, request, pb.ListTasksResponse)
            found += page.tasks
            request.page_token = page.next_page_token
            if not request.page_token or (limit and len(found) >= limit):
                break
        _show(found[:limit] if limit else found, as_json=as_json)

    _run(work, user, timeout, data, address, via, app_id, token)


@app.command(epilog="Example: gaggle tasks done 0199...")
def done(
    task_ids: IdArgument,
    *,
    undo: Annotated[bool, typer.Option("--undo", help="Open them again.")] = False,
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Complete tasks, or open them again."""
    from gaggle.task.v1 import task_service_pb2 as pb

    async def work(client: "Client", stub: Any) -> None:
        for task_id in task_ids:
            if undo:
                reopen = pb.ReopenTaskRequest(request_id=_request_id(), task_id=task_id)
                await client.call(stub.ReopenTask, reopen, pb.ReopenTaskResponse)
            else:
                complete = pb.CompleteTaskRequest(request_id=_request_id(), task_id=task_id)
                await client.call(stub.CompleteTask, complete, pb.CompleteTaskResponse)

    _run(work, user, timeout, data, address, via, app_id, token)


@app.command(
    epilog='Examples: gaggle tasks edit 0199... --due "tomorrow 9am" --only-this; gaggle tasks edit 0199... --due none'
)
def edit(
    task_id: Annotated[str, typer.Argument(metavar="ID", help="Of the task.")],
    *,
    title: Annotated[str | None, typer.Option(help="What is to be done.")] = None,
    due: DueOption = "",
    zone: ZoneOption = "",
    description: Annotated[str | None, typer.Option("--description", "-d", help="More about it.")] = None,
    priority: Annotated[Priority | None, typer.Option("--priority", "-p")] = None,
    tag: TagOption = None,
    remind: RemindOption = None,
    repeat: RepeatOption = "",
    only_this: Annotated[
        bool, typer.Option("--only-this", help="Of a task that repeats, this occurrence alone.")
    ] = False,
    etag: Annotated[str, typer.Option(help="Refuse if the task has changed since it had this.")] = "",
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Change what is named; `none` takes due time, tags, reminders or repetition away."""
    from gaggle.task.v1 import task_service_pb2 as pb

    request = pb.UpdateTaskRequest(
        request_id=_request_id(),
        task_id=task_id,
        etag=etag,
        title=title,
        description=description,
        priority=None if priority is None else _PRIORITIES.index(priority),  # type: ignore[arg-type]
        scope=pb.EDIT_SCOPE_THIS if only_this else pb.EDIT_SCOPE_FOLLOWING,
    )
    if due:
        request.due.SetInParent()
        if due != _NOTHING:
            request.due.due_time.CopyFrom(_due(due, zone or local_zone()))
            request.due.time_zone = zone or local_zone()
    elif zone:
        raise typer.BadParameter("goes with --due", param_hint="--zone")
    if tag:
        request.tags.tags.extend([] if tag == [_NOTHING] else tag)
        request.tags.SetInParent()
    if remind:
        request.reminder_offsets.reminder_offsets.extend([] if remind == [_NOTHING] else _spans(remind))
        request.reminder_offsets.SetInParent()
    if repeat:
        request.recurrence.SetInParent()
        if repeat != _NOTHING:
            request.recurrence.recurrence.rule = _rule(repeat)

    async def work(client: "Client", stub: Any) -> None:
        await client.call(stub.UpdateTask, request, pb.UpdateTaskResponse)

    _run(work, user, timeout, data, address, via, app_id, token)


@app.command(epilog="Example: gaggle tasks rm 0199...")
def rm(
    task_ids: IdArgument,
    *,
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Remove tasks for good; one that repeats does not come again."""
    from gaggle.task.v1 import task_service_pb2 as pb

    async def work(client: "Client", stub: Any) -> None:
        for task_id in task_ids:
            request = pb.DeleteTaskRequest(request_id=_request_id(), task_id=task_id)
            await client.call(stub.DeleteTask, request, pb.DeleteTaskResponse)

    _run(work, user, timeout, data, address, via, app_id, token)


def _run(
    work: "Callable[[Client, Any], Awaitable[None]]",
    *where: *tuple[str, float, Path | None, str, str, str, str],
) -> None:
    from gaggle.task.v1.task_service_pb2_grpc import TaskServiceStub

    call("task", TaskServiceStub, work, where)


def _show(tasks: list[Any], *, as_json: bool) -> None:
    from rich.console import Console

    from cli.tasks.rendering import task_table

    if as_json:
        for task in tasks:
            print_json(task)
    elif tasks:
        console = Console(highlight=False)
        width = console.width if sys.stdout.isatty() else 200
        Console(highlight=False, width=width).print(task_table(tasks, width, datetime.now(UTC)))
    else:
        Console(stderr=True).print("No tasks.")


def _due(text: str, zone: str) -> "Timestamp":
    from google.protobuf.timestamp_pb2 import Timestamp

    try:
        place = ZoneInfo(zone)
    except (ValueError, OSError, KeyError):
        raise typer.BadParameter(f"{zone!r} is no IANA time zone", param_hint="--zone") from None
    stamp = Timestamp()
    try:
        stamp.FromDatetime(read_time(text, place, datetime.now(UTC)))
    except (NoTimeError, OverflowError) as error:
        raise typer.BadParameter(str(error)) from None
    return stamp


def _spans(texts: list[str]) -> "list[Duration]":
    from google.protobuf.duration_pb2 import Duration

    found = []
    for text in texts:
        span = Duration()
        try:
            span.FromTimedelta(read_span(text))
        except NoTimeError as error:
            raise typer.BadParameter(str(error), param_hint="--remind") from None
        found.append(span)
    return found


def _rule(text: str) -> str:
    return f"FREQ={text.upper()}" if text.lower() in _RULES else text


def _request_id() -> str:
    return f"cli-{uuid.uuid4()}"
