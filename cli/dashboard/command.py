"""`gaggle dashboard`."""

import asyncio
import secrets
import socket
import webbrowser
from typing import Annotated

import typer

from cli.errors import Refused
from cli.mesh.data import DataDirectory
from cli.mesh.ports import LOOPBACK
from cli.mesh_commands import DataOption

DEFAULT_PORT = 50100


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog="Examples: gaggle dashboard; gaggle dashboard --open; gaggle dashboard --port 0")(dashboard)


def dashboard(
    *,
    data: DataOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1. 0: any free one.")] = DEFAULT_PORT,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Serve a page about this machine's mesh: services, health, events, reminders, components, logs. Ends with Ctrl-C.

    The address that is printed has a token in it, and only those who have it are answered.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
        # From here on a visitor waits, and is not refused.
        listening.listen()
    except OSError as error:
        raise Refused(f"Something else listens on port {port}: choose another with --port (0 finds one).") from error
    token = secrets.token_urlsafe(24)
    address = f"http://{LOOPBACK}:{listening.getsockname()[1]}/?token={token}"
    typer.echo(address)
    if open_browser:
        webbrowser.open(address)
    asyncio.run(_serve(DataDirectory.at(data), listening, token))


async def _serve(data: DataDirectory, listening: socket.socket, token: str) -> None:
    # Needed by no other command.
    import uvicorn

    from cli.dashboard.collecting import Collector
    from cli.dashboard.web import make_app

    collector = Collector(data)
    config = uvicorn.Config(
        make_app(data, collector, token), log_level="warning", access_log=False, server_header=False, lifespan="off"
    )
    try:
        await uvicorn.Server(config).serve(sockets=[listening])
    finally:
        await collector.close()
