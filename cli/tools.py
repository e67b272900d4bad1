"""`gaggle tools`: programs that the mesh, its tests and its bench run, found or built, and where they are."""

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from cli.binaries.dapr import dapr_binaries
from cli.binaries.tools import tool
from cli.progress import build_progress


class Tool(StrEnum):
    """What can be asked for."""

    DAPR = "dapr"
    GRPCURL = "grpcurl"
    GHZ = "ghz"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog='Example: "$(gaggle tools grpcurl)" -plaintext 127.0.0.1:50101 list')(tools)


def tools(name: Annotated[Tool, typer.Argument(help="Which program.")]) -> None:
    """Print the path of a program (for dapr: of daprd), building it from its pinned source if it is not there yet."""
    progress = build_progress(Console(stderr=True))
    typer.echo(dapr_binaries(progress).daprd if name is Tool.DAPR else tool(name.value, progress))
