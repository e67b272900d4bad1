"""The commands of `gaggle conversations`."""

import asyncio
import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.calling import (
    AddressOption,
    AppIdOption,
    JsonOption,
    TimeoutOption,
    TokenOption,
    UserOption,
    ViaOption,
    connected,
    make_console,
    print_json,
)
from cli.mesh_commands import DataOption

if TYPE_CHECKING:
    from cli.conversations.importing import Plan
    from gaggle.conversation.v1.conversation_pb2 import Conversation

_STDIN = Path("-")

app = typer.Typer(
    help="Import, read, search, export and delete conversations.",
    epilog="Exit codes: 0 done; 1 the service refused, and stderr says why; 2 wrong usage or a file that cannot be "
    "imported; 3 no mesh answers.",
    no_args_is_help=True,
)


@app.command(
    "import",
    help="Import transcripts of other tools, each conversation once.\n\n"
    "Every file is read and checked first: if one is faulty, its faults are told with line and column, and nothing is "
    "stored. An import that was cut off goes on where it stopped when it is run again; one that is complete changes "
    "nothing.",
    epilog="Examples: gaggle conversations import chat.json; gaggle conversations import --user ada *.jsonl; "
    "cat chat.json | gaggle conversations import -",
)
def import_files(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Transcripts; - is standard input.")],
    *,
    user: UserOption = "",
    format_name: Annotated[
        str,
        typer.Option("--format", help="openai, openai-jsonl, sharegpt or locomo. Default: found out from the file."),
    ] = "",
    title: Annotated[str, typer.Option(help="Default: what the file says, else how the conversation begins.")] = "",
    conversation: Annotated[
        str,
        typer.Option(metavar="ID", help="The new conversation's id, for a file that holds one. Default: made from it."),
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the ids alone, one a line.")] = False,
    timeout: TimeoutOption = 60.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Import transcripts of other tools, each conversation once."""
    from rich.console import Console

    from cli.conversations.client import Target, connect
    from cli.conversations.errors import ImportFailedError, UnreachableError
    from cli.conversations.importing import Outcome, import_all
    from cli.conversations.progress import ImportProgress

    plans = _read_files(files, format_name)
    if conversation and len(plans) > 1:
        raise typer.BadParameter(f"the files hold {len(plans)} conversations", param_hint="--conversation")
    target = Target.find(data=data, address=address, via=via, app_id=app_id, user=user, token=token)
    planned = [_plan(found, target.user, title, conversation) for found in plans]
    console = Console(stderr=True)

    async def run() -> "list[tuple[Plan, Any]]":
        with ImportProgress(console, planned, quiet=quiet) as progress:
            async with connect(target, timeout_seconds=timeout) as client:
                return await import_all(client, planned, progress)

    try:
        results = asyncio.run(run())
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on from here.")
        raise typer.Exit(130) from None
    failures = [(plan, result) for plan, result in results if not isinstance(result, Outcome)]
    for _, result in results:
        if isinstance(result, Outcome) and (quiet or not sys.stdout.isatty()):
            typer.echo(result.conversation_id)
    if failures:
        kind = (
            UnreachableError if any(isinstance(error, UnreachableError) for _, error in failures) else ImportFailedError
        )
        lines = dict.fromkeys(str(error) for _, error in failures)
        again = " The same command goes on from here." if kind is UnreachableError else ""
        raise kind("\n".join(lines) + again)


@app.command(
    "list", epilog="Examples: gaggle conversations list; gaggle conversations list --user ada --json | jq -r .title"
)
def list_conversations(
    *,
    user: UserOption = "",
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 50,
    page_size: Annotated[int, typer.Option(min=1, max=100, help="How many are fetched at once.")] = 100,
    as_json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """List a user's conversations, newest created first."""

    async def run() -> None:
        found: list[Conversation] = []
        async with connected(user, timeout, data, address, via, app_id, token) as client:
            pages = client.conversations(min(page_size, limit + 1) if limit else page_size)
            async with contextlib.aclosing(pages):  # type: ignore[type-var]
                async for conversation in pages:
                    if limit and len(found) == limit:
                        typer.echo(f"There are more: --limit 0 lists all, --limit {limit * 2} more.", err=True)
                        break
                    found.append(conversation)
                    if as_json:
                        print_json(conversation)
        if as_json:
            return
        if not found:
            typer.echo(f"{client.target.user or 'The user'} has no conversations.", err=True)
            return
        from cli.conversations.rendering import conversation_table

        console = make_console()
        console.print(conversation_table(found, console.width))

    asyncio.run(run())


@app.command(
    epilog="Examples: gaggle conversations show ID --last 10; gaggle conversations show ID --json | jq .content; "
    "gaggle conversations show ID --follow"
)
def show(
    conversation_id: Annotated[str, typer.Argument(metavar="ID")],
    *,
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="So many messages from the end; 0: all.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then show what comes, until Ctrl-C.")] = False,
    user: UserOption = "",
    as_json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Show a conversation's newest messages, oldest of them first."""

    async def run() -> None:
        from cli.conversations.rendering import show_conversation, show_message

        async with connected(user, timeout, data, address, via, app_id, token) as client:
            conversation = await client.get(conversation_id)
            count = last or conversation.message_count
            messages = await client.newest(conversation_id, count)
            console = make_console()
            if as_json:
                for message in messages:
                    print_json(message)
            else:
                show_conversation(console, conversation, messages)
            if follow:
                shown = max(conversation.last_sequence, messages[-1].sequence if messages else 0)
                async for message in client.watch(conversation_id, shown + 1):
                    if as_json:
                        print_json(message)
                    else:
                        show_message(console, message)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())


@app.command(
    epilog="Examples: gaggle conversations export ID > chat.json; "
    "gaggle conversations export ID --format openai-jsonl -o chat.jsonl"
)
def export(
    conversation_id: Annotated[str, typer.Argument(metavar="ID")],
    *,
    format_name: Annotated[
        str,
        typer.Option(
            "--format", help="openai, openai-jsonl, sharegpt or locomo. Default: the one it came in, else openai."
        ),
    ] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: standard output.")] = None,
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Write a conversation as a transcript. What was imported comes back in the same format, message for message."""
    from cli.conversations.importing import FORMAT_KEY
    from cli.errors import CommandError
    from cli.transcripts import FORMATS, write

    _check_format(format_name)

    async def run() -> None:
        async with connected(user, timeout, data, address, via, app_id, token) as client:
            conversation = await client.get(conversation_id)
            messages = [message async for message in client.messages(conversation_id)]
        came_in = conversation.metadata.get(FORMAT_KEY, "openai")
        written = write(messages, format_name or (came_in if came_in in FORMATS else "openai"))
        if output is None:
            typer.echo(written.text, nl=False)
        else:
            try:
                _replace(output, written.text)
            except OSError as error:
                raise CommandError(f"{output} cannot be written: {error.strerror}.") from error
        if written.omitted:
            typer.echo(f"The format has no form for {', '.join(written.omitted)}: left out.", err=True)

    asyncio.run(run())


@app.command(epilog="Examples: gaggle conversations delete ID; gaggle conversations delete --yes ID ID")
def delete(
    conversation_ids: Annotated[list[str], typer.Argument(metavar="ID")],
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Delete conversations with all their messages. One that is deleted already is passed over."""

    async def run() -> None:
        from cli.conversations.errors import ServiceRefusedError

        async with connected(user, timeout, data, address, via, app_id, token) as client:
            for conversation_id in dict.fromkeys(conversation_ids):
                try:
                    conversation = await client.find(conversation_id)
                    if conversation is not None and not yes:
                        text = (
                            f"Delete {conversation.title or conversation_id!r}, {conversation.message_count} messages?"
                        )
                        if not typer.confirm(text, err=True):
                            continue
                    await client.delete(conversation_id)
                except ServiceRefusedError as error:
                    if error.failure.reason != "NOT_FOUND":
                        raise
                    typer.echo(f"{conversation_id}: there is none", err=True)
                    continue
                typer.echo(f"{conversation_id}: {'deleted' if conversation else 'was deleted already'}", err=True)

    asyncio.run(run())


@app.command(
    epilog="Examples: gaggle conversations search telescope; gaggle conversations search '\"dark sky\" -moon' --json"
)
def search(
    words: Annotated[list[str], typer.Argument(metavar="WORDS", help='Words, "quoted phrases", -without, or.')],
    *,
    conversation: Annotated[str, typer.Option(metavar="ID", help="Only in this conversation.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100, help="At most so many.")] = 20,
    user: UserOption = "",
    as_json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Find messages by their words, best first. What was said a moment ago may not be found yet."""

    async def run() -> None:
        from cli.conversations.rendering import hit_line

        async with connected(user, timeout, data, address, via, app_id, token) as client:
            hits = await client.search(" ".join(words), conversation_id=conversation, limit=limit)
        for hit in hits:
            if as_json:
                print_json(hit)
            else:
                make_console().print(hit_line(hit), no_wrap=True, overflow="ellipsis")
        if not hits:
            typer.echo("Nothing was found.", err=True)

    asyncio.run(run())


def _read_files(files: list[Path], format_name: str) -> list[Any]:
    """Every conversation of every file. Raises BadFileError that tells the fault of each faulty file."""
    from cli.conversations.errors import BadFileError
    from cli.transcripts import Document, TranscriptError, read

    _check_format(format_name)
    found: list[Any] = []
    problems = []
    for file in files:
        try:
            document = Document("<stdin>", sys.stdin.buffer.read()) if file == _STDIN else Document.load(file)
            chosen, transcripts = read(document, format_name or None)
        except OSError as error:
            problems.append(f"{file}: {error.strerror}")
        except TranscriptError as error:
            problems.append(str(error))
        else:
            name = "stdin" if file == _STDIN else file.name.encode(errors="replace").decode()
            found.extend((transcript, chosen.name, name) for transcript in transcripts)
    if problems:
        raise BadFileError("\n".join(["nothing was stored:", *problems]))
    return found


def _plan(found: Any, user: str, title: str, conversation_id: str) -> "Plan":
    from cli.conversations.importing import make_plan

    transcript, format_name, file = found
    return make_plan(
        transcript, format_name=format_name, file=file, user=user, title=title, conversation_id=conversation_id
    )


def _check_format(name: str) -> None:
    from cli.transcripts import FORMATS

    if name and name not in FORMATS:
        raise typer.BadParameter(f"there are {', '.join(FORMATS)}", param_hint="--format")


def _replace(path: Path, text: str) -> None:
    """Writes the file whole or not at all. Raises OSError."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")  # a pipe or a device
        return
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
