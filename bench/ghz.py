"""Measuring gRPC systems with ghz: a client in Go, cheap enough not to be what is measured."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.protoset import write_requests
from bench.stats import Round, from_schedule

_GRACE_SECONDS = 30.0
_OPEN_LOOP_WORKERS = 20


class Failed(Exception):
    """A system did not answer as it should; its numbers would mean nothing."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a system takes a call, and what it is sent."""

    address: str
    method: str
    requests: Sequence[bytes]
    """Gone round; each run starts a little further on."""

    metadata: Mapping[str, str] = field(default_factory=dict)


class Ghz:
    """Runs ghz, one process a measurement."""

    def __init__(self, program: Path, protoset: Path, work: Path) -> None:
        """`work` is a directory for its input and output."""
        self._program = program
        self._protoset = protoset
        self._work = work
        self._turn = 0

    def closed_loop(self, target: Target, callers: int, seconds: float, *, connections: int = 0) -> Round:
        """Let `callers` call as fast as they are answered. Raises Failed."""
        # ghz counts its time from before it connects, which on a busy machine takes a while.
        for connecting in (0.05 + 0.005 * callers, 1.0, 5.0):
            found = self._closed_loop(target, callers, seconds + connecting, connections or callers)
            if found.latencies_ms:
                return found
        raise Failed(f"{target.method} at {target.address}: not one answer in {seconds} s")

    def _closed_loop(self, target: Target, callers: int, seconds: float, connections: int) -> Round:
        report = self._run(
            target,
            seconds,
            "--concurrency", str(callers),
            "--connections", str(connections),
            "--duration", f"{seconds:.3f}s",
            # Calls under way when the time is over are waited for and counted: dropping them would favour the slow.
            "--duration-stop", "wait",
        )  # fmt: skip
        return Round(report["total"] / 1e9, [one["latency"] / 1e6 for one in report["details"] or []])

    def open_loop(self, target: Target, rate: int, seconds: float) -> Round:
        """Send `rate` calls a second whether or not earlier ones were answered. Raises Failed."""
        report = self._run(
            target,
            seconds,
            "--async",
            "--rps", str(rate),
            "--concurrency", str(_OPEN_LOOP_WORKERS),
            "--connections", str(_OPEN_LOOP_WORKERS),
            "--total", str(int(rate * seconds)),
        )  # fmt: skip
        calls = []
        for one in report["details"]:
            took = one["latency"] / 1e6
            calls.append((_epoch_seconds(one["timestamp"]) - took / 1000, took))
        return Round(report["total"] / 1e9, from_schedule(calls, rate))

    def _run(self, target: Target, seconds: float, *options: str) -> dict[str, Any]:
        requests, output = self._work / "requests.bin", self._work / "ghz.json"
        start = self._turn % len(target.requests)
        self._turn += 997
        write_requests(requests, [*target.requests[start:], *target.requests[:start]])
        command = [
            str(self._program),
            "--insecure",
            "--protoset", str(self._protoset),
            "--call", target.method,
            "--binary-file", str(requests),
            "--metadata", json.dumps(dict(target.metadata)),
            "--disable-template-functions",
            "--disable-template-data",
            "--format", "json",
            "--output", str(output),
            *options,
            target.address,
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds * 3 + _GRACE_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{target.method} at {target.address}: no end after {error.timeout:.0f} s") from error
        if done.returncode:
            raise Failed(f"{target.method} at {target.address}: {(done.stderr or done.stdout).strip()[-500:]}")
        report: dict[str, Any] = json.loads(output.read_bytes())
        if set(report["statusCodeDistribution"]) - {"OK"}:
            raise Failed(
                f"{target.method} at {target.address}: {report['statusCodeDistribution']} {report['errorDistribution']}"
            )
        return report


def _epoch_seconds(timestamp: str) -> float:
    """Read an RFC 3339 time with nanoseconds, of which datetime takes six digits."""
    clock, _, rest = timestamp.partition(".")
    digits = rest.rstrip("Z").partition("+")[0].partition("-")[0]
    zone = rest[len(digits) :].replace("Z", "+00:00")
    return datetime.fromisoformat(clock + zone).timestamp() + float(f"0.{digits or 0}")
