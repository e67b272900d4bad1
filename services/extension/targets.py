"""What may be run and connected to: the deployment's list of commands, and public addresses."""

import asyncio
import ipaddress
import os
import shutil
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from google.rpc import code_pb2

from gaggle.common.v1 import error_reason_pb2
from gaggle.extension.v1 import extension_pb2
from services.runtime.errors import GaggleError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
# IETF protocol assignments (RFC 6890), of which Python's versions think differently.
_PROTOCOLS = ipaddress.IPv4Network("192.0.0.0/24")
_LOW_32_BITS = 0xFFFFFFFF


class TargetBlockedError(GaggleError):
    """The deployment does not allow this command or address."""

    code = code_pb2.PERMISSION_DENIED

    def __init__(self, target: str, why: str) -> None:
        """`target` is the caller's own word for it; `why` names no address that the caller could not have known."""
        super().__init__(
            f"{target!r} {why}",
            reason=error_reason_pb2.ERROR_REASON_MCP_TARGET_BLOCKED,
            metadata={"target": target},
        )


def is_acting(config: extension_pb2.ExtensionConfig, acting: Collection[Sequence[str]]) -> bool:
    """Tell whether an extension is, word for word, one of the commands that act for the user who calls."""
    return config.HasField("stdio") and (config.stdio.cmd, *config.stdio.args) in acting


def find_command(cmd: str, args: Sequence[str], allowed: Sequence[Sequence[str]], path: str) -> str:
    """Give the program to run, an absolute path.

    Words are compared as they are: `./uvx` is not `uvx`, and no entry is a pattern. Raises TargetBlockedError if the
    list does not have it, and FileNotFoundError if the machine has not.
    """
    words = [cmd, *args]
    if not any(words[: len(entry)] == list(entry) for entry in allowed):
        raise TargetBlockedError(cmd, "with these arguments is not on this deployment's list of commands")
    if os.sep in cmd:
        if not Path(cmd).is_absolute():
            raise TargetBlockedError(cmd, "must be a name or an absolute path")
        return cmd
    found = shutil.which(cmd, path=path)
    if found is None:
        raise FileNotFoundError(f"{cmd} is on this deployment's list of commands, but is not installed")
    return str(Path(found).absolute())


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the public internet, and of one host there.

    An IPv6 address that stands for an IPv4 one (mapped, compatible, NAT64, 6to4, Teredo) is judged by that too.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id or address.is_site_local:
            return False
        # These stand for an IPv4 address and for nothing else ...
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & _LOW_32_BITS))
        # ... and these pass through one.
        inner = address.sixtofour or (address.teredo[1] if address.teredo else None)
        if address in _COMPATIBLE or (inner is not None and not is_public(inner)):
            return False
    elif address in _PROTOCOLS:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class AddressPolicy:
    """Resolves the hosts of HTTP targets, and lets public addresses pass alone."""

    def __init__(self, allowed_hosts: Sequence[str]) -> None:
        """`allowed_hosts`, as `name` or `name:port`, may have any address."""
        self._allowed = frozenset(one.lower() for one in allowed_hosts)

    def check_uri(self, uri: str) -> None:
        """Refuse a URI that can't be connected to, before anything is resolved. Raises TargetBlockedError."""
        try:
            parts = urlsplit(uri)
            port = parts.port
        except ValueError:
            raise TargetBlockedError(uri, "is no URI") from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise TargetBlockedError(uri, "must begin with http:// or https:// and name a host")
        if parts.username is not None or parts.password is not None:
            raise TargetBlockedError(parts.hostname, "must not carry a user name or a password; use headers")
        if port == 0:
            raise TargetBlockedError(parts.hostname, "has no usable port")

    async def resolve(self, host: str, port: int) -> str:
        """Give the address to connect to, which is the one that was checked.

        Raises TargetBlockedError if the host has an address that is not public, and OSError if it has none.
        """
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
        if not addresses:
            raise OSError(f"{host} has no address")
        name = host.lower().rstrip(".")
        if name in self._allowed or f"{name}:{port}" in self._allowed:
            return addresses[0]
        # All of them: a name with one good and one bad address is an attempt at something.
        if not all(is_public(ipaddress.ip_address(one)) for one in addresses):
            raise TargetBlockedError(host, "has an address that is not public")
        return addresses[0]
