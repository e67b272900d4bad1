"""Kafka for a mesh on this machine: one process in KRaft mode, broker and controller, on loopback.

With credentials its clients' listener is SASL/SCRAM-SHA-256 over TLS, as those of the cloud are, its certificate signed
by an authority that is made in the data directory.
"""

import asyncio
import functools
import ssl
import uuid
from base64 import urlsafe_b64encode

from cli.binaries.kafka import Kafka
from cli.errors import CommandError
from cli.mesh.certificates import Certificates, ensure_certificates
from cli.mesh.data import DataDirectory, write_private
from cli.mesh.health import kafka_is_ready
from cli.mesh.ports import LOOPBACK, Ports
from cli.mesh.process import Command

_FORMAT_SECONDS = 60.0
_MECHANISM = "SCRAM-SHA-256"
# Ten megabytes of event, and what a batch adds to it.
_MOST_BYTES = 11 * 1024 * 1024
_LOGGING = """\
rootLogger.level = warn
rootLogger.appenderRefs = console
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %c{1}: %m%n
"""


def kafka_certificates(data: DataDirectory) -> Certificates:
    """The authority and the broker's certificate, made when they are first asked for."""
    data.kafka.mkdir(mode=0o700, exist_ok=True)
    return ensure_certificates(data.kafka / "tls", "kafka")


def kafka_command(
    program: Kafka, data: DataDirectory, ports: Ports, credentials: tuple[str, str] | None, *, host: str = LOOPBACK
) -> Command:
    """The broker; `credentials` are the user and password that its clients have, or None where it asks for none.

    `host` is the address that it listens at and tells its clients.
    """
    data.kafka.mkdir(mode=0o700, exist_ok=True)
    context = None
    settings = _settings(data, ports, host)
    if credentials is not None:
        certificates = kafka_certificates(data)
        settings |= _security(certificates, credentials)
        context = ssl.create_default_context(cafile=str(certificates.authority))
    # Of mode 0600, as it may hold the password.
    configuration = data.kafka / "server.properties"
    write_private(configuration, "".join(f"{name}={value}\n" for name, value in settings.items()))
    logging = data.kafka / "log4j2.properties"
    logging.write_text(_LOGGING)
    java = [str(program.java), "-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", f"-Dlog4j2.configurationFile={logging}"]
    java += ["-cp", f"{program.jars}/*"]
    return Command(
        name="kafka",
        arguments=[*java, "kafka.Kafka", str(configuration)],
        is_ready=functools.partial(kafka_is_ready, ports.broker, context),
        log=data.log("kafka"),
        directory=data.kafka,
        prepare=functools.partial(_format, program, data, credentials),
        stop_seconds=30.0,
    )


def _settings(data: DataDirectory, ports: Ports, host: str) -> dict[str, str]:
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{LOOPBACK}:{ports.broker_peer}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"BROKER://{host}:{ports.broker},CONTROLLER://{LOOPBACK}:{ports.broker_peer}",
        "advertised.listeners": f"BROKER://{host}:{ports.broker}",
        "inter.broker.listener.name": "BROKER",
        "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(data.kafka / "data"),
        # Topics are made when a sidecar first subscribes to them; replicas share a topic by its partitions.
        "auto.create.topics.enable": "true",
        "num.partitions": "3",
        # A sidecar joins its group anew for each topic that it subscribes to: waiting for others each time adds up.
        "group.initial.rebalance.delay.ms": "0",
        "message.max.bytes": str(_MOST_BYTES),
        "replica.fetch.max.bytes": str(_MOST_BYTES),
        "log.retention.hours": "168",
        # One broker.
        "default.replication.factor": "1",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "3",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
    }


def _security(certificates: Certificates, credentials: tuple[str, str]) -> dict[str, str]:
    user, password = credentials
    login = "org.apache.kafka.common.security.scram.ScramLoginModule"
    return {
        "listener.security.protocol.map": "BROKER:SASL_SSL,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": _MECHANISM,
        "sasl.mechanism.inter.broker.protocol": _MECHANISM,
        f"listener.name.broker.{_MECHANISM.lower()}.sasl.jaas.config": (
            f'{login} required username="{user}" password="{password}";'
        ),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates.server),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.authority),
        "ssl.enabled.protocols": "TLSv1.3,TLSv1.2",
    }


async def _format(program: Kafka, data: DataDirectory, credentials: tuple[str, str] | None) -> None:
    """Prepares the data directory of a new broker, with its user."""
    if (data.kafka / "data" / "meta.properties").exists():
        return
    identity = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    words = ["-cp", f"{program.jars}/*", "kafka.tools.StorageTool", "format", "--ignore-formatted"]
    words += ["--cluster-id", identity, "--config", str(data.kafka / "server.properties")]
    if credentials is not None:
        user, password = credentials
        words += ["--add-scram", f"{_MECHANISM}=[name={user},password={password}]"]
    # In a file, since a command line is everybody's to read.
    arguments = data.kafka / "format.arguments"
    write_private(arguments, "".join(f'"{word}"\n' for word in words))
    try:
        process = await asyncio.create_subprocess_exec(
            str(program.java),
            f"@{arguments}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(_FORMAT_SECONDS):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            raise CommandError(f"Formatting Kafka's storage took longer than {_FORMAT_SECONDS:.0f} s.") from None
    finally:
        arguments.unlink()
    if process.returncode != 0:
        raise CommandError(f"Formatting Kafka's storage failed:\n{output.decode(errors='replace').strip()}")
