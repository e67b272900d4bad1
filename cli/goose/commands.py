"""`gaggle goose`: goose's sessions, in the mesh or still in its file."""

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.calling import TimeoutOption, TokenOption, UserOption, ViaOption
from cli.mesh_commands import DataOption
from cli.migrate.goose import DatabaseOption

if TYPE_CHECKING:
    from cli.goose.sessions import Row

app = typer.Typer(help="goose's sessions: import, export, list.", no_args_is_help=True)


@app.command("import-session", epilog="Examples: gaggle goose import-session session.json; gaggle sessions show ID")
def import_session(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `goose session export --format json` wrote.")],
    *,
    session: Annotated[str, typer.Option(metavar="ID", help="The new session's id. Default: the file's.")] = "",
    user: UserOption = "",
    timeout: TimeoutOption = 60.0,
    data: DataOption = None,
    via: ViaOption = "",
    token: TokenOption = "",
) -> None:
    """Store a session export with its conversation and usage, once however often it is imported."""
    from cli.conversations.errors import BadFileError
    from cli.goose import transfer
    from cli.goose.service import Where, mesh
    from cli.transcripts import Document, TranscriptError

    try:
        read = transfer.read_session(Document.load(file))
    except OSError as error:
        raise BadFileError(f"{file} cannot be read: {error.strerror}.") from None
    except TranscriptError as error:
        raise BadFileError(str(error)) from None

    async def run() -> None:
        where = Where(data=data, user=user, via=via, token=token, timeout_seconds=timeout)
        async with mesh(where) as there:
            name, new = await transfer.import_session(there, read, session)
        typer.echo(name)
        typer.echo(f"{new} of {len(read.messages)} messages stored now.", err=True)

    asyncio.run(run())


@app.command("export-session", epilog="Example: gaggle goose export-session 20260228_1 --output session.json")
def export_session(
    session_id: Annotated[str, typer.Argument(metavar="ID")],
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: stdout.")] = None,
    database: DatabaseOption = None,
    user: UserOption = "",
    timeout: TimeoutOption = 30.0,
    data: DataOption = None,
    via: ViaOption = "",
    token: TokenOption = "",
) -> None:
    """Write a session as goose exports it. With --db it comes from where reads of that migration go."""
    from cli.errors import CommandError
    from cli.goose import transfer
    from cli.goose.service import Where, mesh
    from cli.goose.sessions import new_export

    file = _file_that_counts(database)
    export: Row
    if file is not None:
        local = file.session(session_id)
        file.close()
        if local is None:
            raise CommandError(f"{database} has no session {session_id}.")
        export = new_export(local.row, local.messages)
    else:

        async def run() -> "Row":
            where = Where(data=data, user=user, via=via, token=token, timeout_seconds=timeout)
            async with mesh(where) as there:
                return await transfer.export_session(there, session_id)

        export = asyncio.run(run())
    text = transfer.text_of(export)
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text)


@app.command("list", epilog="Example: gaggle goose list --db sessions.db")
def list_sessions(
    *,
    limit: Annotated[int, typer.Option(min=0, help="So many at most; 0: all.")] = 20,
    database: DatabaseOption = None,
    user: UserOption = "",
    timeout: TimeoutOption = 30.0,
    data: DataOption = None,
    via: ViaOption = "",
    token: TokenOption = "",
) -> None:
    """List sessions, newest first, one JSON object a line. With --db from where reads of that migration go."""
    from cli.agent.client import AgentClient
    from cli.conversations.client import Target, connect

    file = _file_that_counts(database)
    if file is not None:
        names = list(reversed(file.quick()))
        for name in names[: limit or None]:
            local = file.session(name)
            if local is not None:
                _print(local.row, "file")
        file.close()
        return

    async def run() -> None:
        target = Target.find(data=data, via=via, user=user, token=token, service="agent")
        async with connect(target, timeout_seconds=timeout) as client:
            shown = 0
            async for session in AgentClient(client, timeout).sessions(100):
                if limit and shown == limit:
                    return
                shown += 1
                _print({"id": session.id, "name": session.name, "working_dir": session.working_dir}, "mesh")

    asyncio.run(run())


def _print(row: "Row", origin: str) -> None:
    told: dict[str, Any] = {name: row.get(name, "") for name in ("id", "name", "working_dir")}
    typer.echo(json.dumps(told | {"from": origin}, ensure_ascii=False))


def _file_that_counts(database: Path | None) -> Any:
    """goose's file, as long as reads of its migration go there; None: they go to the mesh."""
    if database is None:
        return None
    from cli.goose.database import GooseDatabase
    from cli.migrate.goose_state import State

    path = database.expanduser().absolute()
    state = State(path)
    if state.exists:
        state.open()
        try:
            if state.phase.reads_from_mesh:
                return None
        finally:
            state.close()
    return GooseDatabase(path)
