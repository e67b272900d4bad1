"""`gaggle migrate goose`: out of goose's SQLite file, in four steps."""

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.calling import TimeoutOption, TokenOption, UserOption, ViaOption
from cli.mesh_commands import DataOption

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from cli.migrate.goose_phases import Migration, Outcome

DatabaseOption = Annotated[
    Path | None,
    typer.Option(
        "--db",
        envvar="GAGGLE_GOOSE_DB",
        metavar="FILE",
        help="goose's sessions.db, on Linux under ~/.local/share/goose/sessions.",
    ),
]

app = typer.Typer(
    help=(
        "Move goose's sessions from its SQLite file into the mesh, in four steps that can each be stopped, gone on "
        "with, repeated and, before the last one, undone: dual-write, verify, switch, remove."
    ),
    epilog=(
        "Example: gaggle migrate goose dual-write --db sessions.db --once; "
        "gaggle migrate goose verify --db sessions.db; gaggle migrate goose switch --db sessions.db; "
        "gaggle migrate goose remove --db sessions.db --yes"
    ),
    invoke_without_command=True,
)


def register(root: typer.Typer) -> None:
    """Adds `goose` to the group."""
    root.add_typer(app, name="goose")


@app.callback()
def goose(context: typer.Context, database: DatabaseOption = None) -> None:
    """Without a step: say how far the migration is."""
    context.obj = database
    if context.invoked_subcommand is None:
        _show_status(_named(context, None))


@app.command("dual-write")
def dual_write(
    context: typer.Context,
    *,
    database: DatabaseOption = None,
    once: Annotated[bool, typer.Option("--once", help="Leave when both sides are level, instead of staying.")] = False,
    prefer: Annotated[
        str, typer.Option(help="Settle sessions that both sides have changed: `sqlite` or `mesh` wins whole.")
    ] = "",
    user: UserOption = "",
    timeout: TimeoutOption = 60.0,
    data: DataOption = None,
    via: ViaOption = "",
    token: TokenOption = "",
) -> None:
    """Step 1: copy all sessions, then keep both sides level until Ctrl-C. The file is backed up first."""
    if prefer not in {"", "sqlite", "mesh"}:
        raise typer.BadParameter("must be sqlite or mesh", param_hint="--prefer")
    outcome = _run(
        _named(context, database),
        lambda migration: migration.dual_write(once=once, prefer=prefer),
        (data, user, via, token, timeout),
    )
    _show(outcome)
    if outcome.report["left_alone"] or outcome.report["stopped_early"]:
        raise typer.Exit(1)


@app.command()
def verify(
    context: typer.Context,
    *,
    database: DatabaseOption = None,
    fix: Annotated[bool, typer.Option("--fix", help="Repair what differs, where one side alone has changed.")] = False,
    user: UserOption = "",
    timeout: TimeoutOption = 60.0,
    data: DataOption = None,
    via: ViaOption = "",
    token: TokenOption = "",
) -> None:
    """Step 2: compare every conversation, session and line of usage; exits with 1 if any differ."""
    outcome = _run(_named(context, database), lambda one: one.verify(fix=fix), (data, user, via, token, timeout))
    _finish(outcome)


@app.command()
def switch(
    context: typer.Context,
    *,
    database: DatabaseOption = None,
    user: UserOption = "",
    timeout: TimeoutOption = 60.0,
    data: DataOption = None,
    via: ViaOption = "",
    token: TokenOption = "",
) -> None:
    """Step 3: verify once more, then have `gaggle goose` read from the mesh. The file is still kept level."""
    _finish(_run(_named(context, database), lambda one: one.switch(), (data, user, via, token, timeout)))


@app.command()
def remove(
    context: typer.Context,
    *,
    database: DatabaseOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it: this step can't be undone.")] = False,
    user: UserOption = "",
    timeout: TimeoutOption = 60.0,
    data: DataOption = None,
    via: ViaOption = "",
    token: TokenOption = "",
) -> None:
    """Step 4: verify a last time, copy the file beside its backup, and take it away. Stop goose before."""
    if not yes:
        raise typer.BadParameter("this step can't be undone: say --yes", param_hint="--yes")
    _finish(_run(_named(context, database), lambda one: one.remove(), (data, user, via, token, timeout)))


@app.command()
def undo(
    context: typer.Context,
    *,
    database: DatabaseOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Where reads go to the file: take from the mesh all that was brought there.")
    ] = False,
    user: UserOption = "",
    timeout: TimeoutOption = 60.0,
    data: DataOption = None,
    via: ViaOption = "",
    token: TokenOption = "",
) -> None:
    """Go one step back: reads to the file again; from there, with --yes, all that was brought to the mesh goes."""
    _finish(_run(_named(context, database), lambda one: one.undo(everything=yes), (data, user, via, token, timeout)))


@app.command()
def status(context: typer.Context, *, database: DatabaseOption = None) -> None:
    """Say how far the migration is, and which sessions are left alone."""
    _show_status(_named(context, database))


def _named(context: typer.Context, database: Path | None) -> Path:
    parent = context.parent.obj if context.parent is not None and isinstance(context.parent.obj, Path) else None
    found = database or parent or (context.obj if isinstance(context.obj, Path) else None)
    if found is None:
        raise typer.BadParameter("name goose's sessions.db", param_hint="--db")
    return found


def _run(
    database: Path,
    step: "Callable[[Migration], Coroutine[Any, Any, Outcome]]",
    where: tuple[Path | None, str, str, str, float],
) -> "Outcome":
    from rich.console import Console

    from cli.goose.service import Where
    from cli.migrate.goose_phases import Migration
    from cli.migrate.goose_progress import MigrationProgress

    console = Console(stderr=True, highlight=False)
    data, user, via, token, timeout = where

    async def run() -> "Outcome":
        with MigrationProgress(console) as progress:
            place = Where(data=data, user=user, via=via, token=token, timeout_seconds=timeout)
            migration = Migration(database, place, progress)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, migration.stop)
            return await step(migration)

    return asyncio.run(run())


def _finish(outcome: "Outcome") -> None:
    _show(outcome)
    report = outcome.report
    if outcome.differences or report.get("left_in_the_mesh") or report.get("complete") is False:
        raise typer.Exit(1)


def _show(outcome: "Outcome") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in outcome.report.items():
        if isinstance(value, list):
            value = len(value)  # noqa: PLW2901 - they follow below
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        table.add_row(name.replace("_", " "), shown)
    console.print(table)
    for difference in outcome.differences:
        console.print(Text(f"  {difference}"), soft_wrap=True)
    for left in [*outcome.report.get("left_alone", []), *outcome.report.get("left_in_the_mesh", [])]:
        console.print(Text(f"  {left['session']}: {left['why']}"), soft_wrap=True)
    console.print(Text(f"The whole report: {outcome.file}", style="dim"), soft_wrap=True)


def _show_status(database: Path) -> None:
    from cli.goose.database import GooseDatabase
    from cli.migrate.goose_state import Phase, State

    state = State(database.expanduser().absolute())
    if not state.exists:
        typer.echo(f"{database}: not begun. Next: gaggle migrate goose dual-write --db {database}")
        return
    following = {
        Phase.DUAL_WRITE: "verify",
        Phase.VERIFIED: "switch",
        Phase.SWITCHED: "remove",
        Phase.REMOVING: "remove",
        Phase.UNDOING: "undo",
    }
    state.open()
    try:
        phase, troubles, known = state.phase, state.troubles(), state.count()
        user = state.get("user")
    finally:
        state.close()
    typer.echo(f"{database}: {phase}, user {user}, {known:,} sessions known, {len(troubles)} left alone")
    if database.exists():
        file = GooseDatabase(database)
        sessions, messages, lines = file.counts()
        file.close()
        typer.echo(f"The file has {sessions:,} sessions, {messages:,} messages, {lines:,} lines of usage.")
    for entry in troubles:
        typer.echo(f"  {entry.id}: {entry.trouble}")
    if phase in following:
        typer.echo(f"Next: gaggle migrate goose {following[phase]} --db {database}")
