"""`gaggle migrate`: what was kept elsewhere, brought into the mesh."""

import typer

app = typer.Typer(help="Bring in what was kept elsewhere.", no_args_is_help=True)
