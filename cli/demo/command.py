"""The command `gaggle demo`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.mesh.data import PROJECT_ROOT
from cli.mesh_commands import DataOption

_LOCOMO = Path("shared/data/locomo")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog="Examples: gaggle demo; gaggle demo --locomo ~/locomo --reads 1000")(demo)


def demo(
    *,
    data: DataOption = None,
    user: Annotated[str, typer.Option(help="In whose name.")] = "demo",
    locomo: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Import a dialogue of the LoCoMo benchmark too.", show_default=False),
    ] = None,
    reads: Annotated[int, typer.Option(min=1, help="How often each way of reading is measured.")] = 200,
    port_base: Annotated[
        int | None,
        typer.Option(
            help="First port of a mesh that is started, in place of 50101. 0: any free ones.", show_default=False
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep/--stop", help="Leave the mesh running, or stop it if this command started it.")
    ] = True,
) -> None:
    """Start the mesh if none runs, and show its main job: conversations kept, watched, fetched, forked, found, logged.

    The mesh is left running, so that the grpcurl lines at the end can be tried; `gaggle down` ends it.
    """
    # What it imports (grpc, the supervisor) no other command shall wait for.
    from cli.demo.show import Show

    found = locomo or PROJECT_ROOT.parent / _LOCOMO
    Show(
        data=data, user=user, locomo=found if found.is_dir() else None, reads=reads, keep=keep, port_base=port_base
    ).run()
