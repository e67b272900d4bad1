"""NetworkPolicies (networking.k8s.io/v1) as nftables rules: what a cluster's network plug-in does.

A Pod that no policy selects is open. One that is selected for a direction has no connection that way but those that
some policy allows; the others are dropped without an answer, as most plug-ins do. A connection that was let in goes on,
and its answers with it. Rules see a Service's endpoint, not its ClusterIP: kube-proxy comes first.

What the node itself sends passes, a kubelet's probes and the API server's webhooks among it. What a Pod sends to the
node is held to its policies like the rest: plug-ins differ there, and this is the strictest of them.
"""

import asyncio
import ipaddress
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cli.binaries.nftables import Nftables
from tests.cluster.api import Api, Object

EVERYWHERE = "0.0.0.0/0"
_ENDED = ("Succeeded", "Failed")
_TABLE = "ip policies"


@dataclass(frozen=True)
class Allowed:
    """Connections that may be: with these networks save the excepted ones, by this protocol, at these ports.

    Attributes:
        networks: addresses or CIDR blocks; never empty.
        excepted: CIDR blocks within them.
        protocol: tcp, udp or sctp; empty: any.
        ports: a number, or a range as `first-last`; empty: any.
    """

    networks: tuple[str, ...]
    excepted: tuple[str, ...] = ()
    protocol: str = ""
    ports: str = ""


@dataclass(frozen=True)
class Isolation:
    """What a Pod may; None for a direction in which no policy selects it."""

    address: str
    ingress: tuple[Allowed, ...] | None
    egress: tuple[Allowed, ...] | None


@dataclass(frozen=True)
class World:
    """What selectors choose from: the Pods that have an address and have not ended, and the labels of namespaces."""

    pods: Sequence[Object]
    namespaces: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(cls, pods: Sequence[Object], namespaces: Sequence[Object]) -> "World":
        """Of the API's lists."""
        present = [one for one in pods if _address(one) and one["status"].get("phase") not in _ENDED]
        return cls(present, {one["metadata"]["name"]: one["metadata"].get("labels", {}) for one in namespaces})


def isolations(policies: Sequence[Object], world: World) -> list[Isolation]:
    """What each Pod may by all policies together."""
    found = []
    for pod in world.pods:
        selecting = [
            policy
            for policy in policies
            if policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
            and _selects(policy["spec"].get("podSelector") or {}, _labels(pod))
        ]
        allowed: dict[str, tuple[Allowed, ...] | None] = {}
        for direction in ("Ingress", "Egress"):
            those = [one for one in selecting if direction in one["spec"]["policyTypes"]]
            # Nothing keeps a Pod from itself.
            rules = [Allowed((_address(pod),))] if those else []
            for policy in those:
                namespace = policy["metadata"]["namespace"]
                for rule in policy["spec"].get(direction.lower()) or []:
                    if direction == "Ingress":
                        rules += _ingress(rule, pod, namespace, world)
                    else:
                        rules += _egress(rule, namespace, world)
            allowed[direction] = tuple(rules) if those else None
        found.append(Isolation(_address(pod), allowed["Ingress"], allowed["Egress"]))
    return found


def passes(isolated: Sequence[Isolation], source: str, target: str, port: int, protocol: str = "tcp") -> bool:
    """Whether a connection comes about by these rules."""
    by_address = {one.address: one for one in isolated}
    out = by_address[source].egress if source in by_address else None
    into = by_address[target].ingress if target in by_address else None
    return all(
        rules is None or any(_takes(rule, peer, port, protocol) for rule in rules)
        for rules, peer in ((out, target), (into, source))
    )


def script(isolated: Sequence[Isolation]) -> str:
    """The commands that put these rules in the place of earlier ones, all at once."""
    senders = [one for one in isolated if one.egress is not None]
    receivers = [one for one in isolated if one.ingress is not None]
    lines = [f"table {_TABLE}", f"delete table {_TABLE}", f"table {_TABLE} {{"]
    for pod in senders:
        lines += _chain(f"out-{pod.address}", "daddr", pod.egress or ())
    for pod in receivers:
        lines += _chain(f"in-{pod.address}", "saddr", pod.ingress or ())
    for hook, ways in (("forward", ("out", "in")), ("input", ("out",))):
        lines += [f"chain {hook} {{", f"type filter hook {hook} priority filter; policy accept;"]
        lines.append("ct state established,related accept")
        for way, field, pods in (("out", "saddr", senders), ("in", "daddr", receivers)):
            if pods and way in ways:
                verdicts = ", ".join(f"{one.address} : jump {way}-{one.address}" for one in pods)
                lines.append(f"ip {field} vmap {{ {verdicts} }}")
        lines.append("}")
    return "\n".join([*lines, "}", ""])


class Policies:
    """Keeps the kernel's rules what the API's policies are."""

    def __init__(self, api: Api, program: Nftables) -> None:
        self._api = api
        self._program = program
        self._written = ""
        self._covered: set[str] = set()
        self._changed = asyncio.Condition()

    async def update(self, pods: Sequence[Object]) -> None:
        """Takes what policies, namespaces and Pods there are now. Raises RuntimeError with what nft said."""
        policies = await self._api.list("/apis/networking.k8s.io/v1/networkpolicies")
        world = World.of(pods, await self._api.list("/api/v1/namespaces"))
        text = script(isolations(policies, world))
        if text != self._written:
            await self._set(text)
            self._written = text
        async with self._changed:
            self._covered = {_address(one) for one in world.pods}
            self._changed.notify_all()

    async def cover(self, address: str) -> None:
        """Returns once the rules know a Pod: before, it would be open."""
        async with self._changed:
            await self._changed.wait_for(lambda: address in self._covered)

    async def _set(self, text: str) -> None:
        process = await asyncio.create_subprocess_exec(
            str(self._program.program),
            "-f",
            "-",
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **self._program.environment},
        )
        _, said = await process.communicate(text.encode())
        if process.returncode != 0:
            raise RuntimeError(f"nft: {said.decode().strip()}")


def _takes(rule: Allowed, peer: str, port: int, protocol: str) -> bool:
    address = ipaddress.ip_address(peer)
    first, _, last = rule.ports.partition("-")
    return (
        any(address in ipaddress.ip_network(one) for one in rule.networks)
        and not any(address in ipaddress.ip_network(one) for one in rule.excepted)
        and rule.protocol in {"", protocol}
        and (not first or int(first) <= port <= int(last or first))
    )


def _chain(name: str, field: str, allowed: Sequence[Allowed]) -> list[str]:
    return [f"chain {name} {{", *(_rule(field, one) for one in allowed), "drop", "}"]


def _rule(field: str, allowed: Allowed) -> str:
    words = []
    if EVERYWHERE not in allowed.networks:
        words.append(f"ip {field} {{ {', '.join(allowed.networks)} }}")
    if allowed.excepted:
        words.append(f"ip {field} != {{ {', '.join(allowed.excepted)} }}")
    if allowed.ports:
        words.append(f"{allowed.protocol} dport {allowed.ports}")
    elif allowed.protocol:
        words.append(f"meta l4proto {allowed.protocol}")
    return " ".join([*words, "return"])


def _ingress(rule: Object, pod: Object, namespace: str, world: World) -> Iterator[Allowed]:
    for networks, excepted, _ in _peers(rule.get("from"), namespace, world):
        for protocol, ports in _ports(rule.get("ports"), pod):
            yield Allowed(networks, excepted, protocol, ports)


def _egress(rule: Object, namespace: str, world: World) -> Iterator[Allowed]:
    numbered = [one for one in rule.get("ports") or [{}] if not isinstance(one.get("port"), str)]
    named = [one for one in rule.get("ports") or [] if isinstance(one.get("port"), str)]
    for networks, excepted, pods in _peers(rule.get("to"), namespace, world):
        if numbered:
            for protocol, ports in _ports(numbered, {}):
                yield Allowed(networks, excepted, protocol, ports)
        # A name is that of the Pod that is called.
        for pod in pods if named else ():
            for protocol, ports in _ports(named, pod):
                yield Allowed((_address(pod),), (), protocol, ports)


def _peers(
    peers: Sequence[Object] | None, namespace: str, world: World
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], Sequence[Object]]]:
    """Networks, the excepted ones, and the Pods that are meant."""
    if not peers:
        yield (EVERYWHERE,), (), world.pods
        return
    for peer in peers:
        if block := peer.get("ipBlock"):
            # The networks here have no IPv6.
            if ":" not in block["cidr"]:
                yield (block["cidr"],), tuple(block.get("except") or ()), ()
            continue
        pods = [one for one in world.pods if _is_peer(peer, one, namespace, world)]
        if pods:
            yield tuple(map(_address, pods)), (), pods


def _is_peer(peer: Object, pod: Object, namespace: str, world: World) -> bool:
    there = pod["metadata"]["namespace"]
    if "namespaceSelector" in peer:
        if not _selects(peer["namespaceSelector"], world.namespaces.get(there, {})):
            return False
    elif there != namespace:
        return False
    return _selects(peer.get("podSelector") or {}, _labels(pod))


def _ports(ports: Sequence[Object] | None, pod: Object) -> Iterator[tuple[str, str]]:
    """Protocol and ports; a name is looked up in `pod`, and one that it has not is no port."""
    if not ports:
        yield "", ""
        return
    for one in ports:
        if not one:
            yield "", ""
            continue
        protocol = one.get("protocol", "TCP")
        port = one.get("port")
        if isinstance(port, str):
            for number in _numbers(pod, port, protocol):
                yield protocol.lower(), str(number)
        elif port is None:
            yield protocol.lower(), ""
        else:
            yield protocol.lower(), f"{port}-{one['endPort']}" if "endPort" in one else str(port)


def _numbers(pod: Object, name: str, protocol: str) -> list[int]:
    return [
        port["containerPort"]
        for container in pod["spec"]["containers"]
        for port in container.get("ports") or []
        if port.get("name") == name and port.get("protocol", "TCP") == protocol
    ]


def _selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes these labels; an empty one takes all."""
    wanted = selector.get("matchLabels") or {}
    return wanted.items() <= labels.items() and all(
        _meets(one, labels) for one in selector.get("matchExpressions") or []
    )


def _meets(expression: Object, labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or []
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case operator:
            raise ValueError(f"a selector's operator {operator} is unknown")


def _labels(pod: Object) -> Mapping[str, str]:
    labels: Mapping[str, str] = pod["metadata"].get("labels") or {}
    return labels


def _address(pod: Object) -> str:
    return str(pod.get("status", {}).get("podIP") or "")
