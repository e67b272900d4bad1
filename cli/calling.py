"""What commands that call a service share: their options, and the way to it."""

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.protobuf.message import Message
    from rich.console import Console

    from cli.conversations.client import Client

UserOption = Annotated[
    str, typer.Option("--user", "-u", help="Whose they are. Default: $GAGGLE_USER, else your login name.")
]
TokenOption = Annotated[
    str,
    typer.Option(
        envvar="GAGGLE_TOKEN", help="A bearer token to use instead of one signed for --user by the local mesh."
    ),
]
AddressOption = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT",
        help="Where the service listens; https://HOST:PORT by TLS. Default: what DATA/mesh.json says.",
    ),
]
ViaOption = Annotated[
    str, typer.Option(metavar="SERVICE", help="Go through the sidecar of this service of the local mesh.")
]
AppIdOption = Annotated[
    str, typer.Option(metavar="APP_ID", help="With --address: that is a sidecar, and this the app to call through it.")
]
TimeoutOption = Annotated[
    float, typer.Option(metavar="SECONDS", min=0.1, help="How long a call is tried while the mesh does not answer.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, in the contract's JSON form.")]


@asynccontextmanager
async def connected(
    user: str,
    timeout_seconds: float,
    data: Path | None,
    address: str,
    via: str,
    app_id: str,
    token: str,
    *,
    service: str = "conversation",
) -> "AsyncIterator[Client]":
    """A client of a service, found by the options above. Raises CommandError."""
    from cli.conversations.client import Target, connect

    target = Target.find(data=data, address=address, via=via, app_id=app_id, user=user, token=token, service=service)
    async with connect(target, timeout_seconds=timeout_seconds) as client:
        yield client


def call(
    service: str,
    stub: "Callable[[Any], Any]",
    work: "Callable[[Client, Any], Awaitable[None]]",
    where: tuple[str, float, Path | None, str, str, str, str],
) -> None:
    """Does work with a service's stub; `where` are the arguments of `connected`. Raises CommandError."""

    async def run() -> None:
        async with connected(*where, service=service) as client:
            await work(client, stub(client.channel))

    asyncio.run(run())


def make_console() -> "Console":
    """Make what results are drawn on: numbers and names stay uncoloured."""
    from rich.console import Console

    return Console(highlight=False)


def print_json(message: "Message") -> None:
    """One message as a line of JSON, in the contract's form."""
    from google.protobuf.json_format import MessageToJson

    typer.echo(MessageToJson(message, indent=None, ensure_ascii=False))
