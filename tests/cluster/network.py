"""Addresses of the cluster under test: one bridge, a network namespace for each Pod, and ClusterIPs on the loopback."""

import asyncio
import subprocess
from collections.abc import Sequence
from itertools import count

BRIDGE = "pods"
HOST = "10.244.0.1"
"""This machine, as Pods see it: the node's address, and the API server's."""

NSENTER = "/usr/bin/nsenter"

SERVICES = "10.96.0.0/16"
_PODS = "10.244.0.0/16"


def make_bridge() -> None:
    """The bridge that all Pods hang on; what `ip` needs lies on a /run of our own."""
    _run(["/usr/bin/mount", "-t", "tmpfs", "tmpfs", "/run"])
    _run(["ip", "link", "set", "lo", "up"])
    _run(["ip", "link", "add", BRIDGE, "type", "bridge"])
    _run(["ip", "address", "add", f"{HOST}/{_PODS.split('/')[1]}", "dev", BRIDGE])
    _run(["ip", "link", "set", BRIDGE, "up"])


class PodNetworks:
    """Makes and removes the Pods' network namespaces."""

    def __init__(self) -> None:
        self._numbers = count(2)

    async def add(self) -> tuple[str, str]:
        """A new namespace with one address; its name and the address."""
        number = next(self._numbers)
        name, address = f"pod{number}", f"10.244.{number // 250}.{number % 250 + 2}"
        outside = f"veth{number}"
        await ip("netns", "add", name)
        await ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        await ip("link", "set", outside, "master", BRIDGE, "up")
        await ip("-n", name, "address", "add", f"{address}/{_PODS.split('/')[1]}", "dev", "eth0")
        for device in ("lo", "eth0"):
            await ip("-n", name, "link", "set", device, "up")
        await ip("-n", name, "route", "add", "default", "via", HOST)
        return name, address

    async def remove(self, name: str) -> None:
        """The end of one; its veth goes with it."""
        await ip("netns", "delete", name)


async def ip(*arguments: str) -> None:
    """Has the program ip do something. Raises RuntimeError with what it said."""
    process = await asyncio.create_subprocess_exec("ip", *arguments, stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {said.decode().strip()}")


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True)
