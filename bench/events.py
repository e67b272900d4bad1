"""Events on each broker: a mesh of its own on the component set, and a subscriber with a sidecar of its own."""

import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from bench.clients.client import Spec
from bench.plan import Pace
from bench.processes import BenchSidecar, Worker, mesh, running
from bench.stats import Round
from cli.mesh.data import PROJECT_ROOT, DataDirectory
from cli.mesh.keys import sign_token

_SECONDS = 120.0


def measure(components: str, pace: Pace, tell: Callable[[str], None]) -> list[Round]:
    """Measure events on one component set, in rounds. Raises Failed."""
    with ExitStack() as held:
        work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="gaggle-bench-", ignore_cleanup_errors=True)))
        tell(f"starting a mesh on {components}")
        started = held.enter_context(mesh(work / "mesh", ("conversation",), components=components))
        sidecar = BenchSidecar(started)
        held.enter_context(sidecar.run(started, work))
        spec = Spec(
            database_url=started.database_url,
            sidecar_grpc=sidecar.grpc,
            sidecar_http=sidecar.http,
            store=started.settings.get("GAGGLE_STATESTORE", "statestore"),
            pubsub=started.settings.get("GAGGLE_PUBSUB", "pubsub"),
            service=started.services["conversation"].address,
            token=sign_token(DataDirectory.at(started.data), "bench", ttl_seconds=24 * 3600),
            document="",
            pools={},
        )
        (work / "spec.json").write_text(json.dumps(asdict(spec)))
        command = [sys.executable, "-m", "bench.worker", str(work / "spec.json")]
        environment = {"PYTHONPATH": f"{PROJECT_ROOT}:{PROJECT_ROOT / 'gen'}"}
        log = work / "stub.log"
        worker = Worker(held.enter_context(running(command, log, environment=environment, answers=True)), log)
        publisher = started.services["conversation"].sidecar_grpc
        rounds = []
        # The first is to warm up: topics are made, consumers join.
        for number in range(pace.rounds + 1):
            tell(f"round {number} of {pace.rounds}: events on {components}")
            paced = worker.ask("events", _SECONDS, system="gaggle-python", count=pace.events)
            burst = worker.ask("burst", _SECONDS, system="gaggle-python", publisher=publisher, count=pace.burst)
            rounds.append(Round(**paced, rate=burst["per_second"]))
        return rounds[1:]
