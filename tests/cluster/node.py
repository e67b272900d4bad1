"""A node for a cluster without containers: what kubelet, kube-proxy and cluster DNS do there.

- Each Pod that the controllers make gets a network namespace and an address; its containers are run as plain processes
  (see containers.py) with the environment, tokens and volumes that the Pod names, are started again when they die, and
  are probed as it says. Its status is reported, so that rollouts, Jobs and hooks proceed by what really happens.
- Each ClusterIP is an address of this machine, whose connections are passed on to the ready endpoints of its Service.
- Names of Services, and of Pods of StatefulSets, are lines of one hosts file.

Not here: images, securityContext, resources, NetworkPolicies, and a scheduler's choice (there is one node).
"""

import argparse
import asyncio
import contextlib
import json
import logging
import random
import signal
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.cluster import containers
from tests.cluster.api import Access, Api, Object
from tests.cluster.containers import Host, NotYetError, Process
from tests.cluster.network import HOST, PodNetworks, ip

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

    def __init__(self, api: Api, host: Host, networks: PodNetworks, found: Object) -> None:
        self._api = api
        self._host = host
        self._networks = networks
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


class Services:
    """ClusterIPs and names."""

    def __init__(self, api: Api, host: Host) -> None:
        self._api = api
        self._hosts = host.hosts
        self._listening: dict[tuple[str, int], asyncio.Server] = {}
        self._endpoints: dict[tuple[str, int], list[tuple[str, int]]] = {}
        self._addresses: set[str] = set()
        self._passed: set[asyncio.Task[Any]] = set()
        self._written = ""

    async def update(self, pods: list[Object]) -> None:
        """Takes what Services, EndpointSlices and Pods there are now."""
        services = await self._api.list("/api/v1/services")
        slices = await self._api.list("/apis/discovery.k8s.io/v1/endpointslices")
        lines = ["127.0.0.1 localhost", "::1 localhost"]
        wanted: dict[tuple[str, int], list[tuple[str, int]]] = {}
        for service in services:
            name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
            own = [
                one
                for one in slices
                if one["metadata"]["namespace"] == namespace
                and one["metadata"].get("labels", {}).get("kubernetes.io/service-name") == name
            ]
            address = service["spec"].get("clusterIP", "None")
            names = f"{name}.{namespace}.svc.cluster.local {name}.{namespace}.svc {name}.{namespace}"
            if address == "None":
                lines += [f"{one} {names}" for one in sorted({at for slice_ in own for at in _ready(slice_)})]
                continue
            lines.append(f"{address} {names}")
            for port in service["spec"].get("ports", []):
                wanted[address, port["port"]] = [
                    (at, number)
                    for slice_ in own
                    for number in _numbers(slice_, port.get("name") or "")
                    for at in _ready(slice_)
                ]
        for pod in pods:
            spec, address = pod["spec"], pod.get("status", {}).get("podIP")
            if address and spec.get("subdomain"):
                namespace = pod["metadata"]["namespace"]
                host = spec.get("hostname", pod["metadata"]["name"])
                lines.append(f"{address} {host}.{spec['subdomain']}.{namespace}.svc.cluster.local")
        self._write("\n".join(lines) + "\n")
        self._endpoints = wanted
        await self._listen()

    async def _listen(self) -> None:
        for key in self._listening.keys() - self._endpoints.keys():
            self._listening.pop(key).close()
        for address, port in self._endpoints.keys() - self._listening.keys():
            if address not in self._addresses:
                await ip("address", "add", f"{address}/32", "dev", "lo")
                self._addresses.add(address)
            self._listening[address, port] = await asyncio.start_server(self._passing(address, port), address, port)

    def _passing(
        self, address: str, port: int
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # The loop itself holds on to no task: an idle connection would be collected.
            task = asyncio.current_task()
            assert task is not None
            self._passed.add(task)
            task.add_done_callback(self._passed.discard)
            endpoints = self._endpoints.get((address, port))
            try:
                if not endpoints:
                    return
                there, onward = await asyncio.open_connection(*random.choice(endpoints))
                try:
                    await asyncio.gather(_copy(reader, onward), _copy(there, writer))
                finally:
                    onward.close()
            except OSError:
                # The endpoint is gone: so is the caller's connection.
                return
            finally:
                writer.close()

        return accept

    def _write(self, text: str) -> None:
        # In place: the file is mounted over /etc/hosts of running containers, which see this inode alone.
        if text != self._written:
            with self._hosts.open("r+") as file:
                file.write(text)
                file.truncate()
            self._written = text


class Node:
    """The loop that compares what shall run with what runs."""

    def __init__(self, api: Api, host: Host) -> None:
        self._api = api
        self._host = host
        self._networks = PodNetworks()
        self._services = Services(api, host)
        self._running: dict[str, tuple[Pod, asyncio.Task[None]]] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                pods = await self._api.list("/api/v1/pods")
                self._take(pods)
                await self._services.update(pods)
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
                pod = Pod(self._api, self._host, self._networks, found)
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
        except NotYetError as error:
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
            async with httpx.AsyncClient(timeout=seconds, trust_env=False) as client:
                answer = await client.get(f"http://{address}:{port}{probe['httpGet'].get('path', '/')}")
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


def _ready(endpoint_slice: Object) -> list[str]:
    endpoints = endpoint_slice.get("endpoints") or []
    return [at for one in endpoints if one["conditions"].get("ready", True) for at in one["addresses"]]


def _numbers(endpoint_slice: Object, name: str) -> list[int]:
    return [one["port"] for one in endpoint_slice.get("ports") or [] if (one.get("name") or "") == name]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.close()


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
        api_port=configuration["api_port"],
    )
    api = Api(access)
    meta = {"name": NODE, "labels": {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux"}}
    await api.post("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": meta})
    await Node(api, host).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("configuration", type=Path)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(_main(json.loads(parser.parse_args().configuration.read_text())))
