"""`gaggle chat` and `gaggle sessions`."""

import asyncio
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
    from rich.console import Console

    from cli.agent.client import AgentClient
    from cli.agent.showing import TurnView
    from gaggle.agent.v1.agent_service_pb2 import ChatRequest
    from gaggle.agent.v1.session_pb2 import Session

_MODES = {"auto": 1, "approve": 2, "smart": 3, "chat": 4}

app = typer.Typer(help="Agent sessions, and what they have used.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Adds `chat` and `sessions`."""
    root.command(
        epilog='Examples: gaggle chat; gaggle chat "tool time__now" --extension time; '
        "echo say hello | gaggle chat --conversation first"
    )(chat)
    root.add_typer(app, name="sessions")


def chat(
    message: Annotated[
        str, typer.Argument(metavar="[MESSAGE]", help="Say this and leave. Without: talk line by line.")
    ] = "",
    *,
    conversation: Annotated[
        str, typer.Option("--conversation", "-c", metavar="ID", help="Go on with this one. Default: a new one.")
    ] = "",
    session: Annotated[str, typer.Option(metavar="ID", help="Count it in this session, and take its settings.")] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="offline, openai:NAME, dapr:COMPONENT, ...")] = "",
    extension: Annotated[
        list[str] | None, typer.Option("--extension", "-e", help="A loaded extension whose tools may be called.")
    ] = None,
    approval: Annotated[
        str, typer.Option(help="Which tools ask first: auto (none), approve (all), smart, chat (no tools).")
    ] = "",
    system: Annotated[str, typer.Option(help="What the model is told before everything else.")] = "",
    user: UserOption = "",
    as_json: JsonOption = False,
    timeout: TimeoutOption = 30.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Talk to an agent; answers stream, tools are shown. Ctrl-C ends a turn, Ctrl-D leaves."""
    if approval and approval not in _MODES:
        raise typer.BadParameter(f"must be one of {', '.join(_MODES)}", param_hint="--approval")

    async def run() -> bool:
        from gaggle.agent.v1 import agent_service_pb2 as pb

        request = pb.ChatRequest(
            conversation_id=conversation, session_id=session, model=model, extensions=extension or ()
        )
        request.options.system_prompt = system
        if approval:
            request.options.approval.mode = _MODES[approval]  # type: ignore[assignment]
        if not request.options.ByteSize():
            request.ClearField("options")
        async with _agent(user, timeout, data, address, via, app_id, token) as agent:
            talk = _Talk(agent, make_console(), request, as_json=as_json)
            if message:
                return await talk.say(message)
            return await talk.listen()

    if not asyncio.run(run()):
        raise typer.Exit(1)


class _Talk:
    """A person's side of a conversation."""

    def __init__(self, agent: "AgentClient", console: "Console", request: "ChatRequest", *, as_json: bool) -> None:
        self._agent = agent
        self._console = console
        self._request = request
        self._as_json = as_json

    async def listen(self) -> bool:
        """Say line after line until there are no more; gives whether all went well."""
        good = True
        person = sys.stdin.isatty()
        while True:
            if person:
                self._console.print("[bold]>[/] ", end="")
            line = await asyncio.to_thread(sys.stdin.readline)
            if not line:
                break
            if line.strip():
                good = await self.say(line.rstrip("\n")) and good
        if person and self._request.conversation_id:
            self._console.print(f"\n[dim]gaggle chat --conversation {self._request.conversation_id}[/]")
        return good

    async def say(self, text: str) -> bool:
        """One turn; gives whether it completed."""
        from cli.agent.showing import TurnView
        from gaggle.agent.v1 import agent_service_pb2 as pb
        from gaggle.agent.v1 import turn_pb2

        request = pb.ChatRequest()
        request.CopyFrom(self._request)
        request.message.add().text.text = text
        view = TurnView(self._console)
        events = self._agent.chat(request)
        try:
            while True:
                async for event in events:
                    if self._as_json:
                        _print_json(event)
                    view.show(event) if not self._as_json else _note(view, event)
                if view.ended is not None or not view.waiting:
                    break
                if not await self._decide(view):
                    break
                events = self._agent.watch(view.turn_id, view.position)
        except asyncio.CancelledError:
            if view.turn_id:
                await self._agent.cancel(view.turn_id)
                self._console.print("\n[yellow]cancelled[/]")
            raise
        self._request.conversation_id = view.conversation_id or self._request.conversation_id
        return view.ended is not None and view.ended.status == turn_pb2.TURN_STATUS_COMPLETED

    async def _decide(self, view: "TurnView") -> bool:
        """Ask the person about each tool that waits; gives whether one could be asked."""
        if not sys.stdin.isatty():
            calls = " ".join(one.call_id for one in view.waiting)
            typer.echo(f"The turn {view.turn_id} waits for a person to approve {calls}.", err=True)
            return False
        for asked in list(view.waiting):
            self._console.print(f"[bold yellow]{asked.prompt}[/] [dim]{asked.arguments_json}[/] (y/n) ", end="")
            answer = (await asyncio.to_thread(sys.stdin.readline)).strip().lower()
            await self._agent.decide(view.turn_id, asked.call_id, approve=answer in {"y", "yes"})
        view.waiting.clear()
        return True


def _note(view: "TurnView", event: Any) -> None:
    """Follow a turn without showing it."""
    view.position = max(view.position, event.position)
    if event.HasField("started"):
        view.conversation_id, view.turn_id = event.started.conversation_id, event.started.turn_id
    elif event.HasField("approval_requested"):
        view.waiting.append(event.approval_requested)
    elif event.HasField("ended"):
        view.ended = event.ended


@app.command("list", epilog="Examples: gaggle sessions list; gaggle sessions list --json | jq .id")
def list_sessions(
    *,
    limit: Annotated[int, typer.Option(min=0, help="So many at most; 0: all.")] = 20,
    user: UserOption = "",
    as_json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """List sessions, newest first."""

    async def run() -> None:
        from cli.agent.showing import session_table

        found: list[Session] = []
        async with _agent(user, timeout, data, address, via, app_id, token) as agent:
            async for session in agent.sessions(min(limit or 100, 100)):
                if limit and len(found) == limit:
                    typer.echo(f"There are more: --limit 0 lists all, --limit {limit * 2} more.", err=True)
                    break
                found.append(session)
        if as_json:
            for session in found:
                _print_json(session)
        elif found:
            make_console().print(session_table(found))
        else:
            typer.echo(f"{agent.client.target.user or 'The user'} has no sessions.", err=True)

    asyncio.run(run())


@app.command(epilog="Example: gaggle sessions show ID")
def show(
    session_id: Annotated[str, typer.Argument(metavar="ID")],
    *,
    user: UserOption = "",
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Show a session, in the contract's JSON form."""

    async def run() -> None:
        async with _agent(user, timeout, data, address, via, app_id, token) as agent:
            _print_json(await agent.session(session_id), indent=2)

    asyncio.run(run())


@app.command(epilog="Examples: gaggle sessions usage; gaggle sessions usage --from 2026-01-01 --model offline")
def usage(
    *,
    first: Annotated[str, typer.Option("--from", metavar="DAY", help="Default: 30 days ago.")] = "",
    last: Annotated[str, typer.Option("--to", metavar="DAY", help="Default: today (UTC).")] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="Of this model alone.")] = "",
    user: UserOption = "",
    as_json: JsonOption = False,
    timeout: TimeoutOption = 10.0,
    data: DataOption = None,
    address: AddressOption = "",
    via: ViaOption = "",
    app_id: AppIdOption = "",
    token: TokenOption = "",
) -> None:
    """Show what was used, by day and model."""

    async def run() -> None:
        from cli.agent.showing import usage_table

        async with _agent(user, timeout, data, address, via, app_id, token) as agent:
            days = await agent.usage(first, last, model)
        if as_json:
            for day in days:
                _print_json(day)
        elif days:
            make_console().print(usage_table(days))
        else:
            typer.echo("Nothing was used in these days.", err=True)

    asyncio.run(run())


@asynccontextmanager
async def _agent(
    user: str, seconds: float, data: Path | None, address: str, via: str, app_id: str, token: str
) -> "AsyncIterator[AgentClient]":
    from cli.agent.client import SERVICE, AgentClient

    async with connected(user, seconds, data, address, via, app_id, token, service=SERVICE) as client:
        yield AgentClient(client, seconds)


def _print_json(message: "Message", indent: int | None = None) -> None:
    from google.protobuf import json_format

    typer.echo(json_format.MessageToJson(message, indent=indent))
