"""`gaggle up` from request to running mesh: checks that can refuse come before anything is started."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live

from cli.binaries.dapr import DaprBinaries, dapr_binaries, sentry_binary
from cli.errors import CommandError, NotRunning, Refused
from cli.mesh.broker import ensure_installed
from cli.mesh.data import PROJECT_ROOT, DataDirectory
from cli.mesh.description import MeshDescription
from cli.mesh.leftovers import end_leftovers
from cli.mesh.lock import hold_mesh_locks
from cli.mesh.plan import Plan, make_plan
from cli.mesh.ports import reserved
from cli.mesh.runfile import RunFile
from cli.mesh.sets import ComponentSet
from cli.mesh.status import status_table
from cli.mesh.supervisor import Supervisor
from cli.progress import build_progress

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class UpRequest:
    """What a person asked of `gaggle up`."""

    data: DataDirectory
    run_file: Path = PROJECT_ROOT / "dapr.yaml"
    components: str | None = None
    mtls: bool = False
    port_base: int | None = None
    only: Sequence[str] = ()
    replicas: Mapping[str, int] = field(default_factory=dict)
    owner_pid: int | None = None

    def arguments(self) -> list[str]:
        """The same request as a command line of `gaggle up`."""
        arguments = ["up", "--data", str(self.data.path), "--file", str(self.run_file)]
        if self.components is not None:
            arguments += ["--components", self.components]
        if self.mtls:
            arguments.append("--mtls")
        if self.port_base is not None:
            arguments += ["--port-base", str(self.port_base)]
        for name in self.only:
            arguments += ["--only", name]
        for name, count in self.replicas.items():
            arguments += ["--replicas", f"{name}={count}"]
        if self.owner_pid is not None:
            arguments += ["--owner-pid", str(self.owner_pid)]
        return arguments

    def load(self) -> RunFile:
        """The services, on the component set that was asked for."""
        run_file = RunFile.load(self.run_file)
        return run_file if self.components is None else run_file.with_components(self.components)


def run_mesh(request: UpRequest, console: Console) -> None:
    """Runs the mesh in this process until it is asked to stop.

    Raises:
        Refused: another mesh or a taken port is in the way.
        CommandError: something did not start.
    """
    data = request.data
    run_file = request.load()
    components = ComponentSet.load(run_file.components)
    suffix = data.suffix()
    progress = build_progress(console)
    binaries = dapr_binaries(progress)
    sentry = sentry_binary(binaries, progress) if request.mtls else None
    ensure_installed(components, progress)
    data.create()
    with hold_mesh_locks(data, suffix):
        end_leftovers(data)
        plan = make_plan(
            run_file, suffix=suffix, port_base=request.port_base, only=request.only, replicas=request.replicas
        )
        occupied = plan.occupied()
        if occupied:
            raise Refused(
                f"Something else listens on port {', '.join(map(str, occupied))}: free it, or choose other ports "
                "with --port-base (0 finds free ones)."
            )
        data.keep_suffix(suffix)
        keys_for = [app.service for app in run_file.apps]
        with reserved(plan.listening):
            asyncio.run(_supervise(request, plan, components, suffix, (binaries, sentry), keys_for, console))


async def _supervise(
    request: UpRequest,
    plan: Plan,
    components: ComponentSet,
    suffix: str,
    programs: tuple[DaprBinaries, Path | None],
    keys_for: list[str],
    console: Console,
) -> None:
    def tell(text: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, highlight=False, soft_wrap=True)

    binaries, sentry = programs
    supervisor = Supervisor(
        plan, components, request.data, suffix=suffix, binaries=binaries, sentry=sentry, keys_for=keys_for, tell=tell
    )

    def on_ready(seconds: float) -> None:
        tell(f"Ready after {seconds:.1f} s: {', '.join(plan.services) or 'the stores'}")

    with contextlib.ExitStack() as screen:
        if console.is_terminal:
            live = Live(get_renderable=lambda: status_table(supervisor.status()), console=console, refresh_per_second=1)
            screen.enter_context(live)
        await supervisor.run(on_ready=on_ready, owner_pid=request.owner_pid)
    console.print("Stopped; nothing is left running.")


def start_detached(request: UpRequest, console: Console) -> MeshDescription:
    """Starts the mesh in a process of its own and returns once it is ready.

    Raises:
        Refused: as in `run_mesh`.
        CommandError: it did not start; the text is what it said last.
    """
    data = request.data
    # Here, so that the terminal shows a build's progress; and what can be refused is refused before anything is made.
    progress = build_progress(console)
    components = ComponentSet.load(request.load().components)
    binaries = dapr_binaries(progress)
    if request.mtls:
        sentry_binary(binaries, progress)
    ensure_installed(components, progress)
    data.suffix()
    data.create()
    log = data.log("mesh")
    # Appended to: if a mesh runs there already, its supervisor writes there too.
    with log.open("ab") as output:
        said_before = output.tell()
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *request.arguments()],
            cwd=PROJECT_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # A supervisor that outlives us is reaped by init; the thread reaps one that does not.
    threading.Thread(target=supervisor.wait, daemon=True).start()
    with console.status("Starting the mesh") if console.is_terminal else contextlib.nullcontext():
        return _await_ready(data, supervisor, log, said_before)


def _await_ready(
    data: DataDirectory, supervisor: "subprocess.Popen[bytes]", log: Path, said_before: int
) -> MeshDescription:
    while True:
        code = supervisor.poll()
        if code is not None:
            kind = Refused if code == Refused.exit_code else CommandError
            said = log.read_bytes()[said_before:].decode(errors="replace")
            raise kind(said.strip().removeprefix("gaggle: "))
        with contextlib.suppress(NotRunning):
            mesh = MeshDescription.load(data.mesh_file)
            if mesh.supervisor_pid == supervisor.pid and mesh.state == "ready":
                return mesh
        time.sleep(_POLL_SECONDS)


def wait_until_gone(pid: int, seconds: float) -> None:
    """Returns when the process has ended.

    Raises:
        CommandError: it is still there after that time.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if time.monotonic() > deadline:
            raise CommandError(f"The supervisor (process {pid}) did not stop within {seconds:.0f} s.")
        time.sleep(_POLL_SECONDS)
