"""Runs a plan: starts everything in an order that works, keeps it running, and stops it.

What waits for what, and nothing else does:

    PostgreSQL -> role, database -> migrations --+
    the broker ----------------------------------+--> each sidecar
    sentry, if any -> placement, scheduler ------+
    each service starts at once, and is up long before its sidecar asks it for its subscriptions: daprd itself waits
    for the service's port first

Stopping goes the other way: services (which drain while their sidecars still serve them), sidecars, control plane,
stores.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import psutil

from cli.binaries.dapr import DaprBinaries
from cli.errors import CommandError
from cli.mesh.broker import broker
from cli.mesh.components import write_components, write_configuration
from cli.mesh.control import ControlServer
from cli.mesh.dapr import placement_command, scheduler_command, sidecar_command
from cli.mesh.data import PROJECT_ROOT, DataDirectory
from cli.mesh.description import MeshDescription, ReplicaDescription, ServiceDescription
from cli.mesh.identities import make_identities
from cli.mesh.keys import ensure_keys
from cli.mesh.memory import memory_by_process
from cli.mesh.observing import write_targets
from cli.mesh.plan import Plan, Replica
from cli.mesh.ports import LOOPBACK
from cli.mesh.postgres import create_role_and_database, database_url, postgres_command
from cli.mesh.process import Process, State
from cli.mesh.secrets import api_tokens, read_secrets, write_secrets
from cli.mesh.service import service_command, service_environment
from cli.mesh.sets import ComponentSet

# From its start to ready, on a busy machine. The whole mesh is to take 20 s on an idle one.
_START_SECONDS = 90.0
_OWNER_POLL_SECONDS = 0.5

Tell = Callable[[str], None]


class Supervisor:
    """The processes of one mesh.

    Args:
        plan: what to run.
        components: what to run it on.
        data: where its data lies; created, and locked by the caller.
        suffix: the app-id suffix.
        binaries: Dapr's programs.
        sentry: the program that gives sidecars identities; None for a mesh without them.
        keys_for: names of all services that shall have a signing key, the plan's or more.
        tell: takes a sentence for the person at the terminal.
    """

    def __init__(
        self,
        plan: Plan,
        components: ComponentSet,
        data: DataDirectory,
        *,
        suffix: str,
        binaries: DaprBinaries,
        sentry: Path | None,
        keys_for: Iterable[str],
        tell: Tell,
    ) -> None:
        self._plan = plan
        self._components = components
        self._data = data
        self._suffix = suffix
        self._binaries = binaries
        self._tell = tell
        self._state: Literal["starting", "ready", "stopping"] = "starting"
        self._stop = asyncio.Event()
        self._restarting = asyncio.Lock()
        keys = ensure_keys(data, keys_for)
        known = read_secrets(data)
        self._broker = broker(components, data, plan.ports, known, tls=sentry is not None)
        secrets = write_secrets(data, database=database_url(data), broker=self._broker.secrets, keys=keys)
        app_ids = [replica.app_id for replica in plan.replicas]
        self._identities = make_identities(sentry, data, plan.ports, app_ids) if sentry else None
        self._sentry = [self._process(self._identities.sentry_command(data))] if self._identities else []
        self._postgres = self._process(postgres_command(data))
        self._brokers = [self._process(command) for command in self._broker.commands]
        self._placement = self._process(placement_command(binaries, data, plan.ports, self._identities))
        self._scheduler = self._process(scheduler_command(binaries, data, plan.ports, self._identities))
        self._services: dict[str, Process] = {}
        self._sidecars: dict[str, Process] = {}
        for replica in plan.replicas:
            tokens = api_tokens(data, replica.service, both_ways=self._identities is not None)
            environment = service_environment(replica, components.settings, suffix=suffix, tokens=tokens)
            self._services[replica.name] = self._process(service_command(data, replica, environment))
            configuration = write_configuration(
                components,
                data,
                replica.service,
                suffix=suffix,
                closed=self._identities is not None,
                secrets=secrets,
                environment={**os.environ, **environment},
            )
            sidecar = sidecar_command(binaries, data, replica, plan.ports, configuration, tokens, self._identities)
            self._sidecars[replica.name] = self._process(sidecar)
        self._control = ControlServer(data.control_socket, self._answer)

    async def run(self, *, on_ready: Callable[[float], None], owner_pid: int | None = None) -> None:
        """Starts the mesh and keeps it until SIGINT, SIGTERM, SIGHUP, `gaggle down`, or the end of its owner.

        Args:
            on_ready: called once, with the seconds that starting took.
            owner_pid: stop when this process is gone.

        Raises:
            CommandError: something did not start; everything is stopped again.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked_to_stop)
        began = time.monotonic()
        starting = asyncio.create_task(self._start())
        stop = asyncio.create_task(self._stop.wait())
        owner = asyncio.create_task(self._follow(owner_pid)) if owner_pid is not None else None
        try:
            await self._control.start()
            await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                self._set_state("ready")
                on_ready(time.monotonic() - began)
                await stop
        finally:
            for task in (starting, stop, owner):
                if task is not None:
                    task.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            self._set_state("stopping")
            await self._stop_everything()

    def status(self) -> dict[str, Any]:
        """What `gaggle status --json` prints. It looks at every process of the machine: ten milliseconds or so."""
        memory = memory_by_process({process.pid for process in self._processes if process.pid is not None})
        services = []
        for replica in self._plan.replicas:
            service, sidecar = self._services[replica.name], self._sidecars[replica.name]
            services.append(
                {
                    **_describe(replica).model_dump(mode="json"),
                    "service": replica.service,
                    "app_id": replica.app_id,
                    "state": service.state.value,
                    "pid": service.pid,
                    "restarts": service.restarts,
                    "memory_bytes": memory.get(service.pid or 0, 0),
                    "sidecar_state": sidecar.state.value,
                    "sidecar_pid": sidecar.pid,
                    "sidecar_restarts": sidecar.restarts,
                    "sidecar_memory_bytes": memory.get(sidecar.pid or 0, 0),
                }
            )
        addresses = {
            "postgres": database_url(self._data),
            **{process.name: self._broker.address for process in self._brokers},
            "sentry": f"{LOOPBACK}:{self._plan.ports.sentry}",
            "placement": f"{LOOPBACK}:{self._plan.ports.placement}",
            "scheduler": f"{LOOPBACK}:{self._plan.ports.scheduler}",
        }
        infrastructure = [
            {
                "name": process.name,
                "address": addresses[process.name],
                "state": process.state.value,
                "pid": process.pid,
                "restarts": process.restarts,
                "memory_bytes": memory.get(process.pid or 0, 0),
            }
            for process in self._infrastructure
        ]
        return {
            "state": self._state,
            "data": str(self._data.path),
            "app_id_suffix": self._suffix,
            "services": services,
            "infrastructure": infrastructure,
        }

    @property
    def _infrastructure(self) -> list[Process]:
        return [self._postgres, *self._brokers, *self._sentry, self._placement, self._scheduler]

    @property
    def _processes(self) -> list[Process]:
        return [*self._services.values(), *self._sidecars.values(), *self._infrastructure]

    async def _start(self) -> None:
        write_components(self._components, self._data, self._suffix)
        try:
            async with asyncio.TaskGroup() as group:
                foundation = [
                    group.create_task(self._start_database()),
                    group.create_task(self._start_broker()),
                    group.create_task(self._start_control_plane()),
                ]
                for replica in self._plan.replicas:
                    group.create_task(self._start_pair(replica, foundation))
        except ExceptionGroup as failures:
            raise _first_told(failures) from failures

    async def _start_database(self) -> None:
        await self._bring_up(self._postgres)
        await create_role_and_database(self._data)
        await self._migrate()

    async def _start_broker(self) -> None:
        for process in self._brokers:
            await self._bring_up(process)

    async def _start_control_plane(self) -> None:
        for process in self._sentry:
            await self._bring_up(process)
        await asyncio.gather(*(self._bring_up(one) for one in (self._placement, self._scheduler)))

    async def _migrate(self) -> None:
        """In a process of its own, which alone loads a PostgreSQL driver."""
        migration = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli.main", "db", "migrate"),
            env={**os.environ, "DATABASE_URL": database_url(self._data)},
            cwd=PROJECT_ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await migration.communicate()
        self._data.log("migrate").write_bytes(output)
        if migration.returncode != 0:
            raise CommandError(f"The database migrations failed:\n{output.decode(errors='replace').strip()}")

    async def _start_pair(self, replica: Replica, foundation: list[asyncio.Task[None]]) -> None:
        service = self._services[replica.name]
        service.start()
        await asyncio.gather(*foundation)
        sidecar = self._sidecars[replica.name]
        sidecar.start()
        # A service listens before it has looked at its sidecar's components, and may end when it has.
        dying = asyncio.create_task(service.wait_dying())
        ready = asyncio.create_task(self._wait_pair(service, sidecar))
        try:
            done, _ = await asyncio.wait({dying, ready}, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            dying.cancel()
            ready.cancel()
            await asyncio.gather(dying, ready, return_exceptions=True)

    async def _wait_pair(self, service: Process, sidecar: Process) -> None:
        await asyncio.gather(service.wait_ready(_START_SECONDS), sidecar.wait_ready(_START_SECONDS))

    async def _bring_up(self, process: Process) -> None:
        process.start()
        await process.wait_ready(_START_SECONDS)

    async def _stop_everything(self) -> None:
        for layer in (
            self._services.values(),
            self._sidecars.values(),
            [self._placement, self._scheduler],
            self._sentry,
            *([process] for process in reversed(self._brokers)),
        ):
            await asyncio.gather(*(process.stop() for process in layer))
        await self._postgres.stop()
        await asyncio.gather(*(process.close() for process in self._processes))
        await self._control.stop()
        self._data.mesh_file.unlink(missing_ok=True)
        if self._data.sockets.parent != self._data.path:
            shutil.rmtree(self._data.sockets, ignore_errors=True)

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            self._tell("Killing what is left")
            for process in self._processes:
                process.kill()
        else:
            self._tell("Stopping")
            self._stop.set()

    async def _follow(self, owner_pid: int) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            owner = psutil.Process(owner_pid)
            # Another process's end, which no event tells.
            while owner.is_running():  # noqa: ASYNC110
                await asyncio.sleep(_OWNER_POLL_SECONDS)
        self._stop.set()

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request:
            case {"command": "status"}:
                return await asyncio.to_thread(self.status)
            case {"command": "down"}:
                self._stop.set()
                return {"supervisor_pid": os.getpid()}
            case {"command": "restart", "name": str(name)}:
                return {"restarted": await self._restart(name)}
            case _:
                raise CommandError("This supervisor is of another version of Gaggle: restart the mesh.")

    async def _restart(self, name: str) -> list[str]:
        """Restarts one process by its name; or a service, each replica ready again before the next one stops."""
        async with self._restarting:
            for process in self._processes:
                if process.name == name and name not in self._plan.services:
                    await self._restart_all([process])
                    return [name]
            replicas = [replica for replica in self._plan.replicas if replica.service == name]
            if not replicas:
                names = ", ".join(process.name for process in self._processes)
                raise CommandError(f"The mesh has nothing called {name!r}; it has {names}.")
            for replica in replicas:
                await self._restart_all([self._services[replica.name], self._sidecars[replica.name]])
            return [replica.name for replica in replicas]

    async def _restart_all(self, processes: list[Process]) -> None:
        self._tell(f"Restarting {' and '.join(process.name for process in processes)}")
        for process in processes:
            await process.stop()
        for process in processes:
            process.start()
        await asyncio.gather(*(process.wait_ready(_START_SECONDS) for process in processes))

    def _set_state(self, state: Literal["starting", "ready", "stopping"]) -> None:
        self._state = state
        self._write_description()

    def _process(self, command: Any) -> Process:
        return Process(command, tell=self._tell, changed=self._write_description)

    def _write_description(self) -> None:
        """Keeps mesh.json true to the processes there are."""
        services: dict[str, ServiceDescription] = {}
        for replica in self._plan.replicas:
            before = services.get(replica.service)
            replicas = [*(before.replicas if before else []), _describe(replica)]
            services[replica.service] = ServiceDescription(app_id=replica.app_id, replicas=replicas)
        description = MeshDescription(
            state=self._state,
            data=self._data.path,
            app_id_suffix=self._suffix,
            port_base=self._plan.ports.base,
            supervisor_pid=os.getpid(),
            control_socket=self._data.control_socket,
            services=services,
            database_url=database_url(self._data),
            component_set=self._components.name,
            mtls=self._identities is not None,
            settings=self._components.settings,
            broker=self._broker.kind,
            broker_address=self._broker.address,
            placement=f"{LOOPBACK}:{self._plan.ports.placement}",
            scheduler=f"{LOOPBACK}:{self._plan.ports.scheduler}",
            secrets_file=self._data.secrets_file,
            jwks_file=self._data.keys / "jwks.json",
            components=self._data.components,
            daprd=self._binaries.daprd,
            processes={
                process.name: entry
                for process in self._processes
                if process.state is not State.WAITING and (entry := process.describe()) is not None
            },
        )
        description.write(self._data)
        write_targets(description, self._data)


def _describe(replica: Replica) -> ReplicaDescription:
    return ReplicaDescription(
        name=replica.name,
        address=f"{LOOPBACK}:{replica.port}",
        sidecar_grpc=f"{LOOPBACK}:{replica.sidecar_grpc_port}",
        sidecar_http=f"{LOOPBACK}:{replica.sidecar_http_port}",
        sidecar_internal=f"{LOOPBACK}:{replica.sidecar_internal_port}",
        sidecar_metrics=f"{LOOPBACK}:{replica.sidecar_metrics_port}",
        metrics=f"{LOOPBACK}:{replica.metrics_port}",
        http=None if replica.http_port is None else f"{LOOPBACK}:{replica.http_port}",
        authority=replica.authority,
    )


def _first_told(failures: ExceptionGroup) -> BaseException:
    """The failure to tell a person: the first that was meant for one."""
    told, other = failures.split(CommandError)
    group = told or other
    assert group is not None
    first: BaseException = group.exceptions[0]
    return _first_told(first) if isinstance(first, ExceptionGroup) else first
