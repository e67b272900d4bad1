"""The command `gaggle mcp`."""

import asyncio
from typing import Annotated

import typer

from cli.calling import TimeoutOption, TokenOption, UserOption
from cli.mesh_commands import DataOption
from cli.tasks.times import local_zone


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        help="Serve tasks as tools of the Model Context Protocol, on standard streams: add, list, complete, update and "
        "delete a task, set a reminder.",
        epilog="Examples: gaggle mcp; GAGGLE_TOKEN=... gaggle mcp --sidecar 127.0.0.1:50204 --zone Europe/Berlin. "
        "As an extension of the agent: gaggle extensions add tasks -- gaggle mcp --on-behalf",
    )(mcp)


def mcp(
    *,
    on_behalf: Annotated[
        bool,
        typer.Option("--on-behalf", help="Act for the user whose token comes with each call, as an extension does."),
    ] = False,
    zone: Annotated[
        str,
        typer.Option(
            envvar="GAGGLE_TIME_ZONE",
            metavar="ZONE",
            help="IANA zone in which times are meant. Default: this machine's; with --on-behalf, that of the user's "
            "notification preferences.",
        ),
    ] = "",
    user: UserOption = "",
    token: TokenOption = "",
    sidecar: Annotated[
        str,
        typer.Option(
            envvar="GAGGLE_SIDECAR_ADDRESS",
            metavar="HOST:PORT",
            help="Any sidecar of the mesh. Default: the services' own ports, as DATA/mesh.json says.",
        ),
    ] = "",
    suffix: Annotated[
        str, typer.Option("--app-id-suffix", envvar="GAGGLE_APP_ID_SUFFIX", help="What the mesh's app ids end in.")
    ] = "",
    data: DataOption = None,
    timeout: TimeoutOption = 10.0,
) -> None:
    """Serve the tools until the client leaves."""
    from cli.task_tools.mesh import Where
    from cli.task_tools.server import serve

    if on_behalf and (token or user):
        # A token of the environment would be somebody's, whoever calls.
        raise typer.BadParameter("goes without a user or token: each call brings its own", param_hint="--on-behalf")
    where = Where(data=data, sidecar=sidecar, suffix=suffix, user=user, token=token, on_behalf=on_behalf)
    asyncio.run(serve(where, zone or ("" if on_behalf else local_zone()), timeout))
