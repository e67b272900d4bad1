"""RabbitMQ for a mesh on this machine: a virtual host, a user with a password, on loopback, no plugins.

Erlang nodes find each other by epmd, which would listen on every interface and outlive the mesh if RabbitMQ started it:
so the mesh runs one of its own, on loopback, at a port of its own.
"""

import functools
import ssl

from cli.binaries.rabbitmq import RabbitMQ
from cli.mesh.certificates import Certificates, ensure_certificates
from cli.mesh.data import DataDirectory, write_private
from cli.mesh.health import rabbitmq_is_ready, tcp_is_open
from cli.mesh.ports import LOOPBACK, Ports
from cli.mesh.process import Command

VIRTUAL_HOST = "gaggle"
_NODE = "gaggle@localhost"


def epmd_command(program: RabbitMQ, data: DataDirectory, ports: Ports) -> Command:
    """Erlang's port mapper."""
    return Command(
        name="epmd",
        arguments=[str(program.erlang / "epmd"), "-port", str(ports.broker_nodes), "-address", LOOPBACK],
        is_ready=functools.partial(tcp_is_open, ports.broker_nodes),
        log=data.log("epmd"),
    )


def rabbitmq_certificates(data: DataDirectory) -> Certificates:
    """The authority and the broker's certificate, made when they are first asked for."""
    data.rabbitmq.mkdir(mode=0o700, exist_ok=True)
    return ensure_certificates(data.rabbitmq / "tls", "rabbitmq")


def rabbitmq_command(
    program: RabbitMQ, data: DataDirectory, ports: Ports, credentials: tuple[str, str], *, tls: bool
) -> Command:
    """The broker, by TLS or without. User (with password) and virtual host are made at its first start."""
    home = data.rabbitmq
    home.mkdir(mode=0o700, exist_ok=True)
    user, password = credentials
    context = None
    settings = {f"listeners.{'ssl' if tls else 'tcp'}.1": f"{LOOPBACK}:{ports.broker}"}
    if tls:
        certificates = rabbitmq_certificates(data)
        context = ssl.create_default_context(cafile=str(certificates.authority))
        settings |= {
            "listeners.tcp": "none",
            "ssl_options.cacertfile": str(certificates.authority),
            "ssl_options.certfile": str(certificates.server),
            "ssl_options.keyfile": str(certificates.server),
            "ssl_options.versions.1": "tlsv1.3",
            "ssl_options.versions.2": "tlsv1.2",
            # Clients prove themselves by a password.
            "ssl_options.verify": "verify_none",
            "ssl_options.fail_if_no_peer_cert": "false",
        }
    settings |= {
        "default_user": user,
        "default_pass": password,
        "default_vhost": VIRTUAL_HOST,
        "log.console": "true",
        "log.console.level": "info",
        "log.file": "false",
        # Of the health check, every two seconds.
        "log.connection.level": "none",
        # Dapr 1.18's subscribers, reconnecting at once over one channel, leave consumers behind that take events and
        # never answer (dapr/components-contrib#4540). After this time, in milliseconds, the broker takes them back.
        "consumer_timeout": "60000",
        # Of the memory left to everything on this machine, of which the broker is a small part.
        "vm_memory_high_watermark.relative": "0.2",
        "disk_free_limit.absolute": "50MB",
    }
    write_private(home / "rabbitmq.conf", "".join(f"{name} = {value}\n" for name, value in settings.items()))
    (home / "enabled_plugins").write_text("[].\n")
    # How often consumer_timeout is looked at, in milliseconds.
    (home / "advanced.config").write_text("[{rabbit, [{channel_tick_interval, 15000}]}].\n")
    environment = {
        "HOME": str(home),
        "PATH": f"{program.erlang}:/usr/bin:/bin:/usr/sbin:/sbin",
        # To its script: replace yourself by the server, so that signals and the supervisor's leash reach that.
        "detached": "1",
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "ERL_EPMD_PORT": str(ports.broker_nodes),
        "RABBITMQ_NODENAME": _NODE,
        "RABBITMQ_DIST_PORT": str(ports.broker_peer),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_CONF_ENV_FILE": str(home / "none.env"),
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(home / "generated"),
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_LOG_BASE": str(home),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_PID_FILE": str(home / "pid"),
    }
    return Command(
        name="rabbitmq",
        arguments=[str(program.server)],
        is_ready=functools.partial(rabbitmq_is_ready, ports.broker, context),
        log=data.log("rabbitmq"),
        environment=environment,
        directory=home,
        stop_seconds=30.0,
    )
