"""The commands."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cli.mesh_commands import DataOption

if TYPE_CHECKING:
    from gaggle.audit.v1.audit_service_pb2 import RebuildResponse

app = typer.Typer(help="The log of everything that happened.", no_args_is_help=True)


@app.command(epilog="Examples: gaggle audit rebuild; gaggle audit rebuild --user ada")
def rebuild(
    user: Annotated[str, typer.Option("--user", "-u", help="Only this user's rows. Default: everyone's.")] = "",
    data: DataOption = None,
) -> None:
    """Make the read model again from the owners' state; the log is left as it is. Needs no downtime."""
    from cli.audit.client import connected

    console = Console(stderr=True)

    async def run() -> "RebuildResponse | None":
        last: RebuildResponse | None = None
        async with connected(data) as log:
            with console.status("Rebuilding") as status:
                async for last in log.rebuild(user):
                    status.update(f"{last.users} users, {last.conversations} conversations, {last.messages} messages")
        return last

    if made := asyncio.run(run()):
        console.print(
            f"Made again: {made.users} users, {made.conversations} conversations, {made.messages} messages, "
            f"{made.entities} recipes, executions, extensions and sessions "
            f"in {made.elapsed.ToMilliseconds() / 1000:.1f} s"
        )


@app.command(
    epilog="Examples: gaggle audit events --user ada; gaggle audit events --entity 0199... | jq .event.eventType"
)
def events(
    user: Annotated[str, typer.Option("--user", "-u", help="Whose. Default: everyone's, as an admin.")] = "",
    entity: Annotated[str, typer.Option(metavar="ID", help="Only those of one conversation, task, ...")] = "",
    event_type: Annotated[list[str] | None, typer.Option("--type", help="Only these types.")] = None,
    last: Annotated[int, typer.Option(min=1, max=1000, help="How many of the newest.")] = 50,
    data: DataOption = None,
) -> None:
    """Print the newest entries of the log, oldest of them first, one JSON object a line."""
    from cli.audit.client import connected

    async def run() -> list[str]:
        async with connected(data) as log:
            return await log.newest(last, user=user, entity=entity, event_types=event_type or [])

    for line in asyncio.run(run()):
        typer.echo(line)
