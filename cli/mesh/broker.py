"""The broker that a component set is made for: what it is started by, and the secrets that its components name."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cli.binaries.build import Progress
from cli.binaries.kafka import kafka
from cli.binaries.rabbitmq import rabbitmq
from cli.mesh.data import DataDirectory
from cli.mesh.kafka import kafka_certificates, kafka_command
from cli.mesh.ports import LOOPBACK, Ports
from cli.mesh.process import Command
from cli.mesh.rabbitmq import VIRTUAL_HOST, epmd_command, rabbitmq_certificates, rabbitmq_command
from cli.mesh.redis import redis_command
from cli.mesh.secrets import Secret
from cli.mesh.sets import BrokerKind, ComponentSet

_USER = "gaggle"


@dataclass(frozen=True)
class Broker:
    """A broker on this machine. `commands` are started in their order and stopped in the reverse one."""

    kind: BrokerKind
    address: str
    commands: Sequence[Command]
    secrets: Mapping[str, Secret]


def ensure_installed(components: ComponentSet, progress: Progress) -> None:
    """Fetches the programs of a set's broker that this machine lacks.

    Raises:
        MissingTool: they are not to be had here.
        CommandError: fetching them failed.
    """
    if components.broker == "rabbitmq":
        rabbitmq(progress)
    elif components.broker == "kafka":
        kafka(progress)


def broker(
    components: ComponentSet, data: DataDirectory, ports: Ports, known: Mapping[str, Secret], *, tls: bool = False
) -> Broker:
    """The broker of a set, with a password that is drawn once and kept.

    Args:
        components: the set.
        data: where the broker's data lies.
        ports: where it listens.
        known: the secrets there are.
        tls: whether RabbitMQ is to be reached by TLS. Kafka is where its set says so; the wheel's Redis has none.
    """
    address = f"{LOOPBACK}:{ports.broker}"
    match components.broker:
        case "redis":
            password = _kept(known, "redis-password")
            commands = [redis_command(data, ports.broker, password)]
            return Broker("redis", address, commands, {"redis-host": address, "redis-password": password})
        case "rabbitmq":
            password = _kept(known, "rabbitmq-secrets", "password")
            program = rabbitmq(_silent)
            server = rabbitmq_command(program, data, ports, (_USER, password), tls=tls)
            commands = [epmd_command(program, data, ports), server]
            url = f"amqp{'s' if tls else ''}://{_USER}:{password}@{address}/{VIRTUAL_HOST}"
            authority = rabbitmq_certificates(data).authority.read_text() if tls else ""
            values = {"connection-string": url, "username": _USER, "password": password, "ca-cert": authority}
            return Broker("rabbitmq", address, commands, {"rabbitmq-secrets": values})
        case "kafka":
            values = {"KAFKA_BROKERS": address}
            credentials = None
            if components.broker_authenticates:
                credentials = (_USER, _kept(known, "kafka-secrets", "KAFKA_PASSWORD"))
                values["KAFKA_USERNAME"], values["KAFKA_PASSWORD"] = credentials
                values["KAFKA_SASL_MECHANISM"] = "SCRAM-SHA-256"
                values["KAFKA_CA_CERT"] = kafka_certificates(data).authority.read_text()
            return Broker(
                "kafka",
                address,
                [kafka_command(kafka(_silent), data, ports, credentials)],
                {"kafka-secrets": values},
            )


def _kept(known: Mapping[str, Secret], name: str, key: str = "") -> str:
    secret = known.get(name)
    if isinstance(secret, dict):
        secret = secret.get(key)
    return secret or secrets.token_urlsafe(24)


def _silent(what: str, packages: int) -> None:
    """Shows nothing: `ensure_installed` was there before."""
