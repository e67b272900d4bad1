"""Which process listens where, on loopback.

dapr.yaml gives every service its ports, from 50101. `--port-base N` moves them all by the same distance, replicas lie
20 apart, and the control plane and the broker lie 600 above the base.
"""

import contextlib
import os
import random
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cli.errors import Refused

LOOPBACK = "127.0.0.1"
DEFAULT_BASE = 50101
# Unprivileged, and with room for the layout above it.
LOWEST_BASE, HIGHEST_BASE = 1024, 64_000
REPLICA_STRIDE = 20
MOST_REPLICAS = 5
# Below the range from which Linux (32768) and macOS (49152) draw ports for outgoing connections.
_FREE_BASES = range(10_000, 31_000)
_ATTEMPTS = 200


@dataclass(frozen=True)
class Ports:
    """The port layout of one mesh."""

    base: int = DEFAULT_BASE

    def shifted(self, port: int, replica: int = 0) -> int:
        """A port of dapr.yaml in this layout, for the replica of that number (from 0)."""
        return port - DEFAULT_BASE + self.base + replica * REPLICA_STRIDE

    @property
    def broker(self) -> int:
        """The broker, whichever it is."""
        return self.base + 600

    @property
    def placement(self) -> int:
        """Placement's gRPC API; the next two ports are its health and metrics, the third its Raft peer."""
        return self.base + 601

    @property
    def scheduler(self) -> int:
        """The scheduler's gRPC API; the next two ports are its health and metrics, then etcd's client and peer."""
        return self.base + 605

    @property
    def broker_peer(self) -> int:
        """Where brokers of one cluster would meet: Kafka's controller, RabbitMQ's distribution."""
        return self.base + 610

    @property
    def broker_nodes(self) -> int:
        """Where RabbitMQ's nodes are listed (epmd)."""
        return self.base + 611

    @property
    def sentry(self) -> int:
        """Where sidecars ask for their identities; the next two ports are sentry's health and metrics."""
        return self.base + 612

    @property
    def infrastructure(self) -> list[int]:
        """Every port of the stores and the control plane."""
        control_plane = [*range(self.placement, self.placement + 4), *range(self.scheduler, self.scheduler + 5)]
        sentry = range(self.sentry, self.sentry + 3)
        return [self.broker, *control_plane, self.broker_peer, self.broker_nodes, *sentry]


def direct_loopback() -> dict[str, str]:
    """Environment that keeps calls on loopback from a proxy that a person has set: gRPC heeds those variables too."""
    given = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    exempt = ",".join(filter(None, [given, LOOPBACK, "localhost"]))
    return {"NO_PROXY": exempt, "no_proxy": exempt}


def is_free(port: int) -> bool:
    """Whether a process could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do: a connection that lingers in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except (OSError, OverflowError):
            return False
    return True


@contextlib.contextmanager
def reserved(ports: Iterable[int]) -> Iterator[None]:
    """Keep ports from being drawn for outgoing connections before servers listen there, and while these restart.

    The default layout lies where Linux draws them. A bound socket that does not listen is in no server's way, as
    long as both allow reuse, which all of the mesh's do.
    """
    with contextlib.ExitStack() as held:
        for port in ports:
            one = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # Whoever is to listen there says it better.
                one.bind((LOOPBACK, port))
        yield


def find_free_base(wanted_at_default: list[int]) -> Ports:
    """A layout whose every port is free now.

    Args:
        wanted_at_default: the services' ports in the default layout.

    Raises:
        Refused: none was found.
    """
    # Random, so that two meshes that start together hardly ever choose alike.
    chooser = random.SystemRandom()
    for _ in range(_ATTEMPTS):
        ports = Ports(chooser.choice(_FREE_BASES))
        if all(is_free(port) for port in [*map(ports.shifted, wanted_at_default), *ports.infrastructure]):
            return ports
    raise Refused("No block of free ports was found on this machine.")
