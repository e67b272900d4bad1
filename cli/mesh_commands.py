"""`gaggle up`, `down`, `status`, `logs`, `restart` and `reset`."""

import json
import shutil
import sys
import time
from collections import deque
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console

from cli.errors import CommandError, NotRunning, Refused
from cli.mesh import control
from cli.mesh.data import PROJECT_ROOT, DataDirectory
from cli.mesh.description import MeshDescription
from cli.mesh.leftovers import end_leftovers
from cli.mesh.status import status_table

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="The data directory. Default: $GAGGLE_DATA, else .gaggle in the project's folder."),
]

# Services drain, sidecars take five seconds at most, PostgreSQL writes a checkpoint.
_DOWN_SECONDS = 60.0
_FOLLOW_SECONDS = 0.2


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(epilog="Examples: gaggle up; gaggle up --detach --replicas audit=2; gaggle up --components kafka")(up)
    app.command(epilog="Example: gaggle down")(down)
    app.command(epilog="Examples: gaggle status; gaggle status --json | jq '.services[].state'")(status)
    app.command(epilog="Examples: gaggle logs conversation -f; gaggle logs audit --sidecar; gaggle logs postgres")(logs)
    app.command(epilog="Examples: gaggle restart conversation; gaggle restart audit.daprd; gaggle restart redis")(
        restart
    )
    app.command(epilog="Examples: gaggle reset; gaggle reset --yes")(reset)


def up(
    *,
    data: DataOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return once the mesh is ready; it runs on.")] = False,
    port_base: Annotated[
        int | None,
        typer.Option(help="First port of the mesh, in place of 50101. 0: any free ones.", show_default=False),
    ] = None,
    replicas: Annotated[
        list[str] | None, typer.Option(metavar="SERVICE=N", help="Run N pairs of a service and its sidecar.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="SERVICE", help="Run only these. `none`: the stores and control plane.")
    ] = None,
    components: Annotated[
        str | None,
        typer.Option(
            metavar="SET",
            help="Run on this component set of dapr-components/ (local, rabbitmq, kafka, ...), or on a folder's.",
            show_default=False,
        ),
    ] = None,
    mtls: Annotated[
        bool,
        typer.Option(
            "--mtls",
            help="Give each sidecar an identity: TLS between them, access by policy alone, tokens to use a sidecar.",
        ),
    ] = False,
    file: Annotated[Path, typer.Option(help="The services, in the Dapr CLI's multi-app format.")] = PROJECT_ROOT
    / "dapr.yaml",
    owner_pid: Annotated[int | None, typer.Option(hidden=True, help="Stop when this process ends.")] = None,
) -> None:
    """Start the mesh: PostgreSQL, the broker, Dapr's control plane, and every service beside its sidecar.

    In the foreground it shows a live table until Ctrl-C, which leaves no process behind. Data stays in the data
    directory. A process that dies is started again.
    """
    # Its imports (grpc, the supervisor) are needed by no other command.
    from cli.mesh.up import UpRequest, run_mesh, start_detached

    request = UpRequest(
        data=DataDirectory.at(data),
        run_file=file.absolute(),
        components=components,
        mtls=mtls,
        port_base=port_base,
        only=[name for names in only or [] for name in names.split(",")],
        replicas=_parse_replicas(replicas or []),
        owner_pid=owner_pid,
    )
    console = Console()
    if not detach:
        run_mesh(request, console)
        return
    mesh = start_detached(request, console)
    console.print(status_table(control.ask(mesh.control_socket, {"command": "status"})))


def down(*, data: DataOption = None) -> None:
    """Stop the mesh; its data stays."""
    from cli.mesh.up import wait_until_gone

    directory = DataDirectory.at(data)
    try:
        pid = control.ask(directory.control_socket, {"command": "down"})["supervisor_pid"]
    except NotRunning:
        if not directory.mesh_file.exists():
            raise NotRunning(f"No mesh runs on {directory.path}.") from None
        # Its supervisor was killed.
        end_leftovers(directory)
        return
    wait_until_gone(int(pid), _DOWN_SECONDS)


def status(
    *,
    data: DataOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show every service, its app id, ports, state and memory. Exits with 1 unless all of it is ready."""
    answer = control.ask(DataDirectory.at(data).control_socket, {"command": "status"})
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        Console().print(status_table(answer))
    rows = [*answer["services"], *answer["infrastructure"]]
    if any(row["state"] != "ready" or row.get("sidecar_state", "ready") != "ready" for row in rows):
        raise typer.Exit(1)


def logs(
    service: Annotated[
        str,
        typer.Argument(
            help="A service, or postgres, redis, rabbitmq, kafka, placement, scheduler, sentry, migrate, mesh."
        ),
    ],
    *,
    data: DataOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")] = False,
    sidecar: Annotated[bool, typer.Option("--sidecar", help="The log of the service's daprd.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines to begin with.")] = 100,
) -> None:
    """Print the end of a process's log."""
    directory = DataDirectory.at(data)
    path = directory.log(f"{service}.daprd" if sidecar else service)
    if not path.is_file():
        known = ", ".join(sorted(log.stem for log in directory.logs.glob("*.log"))) or "none yet"
        raise CommandError(f"There is no log of {service!r} in {directory.logs}; there are {known}.")
    with path.open(errors="replace") as log:
        sys.stdout.writelines(deque(log, maxlen=lines))
        sys.stdout.flush()
        if follow:
            _follow(path, log)


def restart(
    service: Annotated[
        str, typer.Argument(help="A service, replica after replica; or one process, such as audit.daprd.")
    ],
    *,
    data: DataOption = None,
) -> None:
    """Restart a service with its sidecar, and return once it is ready again."""
    answer = control.ask(DataDirectory.at(data).control_socket, {"command": "restart", "name": service})
    typer.echo(f"Restarted {', '.join(answer['restarted'])}")


def reset(
    *,
    data: DataOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove the data directory: every conversation, event, key and log in it."""
    directory = DataDirectory.at(data)
    if not directory.path.exists():
        typer.echo(f"There is nothing at {directory.path}.")
        return
    if not directory.exists():
        raise Refused(f"{directory.path} was not made by `gaggle up`: remove it yourself if you mean to.")
    if _is_running(directory):
        raise Refused(f"A mesh runs on {directory.path}: stop it first with `gaggle down`.")
    if not yes:
        typer.confirm(f"Remove everything in {directory.path}?", abort=True)
    end_leftovers(directory)
    shutil.rmtree(directory.path)
    typer.echo(f"Removed {directory.path}")


def load_mesh(data: Path | None) -> MeshDescription:
    """The running mesh of a data directory, for commands that talk to its services.

    Raises:
        NotRunning: there is none.
    """
    directory = DataDirectory.at(data)
    mesh = MeshDescription.load(directory.mesh_file)
    if not _is_running(directory):
        raise NotRunning(f"No mesh runs on {directory.path}: start one with `gaggle up`.")
    return mesh


def _is_running(directory: DataDirectory) -> bool:
    try:
        control.ask(directory.control_socket, {"command": "status"})
    except NotRunning:
        return False
    return True


def _follow(path: Path, log: TextIO) -> None:
    while True:
        line = log.readline()
        if line:
            sys.stdout.write(line)
            sys.stdout.flush()
            continue
        # The supervisor cuts a log that has grown too long.
        if path.stat().st_size < log.tell():
            log.seek(0)
        time.sleep(_FOLLOW_SECONDS)


def _parse_replicas(given: list[str]) -> dict[str, int]:
    counts = {}
    for text in given:
        name, _, count = text.partition("=")
        if not name or not count.isdecimal():
            raise typer.BadParameter(f"{text!r} is not SERVICE=N", param_hint="--replicas")
        counts[name] = int(count)
    return counts
