"""`gaggle token`."""

import re
from typing import Annotated

import typer

from cli.mesh.data import DataDirectory
from cli.mesh.keys import sign_token
from cli.mesh_commands import DataOption

_SPAN = re.compile(r"(\d+)([smhd]?)")
_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(
        epilog='Example: grpcurl -plaintext -H "authorization: Bearer $(gaggle token ada)" 127.0.0.1:50101 list'
    )(token)


def token(
    user: Annotated[str, typer.Argument(help="The user whom the token stands for.")],
    *,
    role: Annotated[list[str] | None, typer.Option(help="A role of the user, for example admin.")] = None,
    ttl: Annotated[str, typer.Option(help="How long it is valid: 45s, 30m, 1h, 7d. At most 30d.")] = "1h",
    data: DataOption = None,
) -> None:
    """Print a bearer token for a user, signed with the local mesh's key. Nothing else is printed."""
    typer.echo(sign_token(DataDirectory.at(data), user, roles=role or [], ttl_seconds=_seconds(ttl)))


def _seconds(text: str) -> int:
    found = _SPAN.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a span such as 45s, 30m, 1h or 7d", param_hint="--ttl")
    number, unit = found.groups()
    return int(number) * _UNIT_SECONDS[unit]
