"""The command `gaggle watch`."""

import asyncio
import contextlib
import sys
from typing import Annotated

import typer

from cli.calling import (
    AddressOption,
    AppIdOption,
    JsonOption,
    TimeoutOption,
    TokenOption,
    UserOption,
    ViaOption,
)
from cli.mesh_commands import DataOption


def register(root: typer.Typer) -> None:
    """Adds `watch`."""
    root.command(
        epilog="Examples: gaggle watch; gaggle watch --type task --type notification; "
        "gaggle watch --after 4711 | jq .event.eventType"
    )(watch)


def watch(
    *,
    entity_type: Annotated[
        list[str] | None,
        typer.Option("--type", "-t", help="Only these: task, reminder, notification, conversation, execution, ..."),
    ] = None,
    after: Annotated[
        int | None, typer.Option(min=0, metavar="POSITION", help="First what came after this position; 0: everything.")
    ] = None,
    as_json: JsonOption = False,
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Show what happens to your things, as it happens, until Ctrl-C; into a pipe as JSON, a line each."""
    from cli.conversations.client import Target, connect
    from cli.watch.client import SERVICE
    from cli.watch.client import watch as watched
    from gaggle.sync.v1 import sync_service_pb2 as pb

    target = Target.find(data=data, address=address, via=via, app_id=app_id, user=user, token=token, service=SERVICE)
    request = pb.WatchRequest(entity_types=entity_type or [], after_position=after)
    for_person = sys.stdout.isatty() and not as_json

    async def run() -> None:
        from google.protobuf.json_format import MessageToJson

        from cli.watch.rendering import line

        async with connect(target, timeout_seconds=timeout) as client:
            async for response in watched(client, request, patience_seconds=timeout):
                if response.HasField("event"):
                    if for_person:
                        _print(line(response))
                    else:
                        typer.echo(MessageToJson(response, indent=None, ensure_ascii=False))
                elif response.HasField("caught_up") and for_person:
                    typer.echo(f"Watching from position {response.position}; Ctrl-C to leave.", err=True)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())


def _print(text: object) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text)
