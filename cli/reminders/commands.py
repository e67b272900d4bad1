"""The commands of `gaggle reminders`."""

import sys
import uuid
from datetime import UTC, datetime
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
)
from cli.errors import CommandError
from cli.mesh_commands import DataOption
from cli.tasks.times import NoTimeError, local_zone, read_span, read_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cli.conversations.client import Client

app = typer.Typer(
    help="List, put off and cancel reminders. `gaggle tasks add --remind` sets them.",
    epilog="Exit codes: 0 done; 1 the service refused, and stderr says why; 2 wrong usage; 3 no mesh answers.",
    no_args_is_help=True,
)

_PAGE = 200

TaskOption = Annotated[str, typer.Option("--task", metavar="ID", help="Of this task.")]


@app.command("list", epilog="Examples: gaggle reminders list; gaggle reminders list --task 0199... --all")
def list_reminders(
    *,
    task: TaskOption = "",
    everything: Annotated[
        bool, typer.Option("--all", help="Those that have fired, were cancelled or missed, too.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 100,
    as_json: JsonOption = False,
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """List reminders by time, soonest first: those that are to fire, unless asked otherwise."""

    async def work(client: "Client", stub: Any) -> None:
        found = await _all(client, stub, task, everything=everything)
        found.sort(key=lambda one: one.remind_at.ToNanoseconds())
        _show(found[:limit] if limit else found, as_json=as_json)

    _run(work, user, timeout, data, address, via, app_id, token)


@app.command(
    epilog='Examples: gaggle reminders snooze 0199... ; gaggle reminders snooze 0199... --until "tomorrow 9am"; '
    "gaggle reminders snooze 0199... --for 1d --with-task"
)
def snooze(
    reminder_id: Annotated[str, typer.Argument(metavar="ID", help="Of the reminder.")],
    *,
    span: Annotated[str, typer.Option("--for", metavar="SPAN", help="So long from now. Default: 10m.")] = "",
    until: Annotated[str, typer.Option(metavar="WHEN", help="2031-05-01 09:00, tomorrow 9am, today 17:30, +2h.")] = "",
    zone: Annotated[str, typer.Option(metavar="ZONE", help="IANA zone of --until. Default: this machine's.")] = "",
    with_task: Annotated[bool, typer.Option("--with-task", help="Put the task off by as much.")] = False,
    task: TaskOption = "",
    as_json: JsonOption = False,
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Put a reminder off, one that is to fire or has fired."""
    from gaggle.reminder.v1 import reminder_service_pb2 as pb

    if span and until:
        raise typer.BadParameter("say --for or --until", param_hint="--until")
    request = pb.SnoozeReminderRequest(request_id=f"cli-{uuid.uuid4()}", reminder_id=reminder_id, snooze_task=with_task)
    try:
        if until:
            request.until.FromDatetime(read_time(until, ZoneInfo(zone or local_zone()), datetime.now(UTC)))
        else:
            request.delay.FromTimedelta(read_span(span or "10m"))
    except (NoTimeError, OverflowError) as error:
        raise typer.BadParameter(str(error)) from None
    except (ValueError, OSError, KeyError):
        raise typer.BadParameter(f"{zone!r} is no IANA time zone", param_hint="--zone") from None

    async def work(client: "Client", stub: Any) -> None:
        request.task_id = task or await _task_of(client, stub, reminder_id)
        answer = await client.call(stub.SnoozeReminder, request, pb.SnoozeReminderResponse)
        _show([answer.reminder], as_json=as_json)

    _run(work, user, timeout, data, address, via, app_id, token)


@app.command(epilog="Examples: gaggle reminders cancel 0199... ; gaggle reminders cancel --task 0199...")
def cancel(
    reminder_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Of the reminders; with --task alone all of its.")
    ] = None,
    *,
    task: TaskOption = "",
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Cancel reminders; their tasks stay."""
    from gaggle.reminder.v1 import reminder_service_pb2 as pb

    if not reminder_ids and not task:
        raise typer.BadParameter("name reminders, or a task by --task", param_hint="ID")

    async def work(client: "Client", stub: Any) -> None:
        by_task: dict[str, list[str]] = {task: []} if task and not reminder_ids else {}
        for one in reminder_ids or []:
            by_task.setdefault(task or await _task_of(client, stub, one), []).append(one)
        for task_id, ids in by_task.items():
            request = pb.CancelRemindersRequest(request_id=f"cli-{uuid.uuid4()}", task_id=task_id, reminder_ids=ids)
            await client.call(stub.CancelReminders, request, pb.CancelRemindersResponse)

    _run(work, user, timeout, data, address, via, app_id, token)


async def _all(client: "Client", stub: Any, task: str, *, everything: bool) -> list[Any]:
    from gaggle.reminder.v1 import reminder_pb2
    from gaggle.reminder.v1 import reminder_service_pb2 as pb

    states = [one for one in reminder_pb2.ReminderState.values() if one] if everything else []
    request = pb.ListRemindersRequest(page_size=_PAGE, task_id=task, states=states)
    found: list[Any] = []
    while True:
        page = await client.call(stub.ListReminders, request, pb.ListRemindersResponse)
        found += page.reminders
        request.page_token = page.next_page_token
        if not request.page_token:
            return found


async def _task_of(client: "Client", stub: Any, reminder_id: str) -> str:
    """Find the task of a reminder. CommandError if the user has no such reminder."""
    for one in await _all(client, stub, "", everything=True):
        if one.id == reminder_id:
            return str(one.task_id)
    raise CommandError(f"there is no reminder {reminder_id!r}")


def _run(
    work: "Callable[[Client, Any], Awaitable[None]]",
    *where: *tuple[str, float, Path | None, str, str, str, str],
) -> None:
    from gaggle.reminder.v1.reminder_service_pb2_grpc import ReminderServiceStub

    call("reminder", ReminderServiceStub, work, where)


def _show(reminders: list[Any], *, as_json: bool) -> None:
    from google.protobuf.json_format import MessageToJson
    from rich.console import Console

    from cli.reminders.rendering import reminder_table

    if as_json:
        for one in reminders:
            typer.echo(MessageToJson(one, indent=None, ensure_ascii=False))
    elif reminders:
        width = Console().width if sys.stdout.isatty() else 200
        Console(highlight=False, width=width).print(reminder_table(reminders, width, datetime.now(UTC)))
    else:
        Console(stderr=True).print("No reminders.")
