"""The commands of `gaggle extensions`."""

import asyncio
import json
import sys
from contextlib import asynccontextmanager
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
)
from cli.mesh_commands import DataOption

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

    from cli.extensions.client import ExtensionClient
    from gaggle.conversation.v1.message_pb2 import ToolResult
    from gaggle.extension.v1.extension_pb2 import Extension
    from gaggle.extension.v1.extension_service_pb2 import CallToolResponse

_SHOWN = 100

app = typer.Typer(
    help="Register MCP extensions, load them, and call their tools.",
    epilog="Exit codes: 0 done; 1 the service refused or the tool failed, and stderr says why; 2 wrong usage; "
    "3 no mesh answers.",
    no_args_is_help=True,
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The extension's name.")]


@app.command(
    epilog="Examples: gaggle extensions add time -- mcp-server-time --local-timezone UTC; "
    "gaggle extensions add docs --url https://example.com/mcp --env-key DOCS_TOKEN "
    "--header 'Authorization=Bearer ${DOCS_TOKEN}'"
)
def add(
    name: NameArgument,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND [ARG]...", help="What to run: a server on its streams.")
    ] = None,
    *,
    url: Annotated[str, typer.Option(help="Where a server is, that speaks streamable HTTP.")] = "",
    description: Annotated[str, typer.Option("--description", "-d", help="What it is for.")] = "",
    env: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="One of its environment.")] = None,
    env_key: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="One whose value is in the secret store.")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header; ${NAME} stands for one of the above.")
    ] = None,
    tool: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Offer this tool; without: all.")] = None,
    call_seconds: Annotated[float, typer.Option(metavar="SECONDS", help="The time of a call. 0: the default.")] = 0,
    shared: Annotated[bool, typer.Option("--shared", help="For all users; needs the role admin.")] = False,
    disabled: Annotated[bool, typer.Option("--disabled", help="Keep it, and do not let it be loaded.")] = False,
    user: UserOption = "",
    as_json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Register an extension. Nothing is run yet."""
    from gaggle.extension.v1 import extension_pb2

    if bool(command) == bool(url):
        raise typer.BadParameter("say -- COMMAND or --url", param_hint="COMMAND")
    config = extension_pb2.ExtensionConfig(name=name, description=description, available_tools=tool or [])
    if command:
        if header:
            raise typer.BadParameter("is for --url", param_hint="--header")
        config.stdio.cmd = command[0]
        config.stdio.args.extend(command[1:])
        body: Any = config.stdio
    else:
        config.streamable_http.uri = url
        config.streamable_http.headers.update(_pairs(header, "--header"))
        body = config.streamable_http
    body.envs.update(_pairs(env, "--env"))
    body.env_keys.extend(env_key or [])
    if call_seconds:
        body.timeout.FromNanoseconds(int(call_seconds * 1e9))

    async def run() -> None:
        async with _extensions(user, timeout, data, address, via, app_id, token) as extensions:
            added = await extensions.add(config, enabled=not disabled, shared=shared)
            _print_json(added) if as_json else typer.echo(added.id)

    asyncio.run(run())


@app.command("list", epilog="Examples: gaggle extensions list; gaggle extensions list --loaded --json")
def list_extensions(
    *,
    loaded: Annotated[bool | None, typer.Option("--loaded/--not-loaded", help="Those alone.")] = None,
    enabled: Annotated[bool | None, typer.Option("--enabled/--not-enabled", help="Those alone.")] = None,
    prefix: Annotated[str, typer.Option(help="Those alone whose names begin so.")] = "",
    user: UserOption = "",
    as_json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """List your own extensions and the shared ones."""
    from gaggle.extension.v1 import extension_service_pb2 as pb

    request = pb.ListExtensionsRequest(page_size=_SHOWN, loaded=loaded, enabled=enabled, name_prefix=prefix)

    async def run() -> None:
        async with _extensions(user, timeout, data, address, via, app_id, token) as extensions:
            found = [one async for one in extensions.all(request)]
        if as_json:
            for one in found:
                _print_json(one)
        else:
            _print_extensions(found)

    asyncio.run(run())


@app.command(epilog="Example: gaggle extensions load time")
def load(
    name: NameArgument,
    *,
    user: UserOption = "",
    timeout: TimeoutOption = 90.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Connect to an extension."""

    async def run() -> None:
        async with _extensions(user, timeout, data, address, via, app_id, token) as extensions:
            answer = await extensions.load(name)
            typer.echo(f"{name}: {answer.tool_count} tools")

    asyncio.run(run())


@app.command(epilog="Example: gaggle extensions unload time")
def unload(
    name: NameArgument,
    *,
    user: UserOption = "",
    timeout: TimeoutOption = 30.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Disconnect; what was started ends."""

    async def run() -> None:
        async with _extensions(user, timeout, data, address, via, app_id, token) as extensions:
            await extensions.unload(name)

    asyncio.run(run())


@app.command(epilog="Example: gaggle extensions tools time")
def tools(
    name: NameArgument,
    *,
    user: UserOption = "",
    as_json: JsonOption = False,
    timeout: TimeoutOption = 30.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """List the tools of a loaded extension."""

    async def run() -> None:
        async with _extensions(user, timeout, data, address, via, app_id, token) as extensions:
            for tool in await extensions.tools(name):
                if as_json:
                    _print_json(tool)
                    continue
                make_console().print(f"{tool.name}({_parameters(tool.input_schema_json)})", style="bold", markup=False)
                for line in tool.description.strip().splitlines():
                    make_console().print(f"    {line.strip()}", markup=False)

    asyncio.run(run())


@app.command(
    epilog="Examples: gaggle extensions call time get_current_time timezone=Europe/Berlin; "
    """gaggle extensions call time get_current_time '{"timezone": "UTC"}'"""
)
def call(
    name: NameArgument,
    tool: Annotated[str, typer.Argument(metavar="TOOL")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[JSON | NAME=VALUE]...",
            help="One JSON object, or single ones; a value that is no JSON is a text.",
        ),
    ] = None,
    *,
    seconds: Annotated[float, typer.Option(help="The time that the call has. 0: the extension's own.")] = 0,
    call_id: Annotated[str, typer.Option(metavar="ID", help="Repeating a call with its id runs the tool once.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    user: UserOption = "",
    as_json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Call a tool, and print its result."""
    from gaggle.extension.v1 import extension_service_pb2 as pb

    request = pb.CallToolRequest(name=name, tool_name=tool, call_id=call_id, arguments_json=_arguments(arguments or []))
    if seconds:
        request.timeout.FromNanoseconds(int(seconds * 1e9))

    async def run() -> bool:
        ok = False
        async with _extensions(user, timeout, data, address, via, app_id, token) as extensions:
            async for response in extensions.call(request):
                if as_json:
                    _print_json(response)
                ok = _show(response, quiet=quiet or as_json, silent=as_json)
        return ok

    if not asyncio.run(run()):
        raise typer.Exit(1)


@app.command(epilog="Example: gaggle extensions remove time")
def remove(
    name: NameArgument,
    *,
    user: UserOption = "",
    timeout: TimeoutOption = 30.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Unload an extension and take it away."""

    async def run() -> None:
        async with _extensions(user, timeout, data, address, via, app_id, token) as extensions:
            await extensions.remove((await extensions.get(name)).id)

    asyncio.run(run())


def _show(response: "CallToolResponse", *, quiet: bool, silent: bool) -> bool:
    """Print one piece of a call; gives whether it is an outcome, and a good one."""
    kind = response.WhichOneof("event")
    if kind == "result":
        if not silent:
            _print_result(response.result)
        return not response.result.is_error
    if kind == "error":
        typer.echo(f"gaggle: {response.error.message} ({response.error.code})", err=True)
    elif kind == "progress" and not quiet:
        progress = response.progress
        total = f"/{progress.total:g}" if progress.HasField("total") else ""
        typer.echo(f"... {progress.progress:g}{total} {progress.message}".rstrip(), err=True)
    elif kind == "log" and not quiet:
        typer.echo(f"[{response.log.level}] {response.log.data_json}", err=True)
    return False


def _print_result(result: "ToolResult") -> None:
    for part in result.content:
        kind = part.WhichOneof("kind")
        if kind == "text":
            typer.echo(part.text.text)
        elif kind == "image":
            typer.echo(f"[{part.image.mime_type}, {len(part.image.data)} bytes]")
        elif kind == "raw":
            typer.echo(part.raw.json)
    if not result.content and result.structured_content_json:
        typer.echo(result.structured_content_json)


def _print_extensions(found: "list[Extension]") -> None:
    from rich.table import Table

    from gaggle.extension.v1 import extension_pb2

    table = Table("name", "type", "state", "server", "", box=None, header_style="bold")
    for one in found:
        state = extension_pb2.ConnectionState.Name(one.connection.state).removeprefix("CONNECTION_STATE_").lower()
        marks = " ".join(word for word, on in (("shared", one.shared), ("disabled", not one.enabled)) if on)
        server = f"{one.connection.server.name} {one.connection.server.version}".strip()
        table.add_row(_plain(one.config.name), one.config.WhichOneof("type"), state, _plain(server), marks)
    make_console().print(table)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _parameters(schema: str) -> str:
    try:
        body = json.loads(schema)
        required = set(body.get("required", []))
        return ", ".join(name if name in required else f"[{name}]" for name in body.get("properties", {}))
    except (ValueError, AttributeError, TypeError):
        return "..."


def _arguments(given: list[str]) -> str:
    if len(given) == 1 and given[0].lstrip().startswith("{"):
        return given[0]
    if given == ["-"]:
        return sys.stdin.read()
    found: dict[str, Any] = {}
    for name, text in _pairs(given, "ARGUMENTS").items():
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return json.dumps(found)


def _pairs(given: list[str] | None, where: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given or []:
        name, sign, value = one.partition("=")
        if not sign or not name:
            raise typer.BadParameter(f"{one!r} is not NAME=VALUE", param_hint=where)
        found[name] = value
    return found


@asynccontextmanager
async def _extensions(
    user: str, seconds: float, data: Path | None, address: str, via: str, app_id: str, token: str
) -> "AsyncIterator[ExtensionClient]":
    from cli.extensions.client import SERVICE, ExtensionClient

    async with connected(user, seconds, data, address, via, app_id, token, service=SERVICE) as client:
        yield ExtensionClient(client)


def _print_json(message: "Message") -> None:
    from google.protobuf import json_format

    typer.echo(json_format.MessageToJson(message, indent=None))
