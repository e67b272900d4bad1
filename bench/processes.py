"""Processes of the bench's own. Each ends with the bench, however that ends; no other process is ever touched."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from bench.ghz import Failed
from cli.mesh.data import PROJECT_ROOT, DataDirectory
from cli.mesh.description import MeshDescription
from cli.mesh.process import leashed

_STOP_SECONDS = 10.0
_START_SECONDS = 60.0
_TOPIC_SCOPES = {"publishingScopes", "subscriptionScopes", "protectedTopics"}
SIDECAR_APP_ID = "bench"


@contextlib.contextmanager
def running(
    arguments: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, answers: bool = False
) -> Iterator["subprocess.Popen[str]"]:
    """Run a program and end it. With `answers` its stdin and stdout are ours; stderr goes to the log."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            leashed(list(arguments), orphan_signal=signal.SIGKILL, user=None),
            cwd=PROJECT_ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE if answers else subprocess.DEVNULL,
            stdout=subprocess.PIPE if answers else output,
            stderr=output,
            text=True,
            start_new_session=True,  # Ctrl-C is for the bench, which ends them in order
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def first_line(process: "subprocess.Popen[str]", seconds: float, log: Path) -> str:
    """Read a line of a process that answers. Raises Failed if it ends or says nothing within the time."""
    assert process.stdout is not None
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line:
        said = log.read_text(errors="replace").strip()[-800:]
        raise Failed(f"a process of the bench ended or was silent for {seconds:.0f} s:\n{said}")
    return line.rstrip("\n")


class Worker:
    """A Python process that measures systems in itself (bench.worker)."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        """`process` runs bench.worker."""
        self._process = process
        self._log = log

    def ask(self, do: str, patience_seconds: float, **arguments: Any) -> Any:
        """Have it do something. Raises Failed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"a process of the bench is gone: {self._log.read_text()[-800:]}") from None
        answer = json.loads(first_line(self._process, patience_seconds, self._log))
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["result"]


@contextlib.contextmanager
def mesh(
    data: Path,
    services: Sequence[str],
    settings: Mapping[str, str] = MappingProxyType({}),
    *,
    components: str = "local",
) -> Iterator[MeshDescription]:
    """Start a mesh of these services alone on a component set, and stop it."""
    environment = {**os.environ, **settings, "GAGGLE_APP_ID_SUFFIX": os.environ.get("GAGGLE_APP_ID_SUFFIX", "-bench")}
    gaggle = [sys.executable, "-m", "cli.main"]
    place = ["--data", str(data)]
    started = [*gaggle, "up", "--detach", *place, "--port-base", "0", "--components", components]
    for one in services:
        started += ["--only", one]
    done = subprocess.run(
        [*started, "--owner-pid", str(os.getpid())],
        cwd=PROJECT_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        if done.returncode:
            raise Failed(f"the mesh did not start: {(done.stderr or done.stdout).strip()}")
        yield MeshDescription.load(DataDirectory.at(data).mesh_file)
    finally:
        subprocess.run([*gaggle, "down", *place], cwd=PROJECT_ROOT, env=environment, capture_output=True, check=False)


class BenchSidecar:
    """A daprd beside the mesh's: same binary, same configuration, same stores, an app id of its own.

    Raw reads, the relay and the peers that use Dapr go through it; for gaggle-mesh it is the caller's sidecar.
    """

    def __init__(self, mesh: MeshDescription) -> None:
        """Choose free ports."""
        self.grpc, self.http, self.internal, self.metrics = (f"127.0.0.1:{port}" for port in _free_ports(4))
        self.app_id = SIDECAR_APP_ID + mesh.app_id_suffix

    @contextlib.contextmanager
    def run(self, mesh: MeshDescription, work: Path) -> Iterator[None]:
        """Run it, ready."""
        components = work / "components"
        components.mkdir()
        for file in mesh.components.glob("*.yaml"):
            document = yaml.safe_load(file.read_text())
            kind = document["spec"].get("type", "").partition(".")[0]
            if kind in {"state", "pubsub", "secretstores"} and document["metadata"]["name"] != "pubsub-fanout":
                document.pop("scopes", None)
                # Its own copy is open to it: any topic may be measured.
                fields = document["spec"].get("metadata") or []
                document["spec"]["metadata"] = [one for one in fields if one["name"] not in _TOPIC_SCOPES]
                (components / file.name).write_text(yaml.safe_dump(document))
        log = work / "daprd.log"
        arguments = [
            str(mesh.daprd),
            f"--app-id={self.app_id}",
            f"--dapr-grpc-port={_port(self.grpc)}",
            f"--dapr-http-port={_port(self.http)}",
            "--dapr-listen-addresses=127.0.0.1",
            f"--dapr-internal-grpc-port={_port(self.internal)}",
            "--dapr-internal-grpc-listen-address=127.0.0.1",
            f"--metrics-port={_port(self.metrics)}",
            "--metrics-listen-address=127.0.0.1",
            f"--resources-path={components}",
            f"--config={mesh.data / 'configurations' / f'{next(iter(mesh.services))}.yaml'}",
            "--max-body-size=16Mi",
            "--dapr-graceful-shutdown-seconds=2",
            "--log-level=info",
            "--log-as-json",
        ]
        with running(arguments, log) as process:
            deadline = time.monotonic() + _START_SECONDS
            while not _is_ok(f"http://{self.http}/v1.0/healthz/outbound"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"the bench's sidecar did not start:\n{log.read_text()[-800:]}")
                time.sleep(0.05)
            yield


def _port(address: str) -> str:
    return address.rpartition(":")[2]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _is_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 - always http, on loopback
            return bool(answer.status < 300)
    except (urllib.error.URLError, OSError):
        return False
