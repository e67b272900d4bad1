"""A node for a cluster without containers: what kubelet, cluster DNS and a network plug-in do there.

- Each Pod that the controllers make gets a network namespace and an address; its containers are run as plain processes
  (see containers.py) with the environment, tokens and volumes that the Pod names, are started again when they die, and
  are probed as it says. Its status is reported, so that rollouts, Jobs and hooks proceed by what really happens.
- Names of Services, and of Pods of StatefulSets, are lines of one hosts file.
- NetworkPolicies are rules of the kernel's packet filter (see policies.py) before a Pod's first process runs.

Services' addresses are kube-proxy's, which runs beside it. Not here: images, securityContext, resources, and a
scheduler's choice (there is one node).
"""

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.binaries.nftables import Nftables
from tests.cluster import containers
from tests.cluster.api import Access, Api, Object
from tests.cluster.containers import Host, NotYetError, Process
from tests.cluster.network import HOST, PodNetworks
from tests.cluster.policies import Policies

NODE = "node"
_POLL_SECONDS = 0.3
_RETRY_SECONDS = 0.5
_REFRESH_SECONDS = 1.0
_RESTART_SECONDS = 1.0
_LONGEST_RESTART_SECONDS = 10.0
_log = logging.getLogger("node")


class Container:
    """One container of a running Pod."""

    def __init__(self, pod: "Pod", spec: Object) -> None:
        self._pod = pod
        self.spec = spec
        self.process: Process | None = None
        self.started = False
        self.ready = False
        self.restarts = 0
        self.exit_code: int | None = None
        self._since = _now()

    async def run(self, *, restart: str) -> None:
        """Runs it until it may end; probes it meanwhile."""
        pause = _RESTART_SECONDS
        while True:
            began = time.monotonic()
            await self._once()
            if restart == "Never" or (restart == "OnFailure" and self.exit_code == 0) or self._pod.ending:
                return
            self.restarts += 1
            _log.info("%s/%s ended with %s", self._pod.name, self.spec["name"], self.exit_code)
            if time.monotonic() - began > _LONGEST_RESTART_SECONDS:
                pause = _RESTART_SECONDS
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_RESTART_SECONDS)

    async def _once(self) -> None:
        self.exit_code = None
        self._since = _now()
        self.process = await self._pod.start(self.spec)
        probing = asyncio.create_task(self._probe())
        try:
            self.exit_code = await self.process.wait()
        finally:
            probing.cancel()
            self.started = self.ready = False
            await self._pod.report()

    async def _probe(self) -> None:
        if "startupProbe" in self.spec:
            await self._until("startupProbe", good=True)
        self.started = True
        self.ready = "readinessProbe" not in self.spec
        await self._pod.report()
        await asyncio.gather(self._readiness(), self._liveness())

    async def _readiness(self) -> None:
        probe = self.spec.get("readinessProbe")
        while probe is not None:
            await self._until("readinessProbe", good=not self.ready)
            self.ready = not self.ready
            await self._pod.report()

    async def _liveness(self) -> None:
        if "livenessProbe" in self.spec:
            await self._until("livenessProbe", good=False)
            self._kill("livenessProbe")

    async def _until(self, kind: str, *, good: bool) -> None:
        """Returns once a probe succeeded (`good`) or failed as often in a row as it must to count."""
        probe = self.spec[kind]
        await asyncio.sleep(min(probe.get("initialDelaySeconds", 0), 5))
        failures = 0
        while True:
            fine = await _succeeds(probe, self.spec, self._pod.address)
            failures = 0 if fine else failures + 1
            if (fine and good) or (not good and failures >= probe.get("failureThreshold", 3)):
                return
            if kind == "startupProbe" and failures >= probe.get("failureThreshold", 3):
                self._kill(kind)
                return
            await asyncio.sleep(probe.get("periodSeconds", 10))

    def _kill(self, why: str) -> None:
        _log.warning("%s/%s is killed: its %s failed", self._pod.name, self.spec["name"], why)
        if self.process is not None:
            self.process.signal(signal.SIGKILL)

    def status(self) -> Object:
        """Its containerStatus."""
        state: Object = {"waiting": {"reason": "ContainerCreating"}}
        if self.exit_code is not None:
            state = {"terminated": {"exitCode": self.exit_code, "startedAt": self._since, "finishedAt": _now()}}
        elif self.process is not None:
            state = {"running": {"startedAt": self._since}}
        return {
            "name": self.spec["name"],
            "image": self.spec["image"],
            "imageID": self.spec["image"],
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": state,
        }


class Pod:
    """One Pod from its creation to the end of its processes."""

    def __init__(self, api: Api, host: Host, networks: PodNetworks, policies: Policies, found: Object) -> None:
        self._api = api
        self._host = host
        self._networks = networks
        self._policies = policies
        self._found = found
        self._reporting = asyncio.Lock()
        self._network = ""
        self._volumes: dict[str, Path] = {}
        self._phase = "Pending"
        self._began = _now()
        self._started = False
        self._containers = [Container(self, one) for one in found["spec"]["containers"]]
        self.address = ""
        self.ending = False
        self.name = found["metadata"]["name"]
        self._path = f"/api/v1/namespaces/{found['metadata']['namespace']}/pods/{self.name}"

    async def run(self) -> None:
        """Runs it; returns when all of its containers have ended for good."""
        if not self._found["spec"].get("nodeName"):
            target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
            binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": self.name}, "target": target}
            await self._api.post(f"{self._path}/binding", binding)
        self._network, self.address = await self._networks.add()
        self._found["status"]["podIP"] = self.address
        await self.report()
        await self._policies.cover(self.address)
        self._volumes = await _patiently(
            lambda: containers.prepare_volumes(self._api, self._host, self._found), self.name
        )
        restart = self._found["spec"].get("restartPolicy", "Always")
        for spec in self._found["spec"].get("initContainers", []):
            await Container(self, spec).run(restart="OnFailure" if restart == "Always" else restart)
        self._phase, self._started = "Running", True
        keeping = asyncio.create_task(self._keep_volumes())
        try:
            await asyncio.gather(*(one.run(restart=restart) for one in self._containers))
        finally:
            keeping.cancel()
        if not self.ending:
            self._phase = "Succeeded" if all(one.exit_code == 0 for one in self._containers) else "Failed"
            await self.report()

    async def _keep_volumes(self) -> None:
        """Volumes follow their secrets and config maps: Dapr's control plane waits for its trust bundle."""
        while any("secret" in one or "configMap" in one for one in self._found["spec"].get("volumes", [])):
            await asyncio.sleep(_REFRESH_SECONDS)
            with contextlib.suppress(NotYetError):
                await containers.refresh_volumes(self._api, self._found, self._volumes)

    async def start(self, spec: Object) -> Process:
        """Starts one of its containers, once what it names is there."""
        variables = await _patiently(
            lambda: containers.environment(self._api, self._host, self._found, spec), self.name
        )
        logs = self._host.files / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{self._found['metadata']['namespace']}.{self.name}.{spec['name']}.log"
        process = await Process.start(
            self._host,
            self._found,
            spec,
            network=self._network,
            volumes=self._volumes,
            log=log,
            variables=variables,
        )
        await self.report()
        return process

    async def end(self, running: asyncio.Task[None], grace_seconds: int) -> None:
        """SIGTERM, SIGKILL after the grace, and the Pod is gone."""
        self.ending = True
        for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10)):
            for one in self._containers:
                if one.process is not None:
                    one.process.signal(number)
            done, _ = await asyncio.wait([running], timeout=seconds if self._started else 0)
            if done:
                break
        running.cancel()
        if self._network:
            await self._networks.remove(self._network)
        await self._api.delete(self._path, grace_seconds=0)

    async def report(self) -> None:
        """Patches its status."""
        async with self._reporting:
            ready = self._phase == "Running" and all(one.ready for one in self._containers)
            conditions = {"PodScheduled": True, "Initialized": self._started, "ContainersReady": ready, "Ready": ready}
            status: Object = {
                "phase": self._phase,
                "hostIP": HOST,
                "podIP": self.address,
                "podIPs": [{"ip": self.address}],
                "startTime": self._began,
                "conditions": [
                    {"type": name, "status": str(value), "lastTransitionTime": _now()}
                    for name, value in conditions.items()
                ],
                "containerStatuses": [one.status() for one in self._containers],
            }
            with contextlib.suppress(httpx.HTTPStatusError):
                # One that is gone meanwhile has nothing to report.
                await self._api.merge(f"{self._path}/status", {"status": status})


class Names:
    """What cluster DNS would answer, as a hosts file."""

    def __init__(self, api: Api, host: Host) -> None:
        self._api = api
        self._hosts = host.hosts
        self._written = ""

    async def update(self, pods: list[Object]) -> None:
        """Takes what Services, EndpointSlices and Pods there are now."""
        services = await self._api.list("/api/v1/services")
        slices = await self._api.list("/apis/discovery.k8s.io/v1/endpointslices")
        lines = ["127.0.0.1 localhost", "::1 localhost"]
        for service in services:
            name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
            names = f"{name}.{namespace}.svc.cluster.local {name}.{namespace}.svc {name}.{namespace}"
            address = service["spec"].get("clusterIP", "None")
            addresses = {address}
            if address == "None":
                addresses = {at for one in slices if _is_of(one, name, namespace) for at in _ready(one)}
            lines += [f"{one} {names}" for one in sorted(addresses)]
        for pod in pods:
            spec, address = pod["spec"], pod.get("status", {}).get("podIP")
            if address and spec.get("subdomain"):
                namespace = pod["metadata"]["namespace"]
                host = spec.get("hostname", pod["metadata"]["name"])
                lines.append(f"{address} {host}.{spec['subdomain']}.{namespace}.svc.cluster.local")
        self._write("\n".join(lines) + "\n")

    def _write(self, text: str) -> None:
        # In place: the file is mounted over /etc/hosts of running containers, which see this inode alone.
        if text != self._written:
            with self._hosts.open("r+") as file:
                file.write(text)
                file.truncate()
            self._written = text


class Node:
    """The loop that compares what shall run with what runs."""

    def __init__(self, api: Api, host: Host, policies: Policies) -> None:
        self._api = api
        self._host = host
        self._networks = PodNetworks()
        self._policies = policies
        self._names = Names(api, host)
        self._running: dict[str, tuple[Pod, asyncio.Task[None]]] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                pods = await self._api.list("/api/v1/pods")
                self._take(pods)
                await self._policies.update(pods)
                await self._names.update(pods)
            except (httpx.HTTPError, OSError, RuntimeError):
                _log.exception("a round failed")
            await asyncio.sleep(_POLL_SECONDS)

    def _take(self, pods: list[Object]) -> None:
        for found in pods:
            uid = found["metadata"]["uid"]
            if "deletionTimestamp" in found["metadata"]:
                if uid not in self._ending:
                    grace = found["metadata"].get("deletionGracePeriodSeconds") or 0
                    self._ending[uid] = _spawn(self._end(uid, found, grace))
            elif uid not in self._running and found.get("status", {}).get("phase", "Pending") == "Pending":
                pod = Pod(self._api, self._host, self._networks, self._policies, found)
                self._running[uid] = (pod, _spawn(pod.run()))

    async def _end(self, uid: str, found: Object, grace_seconds: int) -> None:
        if uid in self._running:
            pod, task = self._running[uid]
            await pod.end(task, grace_seconds)
        else:
            meta = found["metadata"]
            await self._api.delete(f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}", grace_seconds=0)


def _spawn(work: Any) -> asyncio.Task[None]:
    async def told() -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 -- one Pod is not to end the node
            _log.exception("a Pod failed")

    return asyncio.create_task(told())


async def _patiently(get: Callable[[], Awaitable[Any]], name: str) -> Any:
    said = ""
    while True:
        try:
            return await get()
        except (NotYetError, httpx.TransportError) as error:
            if str(error) != said:
                _log.info("%s waits for %s", name, error)
                said = str(error)
            await asyncio.sleep(_RETRY_SECONDS)


async def _succeeds(probe: Object, container: Object, address: str) -> bool:
    seconds = probe.get("timeoutSeconds", 1)
    try:
        if "grpc" in probe:
            target = f"{address}:{probe['grpc']['port']}"
            async with grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
                asked = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service") or "")
                answer = await health_pb2_grpc.HealthStub(channel).Check(asked, timeout=seconds)
                return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        port = _port((probe.get("httpGet") or probe["tcpSocket"])["port"], container)
        if "httpGet" in probe:
            scheme = probe["httpGet"].get("scheme", "HTTP").lower()
            # As a kubelet; and reading the system's authorities takes longer than all the rest of a probe.
            async with httpx.AsyncClient(timeout=seconds, trust_env=False, verify=False) as client:  # noqa: S501
                answer = await client.get(f"{scheme}://{address}:{port}{probe['httpGet'].get('path', '/')}")
                return 200 <= answer.status_code < 400
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(address, port)
            writer.close()
    except (grpc.aio.AioRpcError, httpx.HTTPError, OSError, TimeoutError):
        return False
    return True


def _port(port: int | str, container: Object) -> int:
    if isinstance(port, int):
        return port
    return next(int(one["containerPort"]) for one in container["ports"] if one.get("name") == port)


def _is_of(endpoint_slice: Object, name: str, namespace: str) -> bool:
    meta = endpoint_slice["metadata"]
    labels = meta.get("labels", {})
    return bool(meta["namespace"] == namespace and labels.get("kubernetes.io/service-name") == name)


def _ready(endpoint_slice: Object) -> list[str]:
    endpoints = endpoint_slice.get("endpoints") or []
    return [at for one in endpoints if one["conditions"].get("ready", True) for at in one["addresses"]]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def _main(configuration: Object) -> None:
    access = Access(configuration["url"], *(Path(configuration[one]) for one in ("authority", "certificate", "key")))
    host = Host(
        programs={name: Path(path) for name, path in configuration["programs"].items()},
        path=configuration["path"],
        directory=Path(configuration["directory"]),
        files=Path(configuration["files"]),
        hosts=Path(configuration["hosts"]),
    )
    api = Api(access)
    meta = {"name": NODE, "labels": {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux"}}
    status = {"addresses": [{"type": "InternalIP", "address": HOST}]}
    await api.post("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": meta, "status": status})
    policies = Policies(api, Nftables(Path(configuration["nft"]), configuration["nft_environment"]))
    await Node(api, host, policies).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("configuration", type=Path)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(_main(json.loads(parser.parse_args().configuration.read_text())))
