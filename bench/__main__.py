"""`python -m bench`: measure Gaggle and its peers side by side. `--help` tells the rest."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench.ghz import Failed
from bench.plan import CASES, CLIENTS, FULL, QUICK, REMINDERS, SESSIONS, SYNC, Cell, Pace, cells
from bench.report import results_table, rows_of, write, write_into_readme
from bench.runner import Samples, run
from bench.targets import RESULTS, Results, checks, table
from cli.errors import CommandError


def main(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="One short round of everything, in under two minutes.")
    ] = False,
    case: Annotated[list[str] | None, typer.Option(help=f"Only this one of {', '.join(CASES)}.")] = None,
    system: Annotated[list[str] | None, typer.Option(help=f"Only this one of {', '.join(CLIENTS)}.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Where results go. Default: bench/results; with --quick or a choice they are only shown."),
    ] = None,
) -> None:
    """Measure Gaggle and its peers side by side, on a mesh of the bench's own. About fifteen minutes."""
    console = Console()
    pace = QUICK if quick else FULL
    chosen = cells(case or (), system or ())
    if not chosen:
        raise typer.BadParameter("nothing is left to measure")
    if output is None and not (quick or case or system):
        output = RESULTS.parent
    began = time.monotonic()
    with Progress(
        SpinnerColumn(),
        TimeElapsedColumn(),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=sum(_rounds(cell, pace) for cell in chosen))

        def tell(what: str) -> None:
            progress.update(task, description=what)
            if not console.is_terminal and not what.startswith(("round", "warming")):
                console.print(f"{time.monotonic() - began:6.0f} s  {what}", highlight=False)

        failure = ""
        samples: Samples = {cell: [] for cell in chosen}
        try:
            run(samples, pace, console, tell, lambda _cell: progress.advance(task))
        except (Failed, CommandError) as error:
            failure = f"bench: {error}"
    took = time.monotonic() - began
    rows = rows_of(samples)
    found = checks(Results(rows))  # type: ignore[arg-type]
    console.print(results_table(rows))
    console.print(table(found))
    if failure:
        # What was measured until then is shown and not written: figures of one run belong together.
        sys.exit(failure)
    if output is not None:
        write(output, rows, found, pace, took)
        if output == RESULTS.parent:
            write_into_readme(rows)
        console.print(f"Written to {output}", highlight=False)


def _rounds(cell: Cell, pace: Pace) -> int:
    own = {SESSIONS: pace.session_rounds, REMINDERS: pace.reminder_rounds, SYNC: pace.sync_rounds}
    return own.get(cell.case, pace.rounds)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
