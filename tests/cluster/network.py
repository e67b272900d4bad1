"""Networks of the cluster under test: a namespace for each Pod, joined to the node by a route and to nothing else.

What passes between two Pods is forwarded by the node's kernel, with the addresses that it was sent with: there
kube-proxy puts an endpoint in a Service's place, and policies.py lets pass what policies allow.
"""

import asyncio
import subprocess
from collections.abc import Sequence
from itertools import count
from pathlib import Path

HOST = "10.244.0.1"
"""This machine, as Pods see it: the node's address, and the API server's."""

NSENTER = "/usr/bin/nsenter"

SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
"""The API server, as a Service: the first address of the range."""

PODS = "10.244.0.0/16"


def make_node_network() -> None:
    """The node's part; what `ip` needs lies on a /run of our own."""
    _run(["/usr/bin/mount", "-t", "tmpfs", "tmpfs", "/run"])
    _run(["ip", "link", "set", "lo", "up"])
    _run(["ip", "address", "add", f"{HOST}/32", "dev", "lo"])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    # The node's own calls of a Service must have a route before an endpoint takes its place.
    _run(["ip", "route", "add", SERVICES, "dev", "lo", "src", HOST])


async def add_network(name: str, device: str, addresses: Sequence[str]) -> None:
    """A namespace with these addresses; `device` is the node's end of the way there."""
    await ip("netns", "add", name)
    await ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", name)
    for one in ("lo", "eth0"):
        await ip("-n", name, "link", "set", one, "up")
    for address in addresses:
        await ip("-n", name, "address", "add", f"{address}/32", "dev", "eth0")
    await ip("-n", name, "route", "add", HOST, "dev", "eth0")
    await ip("-n", name, "route", "add", "default", "via", HOST, "dev", "eth0")
    await ip("link", "set", device, "up")
    for address in addresses:
        await ip("route", "add", address, "dev", device, "src", HOST)


async def remove_network(name: str) -> None:
    """The end of one; its veth and its routes go with it."""
    await ip("netns", "delete", name)


class PodNetworks:
    """Makes and removes the Pods' networks."""

    def __init__(self) -> None:
        self._numbers = count(2)

    async def add(self) -> tuple[str, str]:
        """A new namespace with one address; its name and the address."""
        number = next(self._numbers)
        name, address = f"pod{number}", f"10.244.{number // 250}.{number % 250 + 2}"
        await add_network(name, f"veth{number}", [address])
        return name, address

    async def remove(self, name: str) -> None:
        """The end of one."""
        await remove_network(name)


async def ip(*arguments: str) -> None:
    """Has the program ip do something. Raises RuntimeError with what it said."""
    process = await asyncio.create_subprocess_exec("ip", *arguments, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {said.decode().strip()}")


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True)
