"""The commands."""

import asyncio
import contextlib
import re
import signal
import threading
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console

from cli.errors import CommandError
from cli.mesh.data import DataDirectory
from cli.mesh.description import ReplicaDescription
from cli.mesh.observing import RATIO, ZIPKIN
from cli.mesh_commands import DataOption, load_mesh
from cli.progress import build_progress

PROMETHEUS_PORT = 9090
ZIPKIN_PORT = 9411

_SPAN = re.compile(r"(\d+)([smh]?)")
_UNIT_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_CALL_SECONDS = 10.0
_ROLE = "admin"


class Level(StrEnum):
    """How much a service logs."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(epilog="Examples: gaggle observe; gaggle observe --no-zipkin --prometheus-port 9091")(observe)
    app.command(
        epilog="Examples: gaggle log-level task; gaggle log-level task debug --for 10m; gaggle log-level all warning"
    )(log_level)


def observe(
    *,
    data: DataOption = None,
    prometheus: Annotated[bool, typer.Option(help="Run Prometheus.")] = True,
    zipkin: Annotated[bool, typer.Option(help="Run Zipkin.")] = True,
    prometheus_port: Annotated[int, typer.Option(min=1, max=65535)] = PROMETHEUS_PORT,
    zipkin_port: Annotated[int, typer.Option(min=1, max=65535)] = ZIPKIN_PORT,
) -> None:
    """Run Prometheus and Zipkin for this machine's mesh, in the foreground, until Ctrl-C.

    Prometheus scrapes whatever mesh runs on the data directory. Traces come from a mesh that was started with the
    settings that are printed.
    """
    # Needed by no other command.
    from cli.binaries.prometheus import prometheus as find_prometheus
    from cli.binaries.zipkin import zipkin as find_zipkin
    from cli.observing.programs import running_prometheus, running_zipkin

    directory = DataDirectory.at(data)
    directory.create()
    directory.targets.mkdir(mode=0o700, exist_ok=True)
    console = Console()
    progress = build_progress(console)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with contextlib.ExitStack() as stack:
        if prometheus:
            programs = find_prometheus(progress)
            address = stack.enter_context(
                running_prometheus(programs, directory.path / "prometheus", directory.targets, prometheus_port)
            )
            typer.echo(f"Prometheus: {address}")
        if zipkin:
            program = find_zipkin(progress)
            address = stack.enter_context(running_zipkin(program, directory.path / "zipkin", zipkin_port))
            typer.echo(f"Zipkin: {address}")
            typer.echo(f"Traces of every call: {ZIPKIN}={address}/api/v2/spans {RATIO}=1 gaggle up")
        stop.wait()


def log_level(
    service: Annotated[str, typer.Argument(help="A service, one replica such as task-2, or all.")],
    level: Annotated[Level | None, typer.Argument(help="The new level. Without it: the one there is.")] = None,
    *,
    duration: Annotated[str, typer.Option("--for", help="Back as configured after: 45s, 10m, 2h.")] = "",
    data: DataOption = None,
) -> None:
    """Show or change how much services log, without restarting them; every replica of a service."""
    mesh = load_mesh(data)
    replicas = {one.name: one for every in mesh.services.values() for one in every.replicas}
    if service in mesh.services:
        replicas = {one.name: one for one in mesh.services[service].replicas}
    elif service in replicas:
        replicas = {service: replicas[service]}
    elif service != "all":
        raise CommandError(f"The mesh has no service {service!r}; it has {', '.join(sorted(mesh.services))}.")
    seconds = _seconds(duration) if duration else 0
    told = asyncio.run(_ask_all(DataDirectory.at(data), replicas, level, seconds))
    for name, text in told.items():
        typer.echo(f"{name}: {text}")


async def _ask_all(
    data: DataDirectory, replicas: dict[str, ReplicaDescription], level: Level | None, seconds: int
) -> dict[str, str]:
    # Needed by no other command.
    import grpc

    from cli.channels import open_channel
    from cli.mesh.keys import sign_token
    from gaggle.operations.v1 import operations_service_pb2 as api
    from gaggle.operations.v1 import operations_service_pb2_grpc as api_grpc

    metadata = (("authorization", f"Bearer {sign_token(data, _ROLE, roles=[_ROLE], ttl_seconds=60)}"),)

    def shown(number: int) -> str:
        return api.LogLevel.Name(number).removeprefix("LOG_LEVEL_").lower()  # type: ignore[arg-type]

    async def ask(replica: ReplicaDescription) -> str:
        async with open_channel(replica.address, authority=replica.authority) as channel:
            stub: Any = api_grpc.OperationsServiceStub(channel)
            try:
                if level is None:
                    found = await stub.GetLogLevel(
                        api.GetLogLevelRequest(), metadata=metadata, timeout=_CALL_SECONDS, wait_for_ready=True
                    )
                    return shown(found.level)
                request = api.SetLogLevelRequest(level=api.LogLevel.Value(f"LOG_LEVEL_{level.upper()}"))
                if seconds:
                    request.duration.FromSeconds(seconds)
                answer = await stub.SetLogLevel(request, metadata=metadata, timeout=_CALL_SECONDS, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                raise CommandError(
                    f"{replica.address} did not take it: {error.code().name} {error.details()}"
                ) from error
            for_a_while = f" for {seconds} s" if seconds else ""
            return f"{shown(answer.previous_level)} -> {level}{for_a_while}"

    answers = await asyncio.gather(*map(ask, replicas.values()))
    return dict(zip(replicas, answers, strict=True))


def _seconds(text: str) -> int:
    found = _SPAN.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a span such as 45s, 10m or 2h", param_hint="--for")
    number, unit = found.groups()
    return int(number) * _UNIT_SECONDS[unit]
