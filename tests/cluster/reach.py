"""Who reaches whom: TCP connections out of a Pod's own network, Pods of other namespaces, and hosts outside."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator
from typing import Any

from tests.cluster.calls import NAMESPACE, RELEASE, Calls
from tests.cluster.control import Cluster
from tests.cluster.network import NSENTER, add_network, remove_network

Target = tuple[str, int]
PUBLIC = "203.0.113.10"
"""An address of the internet (one that RFC 5737 keeps for examples)."""
PRIVATE = "10.9.9.9"
"""An address of somebody's own network."""
OUTSIDE_PORT = 8080
_OUTSIDE = "outside"
# A refusal is silence: the first packet is sent again once within this time.
_SECONDS = 2.5

_CONNECT = f"""
import asyncio, json, sys
async def reached(host, port):
    try:
        async with asyncio.timeout({_SECONDS}):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True
async def main():
    targets = json.load(sys.stdin)
    print(json.dumps(await asyncio.gather(*(reached(*one) for one in targets))))
asyncio.run(main())
"""


def reached(pod: dict[str, Any], targets: Collection[Target]) -> set[Target]:
    """Those of the targets, address and port, that take a connection from a Pod."""
    asked = list(targets)
    result = subprocess.run(
        [NSENTER, f"--net=/run/netns/{Calls.network(pod)}", sys.executable, "-c", _CONNECT],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
    )
    return {target for target, was in zip(asked, json.loads(result.stdout), strict=True) if was}


@contextlib.contextmanager
def pod_elsewhere(cluster: Cluster, namespace: str, labels: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """A Pod that does nothing, in a namespace of its own; both are gone afterwards."""
    cluster.kubectl("create", "namespace", namespace)
    try:
        # A Pod is refused before its account is there.
        cluster.until("the account", lambda: bool(cluster.objects("serviceaccounts", namespace)))
        container = {"name": "idle", "image": "none", "command": ["sleep", "infinity"]}
        spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
        meta = {"name": "idle", "namespace": namespace, "labels": labels or {}}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
        cluster.kubectl("create", "-f", "-", stdin=json.dumps(pod))
        cluster.kubectl("wait", "pod/idle", "-n", namespace, "--for=condition=Ready", "--timeout=60s")
        (running,) = cluster.objects("pods", namespace)
        yield running
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--timeout=60s")


@contextlib.contextmanager
def hosts_outside(cluster: Cluster) -> Iterator[None]:
    """A host with a public and a private address, which listens at a port that no store has."""
    asyncio.run(add_network(_OUTSIDE, _OUTSIDE, [PUBLIC, PRIVATE]))
    try:
        listener = [sys.executable, "-m", "http.server", str(OUTSIDE_PORT), "--directory", "/run"]
        with cluster.running(_OUTSIDE, [NSENTER, f"--net=/run/netns/{_OUTSIDE}", *listener]):
            cluster.until("the host outside listens", lambda: all(map(_listens, (PUBLIC, PRIVATE))))
            yield
    finally:
        asyncio.run(remove_network(_OUTSIDE))


@contextlib.contextmanager
def policies_of(cluster: Cluster, chart: str, usual: Collection[str], *values: str) -> Iterator[None]:
    """The chart's policies as they are with further values; those of the usual ones afterwards."""

    def apply(*more: str) -> None:
        only = ("--show-only", "templates/networkpolicies.yaml")
        rendered = cluster.helm("template", RELEASE, chart, "-n", NAMESPACE, *only, *usual, *more)
        cluster.kubectl("apply", "-f", "-", stdin=rendered)

    apply(*values)
    try:
        yield
    finally:
        apply()


def _listens(address: str) -> bool:
    try:
        with socket.create_connection((address, OUTSIDE_PORT), timeout=1):
            return True
    except OSError:
        return False
