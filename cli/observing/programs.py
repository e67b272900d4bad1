"""Prometheus and Zipkin as processes beside a mesh, on loopback. They end with whoever started them."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from cli.binaries.prometheus import Prometheus
from cli.binaries.zipkin import Zipkin
from cli.errors import CommandError
from cli.mesh.data import PROJECT_ROOT
from cli.mesh.ports import LOOPBACK, is_free
from cli.mesh.process import leashed

CONFIGURATION = PROJECT_ROOT / "deploy" / "observability"

_START_SECONDS = 240.0
_STOP_SECONDS = 15.0
_POLL_SECONDS = 0.1
_ZIPKIN_MEMORY = "256m"


@contextlib.contextmanager
def running_prometheus(programs: Prometheus, folder: Path, targets: Path, port: int) -> Iterator[str]:
    """Runs Prometheus on the project's configuration and gives its address.

    Args:
        programs: where it is.
        folder: its configuration, data and log go there.
        targets: the files that say what to scrape.
        port: where it listens.

    Raises:
        CommandError: it did not start; the text says where its log is.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copy(CONFIGURATION / "prometheus.yml", folder / "prometheus.yml")
    shutil.copytree(CONFIGURATION / "rules", folder / "rules", dirs_exist_ok=True)
    link = folder / "targets"
    link.unlink(missing_ok=True)
    link.symlink_to(targets)
    arguments = [
        str(programs.server),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=7d",
        f"--web.listen-address={LOOPBACK}:{port}",
    ]
    address = f"http://{LOOPBACK}:{port}"
    with running_program("Prometheus", arguments, folder / "prometheus.log", f"{address}/-/ready", port):
        yield address


@contextlib.contextmanager
def running_zipkin(program: Zipkin, folder: Path, port: int) -> Iterator[str]:
    """Runs Zipkin, which keeps traces in memory, and gives its address. Arguments and errors as above."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    arguments = [
        str(program.java),
        f"-Xmx{_ZIPKIN_MEMORY}",
        "-jar",
        str(program.jar),
        f"--armeria.ports[0].port={port}",
        f"--armeria.ports[0].address={LOOPBACK}",
        "--armeria.ports[0].protocols[0]=http",
        "--zipkin.self-tracing.enabled=false",
    ]
    address = f"http://{LOOPBACK}:{port}"
    with running_program("Zipkin", arguments, folder / "zipkin.log", f"{address}/health", port):
        yield address


@contextlib.contextmanager
def running_program(name: str, arguments: list[str], log: Path, ready: str, port: int) -> Iterator[None]:
    """Runs a program until the block ends.

    Args:
        name: what people call it.
        arguments: its command line.
        log: where its output goes.
        ready: the address that answers 200 once it has started.
        port: where it is to listen.

    Raises:
        CommandError: it did not start, or the port is taken.
    """
    if not is_free(port):
        raise CommandError(f"Something else listens on port {port}, which {name} is to have.")
    with log.open("wb") as output:
        process = subprocess.Popen(
            leashed(arguments, orphan_signal=signal.SIGTERM, user=None),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(name, process, ready, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(name: str, process: "subprocess.Popen[bytes]", ready: str, log: Path) -> None:
    opener = build_opener(ProxyHandler({}))
    deadline = time.monotonic() + _START_SECONDS
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            raise CommandError(f"{name} did not start; {log} says why.")
        with contextlib.suppress(OSError), opener.open(ready, timeout=2) as answer:
            if answer.status == 200:  # noqa: PLR2004 - HTTP's OK
                return
        time.sleep(_POLL_SECONDS)
