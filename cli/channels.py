"""Channels to services and sidecars: plain, or by TLS where an address or a mesh says so."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.errors import CommandError

if TYPE_CHECKING:
    import grpc.aio

AUTHORITY = "GAGGLE_TLS_AUTHORITY_FILE"
"""Names the file (PEM) of who signed the certificates, where that is none of the public authorities."""

_TLS = "https://"


def open_channel(
    address: str, *, authority: Path | None = None, options: Sequence[tuple[str, Any]] = ()
) -> "grpc.aio.Channel":
    """A channel to HOST:PORT, or by TLS to https://HOST:PORT; the caller closes it.

    A URL may be reached by the proxy that the environment names; what has no TLS is never handed to one.

    Args:
        address: where to.
        authority: who signed the server's certificate, in PEM; with it HOST:PORT is by TLS, too. Default for a URL: the
            file that $GAGGLE_TLS_AUTHORITY_FILE names, else the public authorities.
        options: further options of the channel.

    Raises:
        CommandError: the authority's file cannot be read.
    """
    # Half a second, which only commands that call something pay.
    import grpc.aio

    direct = (("grpc.enable_http_proxy", 0), *options)
    target = address.removeprefix(_TLS).rstrip("/")
    is_url = address.startswith(_TLS)
    if authority is None and not is_url:
        return grpc.aio.insecure_channel(target, options=direct)
    if authority is None and (named := os.environ.get(AUTHORITY)):
        authority = Path(named)
    try:
        trusted = None if authority is None else authority.read_bytes()
    except OSError as error:
        raise CommandError(f"The authority's certificate cannot be read: {error}") from None
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(trusted), options=options if is_url else direct)
