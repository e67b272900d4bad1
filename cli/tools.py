"""`gaggle tools`: programs that the mesh, its tests and its bench run, found or built, and where they are."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from cli.binaries.apicurio import apicurio
from cli.binaries.build import Progress
from cli.binaries.chromium import chromium
from cli.binaries.cluster import cluster_binaries
from cli.binaries.dapr import dapr_binaries, sentry_binary
from cli.binaries.kafka import kafka
from cli.binaries.prometheus import prometheus
from cli.binaries.rabbitmq import rabbitmq
from cli.binaries.tools import tool
from cli.binaries.zipkin import zipkin
from cli.progress import build_progress


class Tool(StrEnum):
    """What can be asked for."""

    DAPR = "dapr"
    SENTRY = "sentry"
    GRPCURL = "grpcurl"
    GHZ = "ghz"
    RABBITMQ = "rabbitmq"
    KAFKA = "kafka"
    APICURIO = "apicurio"
    CLUSTER = "cluster"
    PROMETHEUS = "prometheus"
    PROMTOOL = "promtool"
    ZIPKIN = "zipkin"
    CHROMIUM = "chromium"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog='Example: "$(gaggle tools grpcurl)" -plaintext 127.0.0.1:50101 list')(tools)


def tools(name: Annotated[Tool, typer.Argument(help="Which program.")]) -> None:
    """Print where a program is, fetched or built if need be (dapr: daprd; kafka: its jars; cluster: helm)."""
    progress = build_progress(Console(stderr=True))
    typer.echo(_FINDERS[name](progress) if name in _FINDERS else tool(name.value, progress))


_FINDERS: Final[dict[Tool, Callable[[Progress], Path]]] = {
    Tool.DAPR: lambda progress: dapr_binaries(progress).daprd,
    Tool.SENTRY: lambda progress: sentry_binary(dapr_binaries(progress), progress),
    Tool.RABBITMQ: lambda progress: rabbitmq(progress).server,
    Tool.KAFKA: lambda progress: kafka(progress).jars,
    Tool.APICURIO: lambda progress: apicurio(progress).jar,
    Tool.CLUSTER: lambda progress: cluster_binaries(progress).programs["helm"],
    Tool.PROMETHEUS: lambda progress: prometheus(progress).server,
    Tool.PROMTOOL: lambda progress: prometheus(progress).promtool,
    Tool.ZIPKIN: lambda progress: zipkin(progress).jar,
    Tool.CHROMIUM: lambda progress: chromium(progress).program,
}
"""The others are Go programs of a module each."""
