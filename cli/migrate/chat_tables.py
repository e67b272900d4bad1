"""The commands of `gaggle migrate chat-tables`: a chatbot's SQL tables, moved into the conversation service."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cli.errors import CommandError, Refused
from cli.mesh_commands import DataOption

if TYPE_CHECKING:
    import psycopg
    from rich.console import Console

    from cli.migrate.chats.journal import Work
    from cli.migrate.chats.phases import Outcome, Phase
    from cli.migrate.chats.source import Names, Tables

_T = TypeVar("_T")
_SHOWN_FAULTS = 20

app = typer.Typer(
    help="Move a chatbot's tables `conversations` and `messages` (PostgreSQL) into the conversation service.\n\n"
    "In this order: inspect, backup, copy, verify, switch, revisions. Each may be stopped, killed and run again: it "
    "goes on from where it was, and one that is done changes nothing. What was done is kept in the folder of --work.",
    epilog="Exit codes: 0 done; 1 something was not as it should be, and stderr says what; 2 wrong usage; 3 no mesh "
    "answers; 4 refused, since an earlier phase is not done or something is in the way.",
    no_args_is_help=True,
)

FromOption = Annotated[
    str, typer.Option("--from", envvar="DATABASE_URL", metavar="URL", help="The tables' database: postgresql://...")
]
WorkOption = Annotated[
    Path, typer.Option("--work", metavar="DIR", help="Where the backup lies, and what has been done.")
]
SchemaOption = Annotated[str, typer.Option(help="The tables' schema. Default: the connection's own.")]
ConversationsOption = Annotated[str, typer.Option("--conversations", metavar="NAME", help="The first table.")]
MessagesOption = Annotated[str, typer.Option("--messages", metavar="NAME", help="The second table.")]
ZoneOption = Annotated[str, typer.Option(help="The zone of times that are stored without one.")]
RateOption = Annotated[
    float, typer.Option("--per-second", min=0.0, help="At most so many conversations a second; 0: as quick as may be.")
]
AgainOption = Annotated[bool, typer.Option("--again", help="Look at what was done before, too.")]
AddressOption = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="The conversation service. Default: what DATA/mesh.json says.")
]
AppIdOption = Annotated[
    str, typer.Option(metavar="APP_ID", help="--address is a sidecar's, and this the conversation service behind it.")
]
AuthAddressOption = Annotated[str, typer.Option(metavar="HOST:PORT", help="The auth service, for --token.")]
AuthAppIdOption = Annotated[
    str, typer.Option(metavar="APP_ID", help="--auth-address is a sidecar's, and this the auth service behind it.")
]
TokenOption = Annotated[
    str,
    typer.Option(
        envvar="GAGGLE_TOKEN",
        help="An admin's token, by which users' own are issued. Default: they are signed with the local mesh's key.",
    ),
]
TimeoutOption = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.1, help="How long a call is tried while the mesh does not answer.")
]
_WORK = Path("chat-tables-migration")


@app.command()
def inspect(
    *,
    url: FromOption,
    work: WorkOption = _WORK,
    schema: SchemaOption = "",
    conversations: ConversationsOption = "conversations",
    messages: MessagesOption = "messages",
    zone: ZoneOption = "UTC",
) -> None:
    """Read the tables, and say what is there and what can't be moved. Nothing is written."""

    async def run() -> bool:
        from cli.migrate.chats.mapping import chat
        from cli.migrate.chats.phases import Outcome
        from cli.migrate.chats.source import connect, count, find, snapshot
        from cli.migrate.chats.source import conversations as rows

        outcome = Outcome()
        async with connect(url) as connection:
            tables = await find(connection, _names(schema, conversations, messages, zone))
            users = set()
            async with snapshot(connection):
                _, _, orphans = await count(connection, tables)
                async with contextlib.aclosing(rows(connection, tables)) as found:
                    async for row in found:
                        one = chat(row)
                        users.add(one.user)
                        outcome.conversations += 1
                        outcome.messages += len(one.messages)
                        if one.faults:
                            outcome.fault(one, "; ".join(one.faults))
        typer.echo(f"{outcome.conversations:,} conversations of {len(users):,} users, {outcome.messages:,} messages")
        _tell_faults(outcome.facts() | {"orphans": orphans})
        return bool(outcome.faulty or orphans)

    del work
    if _run(run()):
        raise typer.Exit(1)


@app.command()
def backup(
    *,
    url: FromOption,
    work: WorkOption = _WORK,
    schema: SchemaOption = "",
    conversations: ConversationsOption = "conversations",
    messages: MessagesOption = "messages",
) -> None:
    """Write both tables to files, both of one moment. Repeated, it replaces the one before once it is whole."""

    async def run() -> None:
        from cli.migrate.chats.backup import write

        async with _opened(url, work, _names(schema, conversations, messages, "UTC")) as (held, connection, tables):
            _unless_switched(held, "The backup")
            console = _console()
            manifest = await write(connection, tables, held.backup, lambda text: console.print(text, highlight=False))
            rows = {name: facts["rows"] for name, facts in manifest["tables"].items()}
            held.note("backup", rows=rows)
        typer.echo(f"{', '.join(f'{count:,} {name}' for name, count in rows.items())}: {held.backup}")

    _run(run())


@app.command()
def copy(
    *,
    url: FromOption,
    work: WorkOption = _WORK,
    schema: SchemaOption = "",
    conversations: ConversationsOption = "conversations",
    messages: MessagesOption = "messages",
    zone: ZoneOption = "UTC",
    keep_messages: Annotated[
        int, typer.Option(min=0, help="How many messages a conversation keeps from now on; 0: all. A chatbot's: 200.")
    ] = 0,
    per_second: RateOption = 0.0,
    again: AgainOption = False,
    timeout: TimeoutOption = 60.0,
    data: DataOption = None,
    address: AddressOption = "",
    app_id: AppIdOption = "",
    auth_address: AuthAddressOption = "",
    auth_app_id: AuthAppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Store what is not stored yet. Run it as often as you like while the tables are still in use."""

    async def run() -> bool:
        names = _names(schema, conversations, messages, zone)
        async with _opened(url, work, names) as (held, connection, tables):
            if not held.phase("backup"):
                raise Refused("There is no backup yet: run `gaggle migrate chat-tables backup` first.")
            _unless_switched(held, "Copying")
            mesh = _mesh(data, address, app_id, auth_address, auth_app_id, token, timeout)
            async with _phase(held, connection, tables, "copy", per_second, mesh) as phase:
                outcome = await phase.copy(keep_messages=keep_messages, again=again)
            return _ended(held, "copy", outcome)

    if _run(run()):
        raise typer.Exit(1)


@app.command()
def verify(
    *,
    url: FromOption,
    work: WorkOption = _WORK,
    schema: SchemaOption = "",
    conversations: ConversationsOption = "conversations",
    messages: MessagesOption = "messages",
    zone: ZoneOption = "UTC",
    per_second: RateOption = 0.0,
    again: AgainOption = False,
    timeout: TimeoutOption = 60.0,
    data: DataOption = None,
    address: AddressOption = "",
    app_id: AppIdOption = "",
    auth_address: AuthAddressOption = "",
    auth_app_id: AuthAppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Read back what is stored and compare every message with the tables."""

    async def run() -> bool:
        names = _names(schema, conversations, messages, zone)
        async with _opened(url, work, names) as (held, connection, tables):
            if not held.phase("copy"):
                raise Refused("Nothing is copied yet: run `gaggle migrate chat-tables copy` first.")
            mesh = _mesh(data, address, app_id, auth_address, auth_app_id, token, timeout)
            async with _phase(held, connection, tables, "verify", per_second, mesh) as phase:
                outcome = await phase.verify(switched=bool(held.phase("switch")), again=again)
            return _ended(held, "verify", outcome)

    if _run(run()):
        raise typer.Exit(1)


@app.command()
def switch(
    *,
    url: FromOption,
    work: WorkOption = _WORK,
    schema: SchemaOption = "",
    conversations: ConversationsOption = "conversations",
    messages: MessagesOption = "messages",
    zone: ZoneOption = "UTC",
    undo: Annotated[bool, typer.Option("--undo", help="Have the tables take writes again.")] = False,
    leave_faulty: Annotated[
        bool, typer.Option("--leave-faulty", help="Switch though some conversations can't be moved.")
    ] = False,
    keep_messages: Annotated[int, typer.Option(min=0, help="As with `copy`, for those that are new.")] = 0,
    per_second: RateOption = 0.0,
    timeout: TimeoutOption = 60.0,
    data: DataOption = None,
    address: AddressOption = "",
    app_id: AppIdOption = "",
    auth_address: AuthAddressOption = "",
    auth_app_id: AuthAppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Have the tables refuse writes, then copy and verify what has come since. From here on the mesh has the truth."""

    async def run() -> bool:
        from cli.migrate.chats.freezing import freeze, thaw

        names = _names(schema, conversations, messages, zone)
        async with _opened(url, work, names) as (held, connection, tables):
            if undo:
                await thaw(connection, tables)
                held.forget("switch")
                typer.echo("The tables take writes again. What is written in the mesh meanwhile is not brought back.")
                return False
            if held.phase("switch"):
                typer.echo("Switched already; the tables take no more writes.")
                return False
            _ready_to_switch(held, leave_faulty=leave_faulty)
            await freeze(connection, tables)
            _console().print("The tables take no more writes.", highlight=False)
            mesh = _mesh(data, address, app_id, auth_address, auth_app_id, token, timeout)
            async with _phase(held, connection, tables, "copy", per_second, mesh) as phase:
                copied = await phase.copy(keep_messages=keep_messages)
            async with _phase(held, connection, tables, "verify", per_second, mesh) as phase:
                verified = await phase.verify()
            faulty = _ended(held, "copy", copied)
            faulty = _ended(held, "verify", verified) or faulty
            if faulty and not leave_faulty:
                raise CommandError(
                    "Not switched, and the tables take no writes: mend what is told above and run this again, "
                    "or go back with --undo."
                )
            held.note("switch", conversations=verified.conversations, messages=verified.messages)
        typer.echo(
            f"Switched: {verified.conversations - verified.faulty:,} conversations. "
            "Have the application call ChatService, or the conversation service, from now on."
        )
        return False

    _run(run())


@app.command()
def revisions(
    *,
    url: FromOption,
    alembic: Annotated[Path, typer.Option(metavar="FILE", help="The project's alembic.ini.")] = Path("alembic.ini"),
    work: WorkOption = _WORK,
    schema: SchemaOption = "",
    conversations: ConversationsOption = "conversations",
    messages: MessagesOption = "messages",
) -> None:
    """Write two revisions into the Alembic project: one deprecates the tables, the next one drops them."""

    async def run() -> None:
        from cli.migrate.chats.revisions import write

        async with _opened(url, work, _names(schema, conversations, messages, "UTC")) as (held, _, tables):
            if not held.phase("switch"):
                raise Refused("The tables are still in use: run `gaggle migrate chat-tables switch` first.")
            written = await asyncio.to_thread(write, url, tables, alembic)
            held.note("revisions", revisions={one.revision: str(one.path) for one in written})
        for one in written:
            typer.echo(f"{one.path}{'' if one.new else ' (there already)'}")

    _run(run())


@app.command()
def restore(
    *,
    url: FromOption,
    work: WorkOption = _WORK,
    schema: SchemaOption = "",
    conversations: ConversationsOption = "conversations",
    messages: MessagesOption = "messages",
) -> None:
    """Fill the tables, which must be empty, from the backup."""

    async def run() -> None:
        from cli.migrate.chats.backup import restore as fill
        from cli.migrate.chats.journal import Work
        from cli.migrate.chats.source import connect, find

        held = Work(work)
        with held.held():
            async with connect(url) as connection:
                tables = await find(connection, _names(schema, conversations, messages, "UTC"))
                counts = await fill(connection, tables, held.backup)
        typer.echo(", ".join(f"{count:,} {name}" for name, count in counts.items()))

    _run(run())


@app.command()
def status(
    *,
    work: WorkOption = _WORK,
    as_json: Annotated[bool, typer.Option("--json", help="The whole report.")] = False,
) -> None:
    """Say what has been done. Needs neither the database nor the mesh."""
    from cli.migrate.chats.journal import Work

    report = Work(work).report()
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    if report["tables"]:
        typer.echo(f"database {report['tables']['database']}")
    for name in ("backup", "copy", "verify", "switch", "revisions"):
        facts = report["phases"].get(name)
        if facts is None:
            typer.echo(f"{name:10} not done")
            continue
        told = {key: value for key, value in facts.items() if key not in {"time", "faults"}}
        typer.echo(f"{name:10} {facts['time']}  {', '.join(f'{key} {value}' for key, value in told.items())}")


def _names(schema: str, conversations: str, messages: str, zone: str) -> "Names":
    from cli.migrate.chats.source import Names

    return Names(schema, conversations, messages, zone)


@contextlib.asynccontextmanager
async def _opened(
    url: str, work: Path, names: "Names"
) -> "AsyncIterator[tuple[Work, psycopg.AsyncConnection[Any], Tables]]":
    """The work directory, held and bound to the tables."""
    from cli.migrate.chats.journal import Work
    from cli.migrate.chats.source import connect, find

    held = Work(work)
    with held.held():
        async with connect(url) as connection:
            tables = await find(connection, names)
            held.bind(tables.identity)
            yield held, connection, tables


def _mesh(
    data: Path | None, address: str, app_id: str, auth_address: str, auth_app_id: str, token: str, timeout: float
) -> dict[str, Any]:
    if token and address and not auth_address:
        raise typer.BadParameter("is needed with --token and --address", param_hint="--auth-address")
    return {
        "data": data,
        "address": address,
        "app_id": app_id,
        "auth_address": auth_address,
        "auth_app_id": auth_app_id,
        "token": token,
        "timeout_seconds": timeout,
    }


@contextlib.asynccontextmanager
async def _phase(
    held: "Work",
    connection: "psycopg.AsyncConnection[Any]",
    tables: "Tables",
    name: str,
    per_second: float,
    mesh: dict[str, Any],
) -> "AsyncIterator[Phase]":
    from cli.migrate.chats.clients import clients
    from cli.migrate.chats.phases import Phase
    from cli.migrate.chats.progress import PhaseProgress
    from cli.migrate.chats.source import count

    total, _, orphans = await count(connection, tables)
    if orphans:
        typer.echo(f"{orphans:,} messages belong to no conversation and stay behind.", err=True)
    async with clients(**mesh) as service:
        with PhaseProgress(_console(), name, total) as progress:
            yield Phase(connection, tables, held, service, progress, per_second=per_second)


def _unless_switched(held: "Work", what: str) -> None:
    if held.phase("switch"):
        raise Refused(f"{what} is over: the mesh has the truth since the switch. `switch --undo` takes that back.")


def _ready_to_switch(held: "Work", *, leave_faulty: bool) -> None:
    verified = held.phase("verify")
    if not verified:
        raise Refused("Nothing is verified yet: run `gaggle migrate chat-tables verify` first.")
    if verified["faulty"] and not leave_faulty:
        raise Refused(
            f"{verified['faulty']:,} conversations are not verified; `status --json` lists them. Mend them and run "
            "copy and verify again, or leave them behind with --leave-faulty."
        )


def _ended(held: "Work", name: str, outcome: "Outcome") -> bool:
    """Reports a phase; gives whether something was wrong."""
    facts = outcome.facts()
    held.note(name, **facts)
    before = f", {outcome.done_before:,} before" if outcome.done_before else ""
    typer.echo(
        f"{name}: {outcome.done:,} conversations{before}, {outcome.done_messages:,} messages "
        f"in {outcome.seconds:.1f} s ({facts['messages_per_second']:,} a second)"
    )
    _tell_faults(facts)
    return bool(outcome.faulty)


def _tell_faults(facts: dict[str, Any]) -> None:
    for one in facts["faults"][:_SHOWN_FAULTS]:
        typer.echo(f"conversation {one['conversation']} of {one['user'] or 'nobody'}: {one['why']}", err=True)
    if (more := facts["faulty"] - _SHOWN_FAULTS) > 0:
        typer.echo(f"... and {more:,} more; `gaggle migrate chat-tables status --json` lists them.", err=True)
    if facts.get("orphans"):
        typer.echo(f"{facts['orphans']:,} messages belong to no conversation.", err=True)


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True)


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        typer.echo("Stopped. The same command goes on from here.", err=True)
        raise typer.Exit(130) from None
