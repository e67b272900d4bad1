"""The commands of `gaggle notifications`."""

import sys
import uuid
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cli.conversations.client import Client
    from gaggle.notification.v1 import notification_service_pb2 as pb

app = typer.Typer(
    help="Read what you were told, and say how you want to be told.",
    epilog="Exit codes: 0 done; 1 the service refused, and stderr says why; 2 wrong usage; 3 no mesh answers.",
    invoke_without_command=True,
)

_MOST = 200
_NOTHING = "none"


class Kind(StrEnum):
    """What one can be told of."""

    REMINDER_DUE = "reminder_due"
    RECIPE_COMPLETED = "recipe_completed"
    RECIPE_FAILED = "recipe_failed"
    APPROVAL_WAITING = "approval_waiting"
    TASK_ASSIGNED = "task_assigned"
    MESSAGE = "message"


_KINDS = list(Kind)


@app.callback()
def inbox(context: typer.Context) -> None:
    """Read what you were told, and say how you want to be told. Without a command: the inbox."""
    if context.invoked_subcommand is None:
        list_notifications()


@app.command(
    "list",
    epilog="Examples: gaggle notifications; gaggle notifications list; gaggle notifications list --unread --json",
)
def list_notifications(
    *,
    unread: Annotated[bool, typer.Option("--unread", help="Only what is not read.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 50,
    as_json: JsonOption = False,
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """List the inbox, newest first."""
    from gaggle.notification.v1 import notification_service_pb2 as pb

    request = pb.ListNotificationsRequest(page_size=min(limit or _MOST, _MOST), unread_only=unread)

    async def work(client: "Client", stub: Any) -> None:
        found: list[Any] = []
        while True:
            page = await client.call(stub.ListNotifications, request, pb.ListNotificationsResponse)
            found += page.notifications
            request.page_token = page.next_page_token
            if not request.page_token or (limit and len(found) >= limit):
                break
        _show(found[:limit] if limit else found, as_json=as_json)

    _run(work, user, timeout, data, address, via, app_id, token)


@app.command(epilog="Examples: gaggle notifications read 0199...; gaggle notifications read --all")
def read(
    notification_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Of notifications.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All there are.")] = False,
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Mark as read; prints how many are left."""
    from gaggle.notification.v1 import notification_service_pb2 as pb

    if bool(notification_ids) == everything:
        raise typer.BadParameter("name notifications, or say --all", param_hint="ID")
    request = pb.MarkReadRequest(request_id=_request_id(), notification_ids=notification_ids or [], all=everything)

    async def work(client: "Client", stub: Any) -> None:
        typer.echo((await client.call(stub.MarkRead, request, pb.MarkReadResponse)).unread_count)

    _run(work, user, timeout, data, address, via, app_id, token)


@app.command(epilog="Example: gaggle notifications unsubscribe aW4gYW4gZS1tYWls")
def unsubscribe(
    unsubscribe_token: Annotated[
        str,
        typer.Argument(metavar="TOKEN", help="From an e-mail's List-Unsubscribe, or the mail that it brought about."),
    ],
    *,
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
) -> None:
    """End the e-mail of whoever got that token: for the mailbox to which unsubscribing goes."""
    from gaggle.notification.v1 import notification_service_pb2 as pb

    request = pb.UnsubscribeRequest(token=unsubscribe_token)

    async def work(client: "Client", stub: Any) -> None:
        await client.call(stub.Unsubscribe, request, pb.UnsubscribeResponse)

    _run(work, "", timeout, data, address, via, app_id, "")


@app.command(
    epilog="Examples: gaggle notifications preferences; gaggle notifications preferences --email ann@example.org "
    "--quiet 22:00-07:00 --zone Europe/Berlin; gaggle notifications preferences --digest 08:00 --mute recipe_completed"
)
def preferences(
    *,
    email: Annotated[str, typer.Option(metavar="MAILBOX", help="Where e-mail goes; none: nowhere.")] = "",
    webhook: Annotated[str, typer.Option(metavar="URL", help="What is told by POST; none: nothing.")] = "",
    secret: Annotated[
        str, typer.Option(envvar="GAGGLE_WEBHOOK_SECRET", help="What signs it: 24 to 128 bytes.", show_envvar=True)
    ] = "",
    quiet: Annotated[str, typer.Option(metavar="FROM-TO", help="Quiet hours, 22:00-07:00; none: none.")] = "",
    exempt: Annotated[list[Kind] | None, typer.Option(help="Not held back by quiet hours. Repeatable.")] = None,
    digest: Annotated[
        list[str] | None, typer.Option(metavar="TIME", help="Gather e-mail until then: 08:00; none: no. Repeatable.")
    ] = None,
    zone: Annotated[str, typer.Option(metavar="ZONE", help="IANA zone of all of these.")] = "",
    mute: Annotated[list[Kind] | None, typer.Option(help="Tell nothing of this kind. Repeatable.")] = None,
    unmute: Annotated[list[Kind] | None, typer.Option(help="Tell of this kind, by every way. Repeatable.")] = None,
    etag: Annotated[str, typer.Option(help="Refuse if they have changed since they had this.")] = "",
    as_json: JsonOption = False,
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Show how you are told, after changing what is named."""
    from gaggle.notification.v1 import notification_service_pb2 as pb

    wanted = _Wanted(email, webhook, secret, quiet, exempt or [], digest or [], zone, mute or [], unmute or [])
    request = pb.SetPreferencesRequest(etag=etag)
    _fill(request, wanted)
    changes = request.SerializeToString() != pb.SetPreferencesRequest(etag=etag).SerializeToString()

    async def work(client: "Client", stub: Any) -> None:
        if changes:
            request.request_id = _request_id()
            found = (await client.call(stub.SetPreferences, request, pb.SetPreferencesResponse)).preferences
        else:
            asked = pb.GetPreferencesRequest()
            found = (await client.call(stub.GetPreferences, asked, pb.GetPreferencesResponse)).preferences
        if as_json:
            print_json(found)
        else:
            from cli.notifications.rendering import preference_lines

            typer.echo("\n".join(preference_lines(found)))

    _run(work, user, timeout, data, address, via, app_id, token)


@app.command(epilog='Example: gaggle notifications parked --token "$(gaggle token ops --role admin)"')
def parked(
    *,
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 100,
    as_json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """List deliveries that were given up, oldest first; an admin's."""
    from gaggle.notification.v1 import notification_service_pb2 as pb

    request = pb.ListParkedRequest(page_size=_MOST)

    async def work(client: "Client", stub: Any) -> None:
        found: list[Any] = []
        while True:
            page = await client.call(stub.ListParked, request, pb.ListParkedResponse)
            found += page.parked
            request.page_token = page.next_page_token
            if not request.page_token or (limit and len(found) >= limit):
                break
        _show_parked(found[:limit] if limit else found, as_json=as_json)

    _run(work, "", timeout, data, address, via, app_id, token)


@app.command(epilog='Example: gaggle notifications redrive --all --token "$(gaggle token ops --role admin)"')
def redrive(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Of parked deliveries.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="The oldest hundred.")] = False,
    timeout: TimeoutOption = 30.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Have parked deliveries tried again; prints their ids. An admin's."""
    from gaggle.notification.v1 import notification_service_pb2 as pb

    if bool(ids) == everything:
        raise typer.BadParameter("name parked deliveries, or say --all", param_hint="ID")
    request = pb.RedriveParkedRequest(ids=ids or [], all=everything)

    async def work(client: "Client", stub: Any) -> None:
        for one in (await client.call(stub.RedriveParked, request, pb.RedriveParkedResponse)).ids:
            typer.echo(one)

    _run(work, "", timeout, data, address, via, app_id, token)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to be changed, as it was typed."""

    email: str
    webhook: str
    secret: str
    quiet: str
    exempt: list[Kind]
    digest: list[str]
    zone: str
    mute: list[Kind]
    unmute: list[Kind]


def _fill(request: "pb.SetPreferencesRequest", wanted: _Wanted) -> None:
    if wanted.email:
        request.email_address = "" if wanted.email == _NOTHING else wanted.email
    if wanted.zone:
        request.time_zone = wanted.zone
    if wanted.webhook:
        request.webhook.SetInParent()
        if wanted.webhook != _NOTHING:
            request.webhook.url, request.webhook.secret = wanted.webhook, wanted.secret
    if wanted.exempt and wanted.quiet in {"", _NOTHING}:
        raise typer.BadParameter("goes with --quiet", param_hint="--exempt")
    if wanted.quiet:
        start, _, end = ("", "", "") if wanted.quiet == _NOTHING else wanted.quiet.partition("-")
        request.quiet_hours.SetInParent()
        request.quiet_hours.start, request.quiet_hours.end = start.strip(), end.strip()
        request.quiet_hours.exempt_kinds.extend(map(_number, wanted.exempt))
    if wanted.digest:
        request.digest.SetInParent()
        request.digest.times_of_day.extend([] if wanted.digest == [_NOTHING] else wanted.digest)
    for one in wanted.mute:
        request.kinds.add(kind=_number(one), muted=True)
    for one in wanted.unmute:
        request.kinds.add(kind=_number(one), email=True, webhook=True)


def _run(
    work: "Callable[[Client, Any], Awaitable[None]]",
    *where: *tuple[str, float, Path | None, str, str, str, str],
) -> None:
    from gaggle.notification.v1.notification_service_pb2_grpc import NotificationServiceStub

    call("notification", NotificationServiceStub, work, where)


def _show(notifications: list[Any], *, as_json: bool) -> None:
    from cli.notifications.rendering import notification_table

    _print(notifications, notification_table, "No notifications.", as_json=as_json)


def _show_parked(found: list[Any], *, as_json: bool) -> None:
    from cli.notifications.rendering import parked_table

    _print(found, parked_table, "Nothing is parked.", as_json=as_json)


def _print(found: list[Any], table: "Callable[[list[Any], int], Any]", nothing: str, *, as_json: bool) -> None:
    from rich.console import Console

    if as_json:
        for one in found:
            print_json(one)
    elif found:
        width = Console().width if sys.stdout.isatty() else 200
        Console(highlight=False, width=width).print(table(found, width))
    else:
        Console(stderr=True).print(nothing)


def _number(kind: Kind) -> Any:
    return _KINDS.index(kind) + 1


def _request_id() -> str:
    return f"cli-{uuid.uuid4()}"
