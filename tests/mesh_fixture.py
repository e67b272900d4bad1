"""The mesh under test: a pytest plugin (see addopts in pyproject.toml).

One mesh serves the whole run, whatever the number of xdist workers: the first test that asks for it starts it, on free
ports and with an app-id suffix of its own, so that a person's running mesh is never touched; it stops when the run
ends, even if that is killed. Tests keep apart by user id. A test that kills things it shares asks `private_mesh`.

- GAGGLE_TEST_MESH names the mesh.json of a running mesh to be used instead (it is not stopped).
- GAGGLE_KEEP_TEST_MESH=1 keeps the data directory, for reading logs.
- GAGGLE_TEST_STORE=sqlite swaps the state store of that mesh; GAGGLE_TEST_COMPONENTS=SET its component set.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import pytest
from rich.console import Console

from cli.binaries.cache import exclusive
from cli.errors import CommandError
from cli.mesh import control
from cli.mesh.data import DataDirectory, write_private
from cli.mesh.description import MeshDescription, ServiceDescription
from cli.mesh.health import GrpcHealth
from cli.mesh.keys import sign_token
from cli.mesh.leftovers import find_process
from cli.mesh.up import UpRequest, start_detached, wait_until_gone
from tests.conditions import eventually
from tests.mcp_servers import servers
from tests.stores.swapping import with_store

_RUN_DIRECTORY = "GAGGLE_TEST_RUN_DIRECTORY"
_SHARED = "GAGGLE_TEST_MESH"
_PREFIX = "gaggle-test-"
_STOP_SECONDS = 60.0
_BACK_SECONDS = 60.0

MAX_CONNECTIONS = 3
"""Of one user's extensions."""

_EXTENSIONS = {
    "GAGGLE_STDIO_COMMANDS": servers.COMMANDS,
    "GAGGLE_HTTP_ALLOWED_HOSTS": "localhost",
    "GAGGLE_STDIO_PATH": os.environ.get("PATH", ""),
    "GAGGLE_USER_SECRETS": "TEST_SECRET,MISSING_SECRET",
    "GAGGLE_MAX_CONNECTIONS_PER_USER": str(MAX_CONNECTIONS),
    "GAGGLE_CHAT_EXTENSIONS": '["tasks"]',
}
"""What extensions of a mesh under test may run, connect to and ask for, and what its chatbot has."""

SESSION_CACHE_SECONDS = 2.0


def better_auth_app_id() -> str:
    """Give the app id under which the mesh under test looks for a better-auth server: this run's own."""
    return os.environ["DAPR_APP_ID_AUTH"]


class Mesh:
    """A running mesh, as its tests see it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.data = DataDirectory(file.parent)

    @property
    def description(self) -> MeshDescription:
        """mesh.json as it is now: process ids change."""
        return MeshDescription.load(self.file)

    def service(self, name: str) -> ServiceDescription:
        """A service's app id and addresses."""
        return self.description.services[name]

    def token(self, user: str, *, roles: Iterable[str] = (), ttl_seconds: int = 3600) -> str:
        """A bearer token for a user."""
        return sign_token(self.data, user, roles=roles, ttl_seconds=ttl_seconds)

    def metadata(
        self, user: str, *, roles: Iterable[str] = (), app_id: str | None = None
    ) -> tuple[tuple[str, str], ...]:
        """Call metadata: the user's token and, for a call through any sidecar, whom it is for."""
        through = (("dapr-app-id", app_id),) if app_id else ()
        return (("authorization", f"Bearer {self.token(user, roles=roles)}"), *through)

    def channel(self, service: str, replica: int = 0) -> grpc.aio.Channel:
        """A channel straight to a service; the caller closes it."""
        return _channel(self.service(service).replicas[replica].address)

    def sidecar(self, service: str, replica: int = 0) -> grpc.aio.Channel:
        """A channel to a service's sidecar; the caller closes it."""
        return _channel(self.service(service).replicas[replica].sidecar_grpc)

    def status(self) -> dict[str, Any]:
        """What `gaggle status --json` prints."""
        return control.ask(self.description.control_socket, {"command": "status"})

    def pid(self, process: str) -> int:
        """The process id behind a name: `conversation`, `conversation.daprd`, `conversation-2`, `postgres`, ..."""
        return self.description.processes[process].pid

    def signal(self, process: str, number: signal.Signals) -> int:
        """Sends a signal to a process and returns its id. SIGSTOP stalls it until SIGCONT."""
        pid = self.pid(process)
        os.kill(pid, number)
        return pid

    def kill(self, process: str) -> int:
        """`kill -9` of one process of a mesh, which its supervisor will start again; returns the dead one's id."""
        return self.signal(process, signal.SIGKILL)

    async def killed(self, process: str, *, within: float = _BACK_SECONDS) -> None:
        """Kills a process and returns when its successor is ready, at most `within` seconds later."""
        dead = self.kill(process)
        await self.back(process, dead, within=within)

    async def back(self, process: str, dead: int, *, within: float = _BACK_SECONDS) -> None:
        """Returns once `process` is ready under another id than the dead one's; a service: when it takes calls."""

        async def is_back() -> bool:
            pid, state = (await asyncio.to_thread(self.states))[process]
            return state == "ready" and pid not in {None, dead} and await self._takes_calls(process)

        await eventually(is_back, within=within, what=f"{process} back and ready")

    async def _takes_calls(self, process: str) -> bool:
        # A service listens before it has its sidecar, and until then it refuses calls.
        for service in self.description.services.values():
            for replica in service.replicas:
                if replica.name == process:
                    health = GrpcHealth(int(replica.address.rpartition(":")[2]))
                    try:
                        return await health.takes_calls()
                    finally:
                        await health.close()
        return True

    async def restart(self, name: str) -> list[str]:
        """`gaggle restart NAME`: returns the restarted replicas once they are ready."""
        answer = await asyncio.to_thread(control.ask, self.data.control_socket, {"command": "restart", "name": name})
        return list(answer["restarted"])

    def states(self) -> dict[str, tuple[int | None, str]]:
        """Process id and state by name."""
        status = self.status()
        states = {row["name"]: (row["pid"], row["state"]) for row in [*status["services"], *status["infrastructure"]]}
        for row in status["services"]:
            states[f"{row['name']}.daprd"] = (row["sidecar_pid"], row["sidecar_state"])
        return states

    def stop(self) -> None:
        """Stops it, and asserts that no process is left."""
        before = self.description
        control.ask(before.control_socket, {"command": "down"})
        wait_until_gone(before.supervisor_pid, _STOP_SECONDS)
        assert [name for name, entry in before.processes.items() if find_process(entry)] == []


def start_mesh(data: Path, *, owner_pid: int | None = None, **request: Any) -> Mesh:
    """Starts a mesh on free ports with a suffix of its own (the data's, if there is data).

    Args:
        data: its data directory.
        owner_pid: it stops when this process is gone; the calling one by default.
        request: more of cli.mesh.up.UpRequest: `only`, `replicas`, `run_file`, `components`.
    """
    directory = DataDirectory.at(data)
    directory.create()
    if not directory.secrets_file.exists():
        write_private(directory.secrets_file, json.dumps({"extension-test-secret": "hush"}))
    directory.keep_suffix(f"-t{uuid.uuid4().hex[:8]}")
    asked = UpRequest(data=directory, port_base=0, owner_pid=owner_pid or os.getpid(), **request)
    start_detached(asked, Console(stderr=True))
    return Mesh(directory.mesh_file)


@pytest.fixture(scope="session")
def mesh() -> Mesh:
    """The mesh that all tests of the run share."""
    given = os.environ.get(_SHARED)
    if given:
        return Mesh(Path(given))
    run = Path(os.environ[_RUN_DIRECTORY])
    failure = run / "failure"
    with exclusive(run / "lock", waiting=lambda: None):
        file = DataDirectory(run / "mesh").mesh_file
        if failure.exists():
            pytest.fail(failure.read_text(), pytrace=False)
        if not file.exists():
            try:
                start_mesh(run / "mesh", owner_pid=int((run / "owner").read_text()), components=_components(run))
            except CommandError as error:
                failure.write_text(f"the mesh under test did not start: {error}")
                pytest.fail(failure.read_text(), pytrace=False)
    return Mesh(file)


@pytest.fixture(scope="module")
def private_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Mesh]]:
    """Starts meshes that belong to one test module: `private_mesh(only=["conversation"], replicas={...})`."""
    started: list[Mesh] = []

    def start(**request: Any) -> Mesh:
        started.append(start_mesh(tmp_path_factory.mktemp("mesh"), **request))
        return started[-1]

    yield start
    for one in started:
        # A test may have stopped it already.
        if one.file.exists():
            one.stop()


@pytest.fixture
def user() -> str:
    """A user id of the test's own."""
    return f"user-{uuid.uuid4().hex[:12]}"


def pytest_configure(config: pytest.Config) -> None:
    """Before any worker starts: the folder where they find the run's mesh."""
    if not _is_worker(config) and not os.environ.get(_SHARED):
        _sweep()
        run = Path(tempfile.mkdtemp(prefix=_PREFIX))
        (run / "owner").write_text(str(os.getpid()))
        os.environ[_RUN_DIRECTORY] = str(run)
        os.environ |= _EXTENSIONS
        os.environ["DAPR_APP_ID_AUTH"] = f"better-auth-{uuid.uuid4().hex[:8]}"
        os.environ["GAGGLE_SESSION_CACHE_SECONDS"] = str(SESSION_CACHE_SECONDS)


def pytest_unconfigure(config: pytest.Config) -> None:
    """After the last worker: the mesh stops."""
    if _is_worker(config) or _RUN_DIRECTORY not in os.environ:
        return
    run = Path(os.environ.pop(_RUN_DIRECTORY))
    file = DataDirectory(run / "mesh").mesh_file
    if file.exists():
        with contextlib.suppress(CommandError, psutil.Error):
            Mesh(file).stop()
    if os.environ.get("GAGGLE_KEEP_TEST_MESH"):
        (run / "owner").unlink()
        Console(stderr=True).print(f"The test mesh's data: {run}")
    else:
        shutil.rmtree(run, ignore_errors=True)


def _components(run: Path) -> str | None:
    """What the run's mesh stands on; None for what dapr.yaml names."""
    store = os.environ.get("GAGGLE_TEST_STORE")
    return str(with_store(store, run / "sets")) if store else os.environ.get("GAGGLE_TEST_COMPONENTS")


def _sweep() -> None:
    """Removes what runs that were killed have left; their meshes stopped with them."""
    for run in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):
            if (
                not psutil.pid_exists(int((run / "owner").read_text()))
                and not DataDirectory(run / "mesh").mesh_file.exists()
            ):
                shutil.rmtree(run)


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _channel(address: str) -> grpc.aio.Channel:
    # The mesh's limit, and a quick way back to a service that was killed.
    size = 16 * 1024 * 1024
    options = (
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", size),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 500),
    )
    return grpc.aio.insecure_channel(address, options=options)
