"""`gaggle migrate`: out of other stores, into the mesh."""

import typer

app = typer.Typer(help="Move from another store into the mesh.", no_args_is_help=True)
