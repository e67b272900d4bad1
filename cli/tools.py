"""`gaggle tools`: programs that the mesh, its tests and its bench run, found or built, and where they are."""

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

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
    CLUSTER = "cluster"
    PROMETHEUS = "prometheus"
    PROMTOOL = "promtool"
    ZIPKIN = "zipkin"
    CHROMIUM = "chromium"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog='Example: "$(gaggle tools grpcurl)" -plaintext 127.0.0.1:50101 list')(tools)


def tools(name: Annotated[Tool, typer.Argument(help="Which program.")]) -> None:
    """Print where a program is (dapr: daprd; kafka, zipkin: jars; cluster: helm), fetched or built if need be."""
    progress = build_progress(Console(stderr=True))
    match name:
        case Tool.DAPR:
            typer.echo(dapr_binaries(progress).daprd)
        case Tool.SENTRY:
            typer.echo(sentry_binary(dapr_binaries(progress), progress))
        case Tool.RABBITMQ:
            typer.echo(rabbitmq(progress).server)
        case Tool.KAFKA:
            typer.echo(kafka(progress).jars)
        case Tool.CLUSTER:
            typer.echo(cluster_binaries(progress).programs["helm"])
        case Tool.PROMETHEUS:
            typer.echo(prometheus(progress).server)
        case Tool.PROMTOOL:
            typer.echo(prometheus(progress).promtool)
        case Tool.ZIPKIN:
            typer.echo(zipkin(progress).jar)
        case Tool.CHROMIUM:
            typer.echo(chromium(progress).program)
        case _:
            typer.echo(tool(name.value, progress))
