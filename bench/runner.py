"""One run: everything started, prepared, warmed up, then measured in rounds."""

import contextlib
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dapr.proto.common.v1 import common_pb2
from dapr.proto.runtime.v1 import state_pb2
from google.protobuf.message import Message
from rich.console import Console

from bench import events as broker_events
from bench import peers, protoset
from bench.clients.client import Spec
from bench.clients.recipes import STEPS
from bench.clients.turns import ENDPOINT
from bench.ghz import Ghz, Target
from bench.plan import (
    APPEND,
    CLIENTS,
    DRIVEN,
    EVENT,
    EVENTS,
    FIRST_TEXT,
    GHZ,
    HISTORIES,
    LIST,
    PYTHON,
    RECIPESTEP,
    REMINDERS,
    SESSION_COUNT,
    SESSIONS,
    STUB,
    SYNC,
    SYNC_CLIENTS,
    SYNC_PER_SECOND,
    TOOLCALL,
    TURN,
    Cell,
    Pace,
)
from bench.processes import BenchSidecar, Worker, first_line, mesh, running
from bench.stats import Round
from bench.texts import texts
from cli.binaries.tools import tool
from cli.mesh.data import PROJECT_ROOT, DataDirectory
from cli.mesh.description import MeshDescription
from cli.mesh.keys import sign_token
from cli.progress import build_progress
from gaggle.conversation.v1 import conversation_service_pb2 as api
from gaggle.conversation.v1 import message_pb2

_STORE = "statestore"
_SERVICE = "gaggle.conversation.v1.ConversationService"
_PREPARE_SECONDS = 180.0
_MEASURE_SECONDS = 60.0
_START_SECONDS = 30.0
_REMINDERS_SECONDS = 240.0
_SYNC_SECONDS = 180.0
_RAW_KEYS = 64
_SETTINGS = {"GAGGLE_STDIO_COMMANDS": shlex.join((sys.executable, str(Path(__file__).parent / "tool_server.py")))}

Tell = Callable[[str], None]
Samples = dict[Cell, list[Round]]


def run(samples: Samples, pace: Pace, console: Console, tell: Tell, done: Callable[[Cell], None]) -> None:
    """Measure all cells of `samples`, round by round into it. Raises Failed; what was measured until then is in it.

    `tell` says what is being done, `done` that a cell was measured once more.
    """
    cells = list(samples)
    reminders = [cell for cell in cells if cell.case == REMINDERS]
    if reminders:
        _reminders(reminders, pace, tell, done, samples)
    sync = [cell for cell in cells if cell.case == SYNC]
    if sync:
        _sync(sync, pace, tell, done, samples)
    recipes = [cell for cell in cells if cell.case == RECIPESTEP]
    if recipes:
        _recipes(recipes, pace, tell, done, samples)
    _measure_brokers(samples, pace, tell, done)
    others = [cell for cell in cells if cell.case not in {REMINDERS, SYNC, EVENTS, RECIPESTEP}]
    if others:
        _all_others(others, pace, console, tell, done, samples)


def _all_others(
    cells: Sequence[Cell],
    pace: Pace,
    console: Console,
    tell: Tell,
    done: Callable[[Cell], None],
    samples: Samples,
) -> None:
    events = [cell for cell in cells if cell.case == EVENT]
    sessions = [cell for cell in cells if cell.case == SESSIONS]
    loops = [cell for cell in cells if cell.case in {LIST, APPEND}]
    driven = [cell for cell in cells if cell.case in DRIVEN]
    with _stage(cells, pace, console, tell) as stage:
        began = time.monotonic()

        def rounds(of: Sequence[Cell], count: int) -> None:
            longest = 0.0
            for number in range(1, count + 1):
                started = time.monotonic()
                if number > 1 and started + longest > began + pace.budget_seconds:
                    tell(f"no time is left for round {number} of {count}")
                    return
                for cell in of:
                    tell(f"round {number} of {count}: {cell}")
                    samples[cell].append(stage.measure(cell))
                    done(cell)
                longest = max(longest, time.monotonic() - started)

        if events:
            # First, since a subscriber that joins later is given all that was published before it.
            tell("warming up events")
            stage.measure(events[0])
            rounds(events, pace.rounds)
        if driven:
            stage.prepare_driven(driven)
            rounds(driven, pace.rounds)
        if loops or sessions:
            stage.prepare([*events, *loops, *sessions])
            for cell in loops:
                tell(f"warming up {cell}")
                stage.closed_loop(cell, pace.warm_up_seconds)
            rounds(sessions, pace.session_rounds)
            rounds(loops, pace.rounds)


def _reminders(cells: Sequence[Cell], pace: Pace, tell: Tell, done: Callable[[Cell], None], samples: Samples) -> None:
    """Measure reminders, on a mesh of the services that they need, before all else. Raises Failed."""
    with contextlib.ExitStack() as held:
        work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="gaggle-bench-", ignore_cleanup_errors=True)))
        tell("starting the mesh of tasks and reminders")
        started = held.enter_context(mesh(work / "mesh", ("task", "reminder"), {}))
        sidecar = BenchSidecar(started)
        held.enter_context(sidecar.run(started, work))
        spec = Spec(
            database_url=started.database_url,
            sidecar_grpc=sidecar.grpc,
            sidecar_http=sidecar.http,
            store=_STORE,
            pubsub="pubsub",
            service="",
            token=sign_token(DataDirectory.at(started.data), "bench", ttl_seconds=24 * 3600),
            document="",
            pools={},
            task=started.services["task"].address,
            reminder=started.services["reminder"].address,
        )
        (work / "spec.json").write_text(json.dumps(asdict(spec)))
        worker = _worker(held, work, Path(sys.executable), "reminders")
        asked: dict[str, Any] = {"count": pace.reminder_count, "seconds": pace.reminder_seconds}
        for number in range(1, pace.reminder_rounds + 1):
            for cell in cells:
                tell(f"round {number} of {pace.reminder_rounds}: {cell}")
                answer = worker.ask("reminders", _REMINDERS_SECONDS, system="gaggle-reminders", **asked)
                samples[cell].append(Round(**answer))
                done(cell)


def _recipes(cells: Sequence[Cell], pace: Pace, tell: Tell, done: Callable[[Cell], None], samples: Samples) -> None:
    """Measure recipes, on a mesh of the services that they need. Latencies and rates are of steps. Raises Failed."""
    system = f"{RECIPESTEP}-gaggle"
    with contextlib.ExitStack() as held:
        work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="gaggle-bench-", ignore_cleanup_errors=True)))
        tell("starting the mesh of recipes")
        services = ("conversation", "extension", "agent", "recipe")
        started = held.enter_context(mesh(work / "mesh", services, _SETTINGS))
        spec = Spec(
            database_url=started.database_url,
            sidecar_grpc="",
            sidecar_http="",
            store=_STORE,
            pubsub="pubsub",
            service="",
            token=sign_token(DataDirectory.at(started.data), "bench", ttl_seconds=24 * 3600),
            document="",
            pools={},
            recipe=started.services["recipe"].address,
        )
        (work / "spec.json").write_text(json.dumps(asdict(spec)))
        worker = _worker(held, work, Path(sys.executable), "recipes")
        worker.ask("prepare", _PREPARE_SECONDS, system=system, history=0)
        for number in range(1, pace.rounds + 1):
            for cell in cells:
                tell(f"round {number} of {pace.rounds}: {cell}")
                asked = {"case": cell.case, "callers": cell.callers, "history": 0, "seconds": pace.recipe_seconds}
                answer = worker.ask("measure", pace.recipe_seconds + _MEASURE_SECONDS, system=system, **asked)
                latencies, seconds = answer["latencies_ms"], answer["seconds"]
                steps = [one / STEPS for one in latencies]
                samples[cell].append(Round(seconds, steps, rate=len(latencies) * STEPS / seconds))
                done(cell)


def _sync(cells: Sequence[Cell], pace: Pace, tell: Tell, done: Callable[[Cell], None], samples: Samples) -> None:
    """Measure streams of many clients, on a mesh of the services on an event's way to them. Raises Failed."""
    with contextlib.ExitStack() as held:
        work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="gaggle-bench-", ignore_cleanup_errors=True)))
        tell("starting the mesh of tasks, the log and sync")
        started = held.enter_context(mesh(work / "mesh", ("audit", "task", "sync"), {}))
        data = DataDirectory.at(started.data)
        tokens = [sign_token(data, f"bench-{number}", ttl_seconds=24 * 3600) for number in range(SYNC_CLIENTS)]
        (work / "tokens.json").write_text(json.dumps(tokens))
        sync = started.services["sync"]
        spec = Spec(
            database_url=started.database_url,
            sidecar_grpc="",
            sidecar_http="",
            store=_STORE,
            pubsub="pubsub",
            service="",
            token="",
            document="",
            pools={},
            task=started.services["task"].address,
            sync=sync.address,
            sync_url=f"ws://{sync.replicas[0].http}/ws",
            tokens=str(work / "tokens.json"),
        )
        (work / "spec.json").write_text(json.dumps(asdict(spec)))
        worker = _worker(held, work, Path(sys.executable), "sync")
        asked: dict[str, Any] = {"clients": SYNC_CLIENTS, "per_second": SYNC_PER_SECOND, "seconds": pace.sync_seconds}
        for number in range(1, pace.sync_rounds + 1):
            for cell in cells:
                tell(f"round {number} of {pace.sync_rounds}: {cell}")
                sockets = cell.system == "gaggle"
                answer = worker.ask("sync", _SYNC_SECONDS, system="gaggle-sync", sockets=sockets, **asked)
                samples[cell].append(Round(**answer))
                done(cell)


def _worker(held: contextlib.ExitStack, work: Path, python: Path, name: str) -> Worker:
    log = work / f"{name}.log"
    command = [str(python), "-m", "bench.worker", str(work / "spec.json")]
    # The generated code lies in gen/, which only an installed project has on its path.
    environment = {"PYTHONPATH": f"{PROJECT_ROOT}:{PROJECT_ROOT / 'gen'}"}
    return Worker(held.enter_context(running(command, log, environment=environment, answers=True)), log)


def _measure_brokers(samples: Samples, pace: Pace, tell: Tell, done: Callable[[Cell], None]) -> None:
    """Measure events on each broker, each on a mesh of its own."""
    for cell, rounds in samples.items():
        if cell.case == EVENTS:
            rounds.extend(broker_events.measure(cell.system, pace, tell))
            for _ in rounds:
                done(cell)


class _Stage:
    """Everything that runs, and what it is asked."""

    def __init__(
        self,
        held: contextlib.ExitStack,
        mesh: MeshDescription,
        sidecar: BenchSidecar,
        work: Path,
        pace: Pace,
        tell: Tell,
        model_url: str,
    ) -> None:
        """`held` ends what is started here; `work` is a directory."""
        self._held = held
        self._mesh = mesh
        self._sidecar = sidecar
        self._work = work
        self._pace = pace
        self._tell = tell
        self._conversation = mesh.services["conversation"]
        self._token = sign_token(DataDirectory.at(mesh.data), "bench", ttl_seconds=24 * 3600)
        self._targets: dict[tuple[str, str, int], Target] = {}
        self._peers: Worker | None = None
        protoset.write(work / "protoset.bin")
        self._ghz = Ghz(tool("ghz", lambda _what, _packages: None), work / "protoset.bin", work)
        spec = Spec(
            database_url=mesh.database_url,
            sidecar_grpc=sidecar.grpc,
            sidecar_http=sidecar.http,
            store=_STORE,
            pubsub="pubsub",
            service=self._conversation.address,
            token=self._token,
            document=str(work / "document"),
            pools={str(history): count for history, count in pace.pools.items()},
            **_extension(mesh),
            **_agent(mesh, model_url),
        )
        (work / "spec.json").write_text(json.dumps(asdict(spec)))
        self._stub = _worker(held, work, Path(sys.executable), "stub")

    # -- preparing

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Write every history, and start what is measured beside the mesh."""
        histories = {HISTORIES[0], *(cell.history for cell in cells if CLIENTS[cell.system] == GHZ)}
        for history in sorted(histories):
            self._tell(f"writing {self._pace.pools[history]} histories of {history:,}")
            self._stub.ask("prepare", _PREPARE_SECONDS, system="gaggle-python", history=history)
        document = self._stub.ask("document", _PREPARE_SECONDS, system="gaggle-python", history=HISTORIES[0])
        (self._work / "document").write_bytes(bytes.fromhex(document))
        self._add_ours()
        self._add_hops(bytes.fromhex(document))
        in_process = dict.fromkeys(cell.system for cell in cells if CLIENTS[cell.system] == PYTHON)
        if not in_process:
            return
        self._tell("starting the peers")
        self._peers = _worker(self._held, self._work, peers.interpreter(), "peers")
        for system in in_process:
            for history in sorted({cell.history for cell in cells if cell.system == system}):
                self._tell(f"writing histories of {history:,} for {system}")
                self._peers.ask("prepare", _PREPARE_SECONDS, system=system, history=history)

    def prepare_driven(self, cells: Sequence[Cell]) -> None:
        """Have every way to a tool or an answer opened and tried."""
        for case, system in dict.fromkeys((cell.case, cell.system) for cell in cells):
            self._tell(f"opening the way of {case} by {system}")
            self._stub.ask("prepare", _PREPARE_SECONDS, system=f"{case}-{system}", history=0)

    def _add_ours(self) -> None:
        straight = {"authorization": f"Bearer {self._token}"}
        invoked = {**straight, "dapr-app-id": self._conversation.app_id}
        ways = {
            "gaggle": (self._conversation.address, straight),
            "gaggle-mesh": (self._sidecar.grpc, invoked),
        }
        for history in HISTORIES:
            read = api.ListMessagesRequest(conversation_id=f"read-{history}")
            known = api.ListMessagesRequest(conversation_id=f"read-{history}", min_sequence=history)
            appends = [_append(f"append-{history}-{number}") for number in range(self._pace.pools[history])]
            for system, (address, metadata) in ways.items():
                self._targets[LIST, system, history] = _target(address, "ListMessages", [read], metadata)
                self._targets[APPEND, system, history] = _target(address, "AppendMessages", appends, metadata)
            address = self._conversation.address
            self._targets[LIST, "gaggle-known", history] = _target(address, "ListMessages", [known], straight)
        names = [f"append-50-{number}" for number in range(SESSION_COUNT)]
        strong = [api.ListMessagesRequest(conversation_id=name) for name in names]
        known_50 = [api.ListMessagesRequest(conversation_id=name, min_sequence=50) for name in names]
        address = self._conversation.address
        self._targets[SESSIONS, "gaggle", 50] = _target(address, "ListMessages", strong, straight)
        self._targets[SESSIONS, "gaggle-known", 50] = _target(address, "ListMessages", known_50, straight)

    def _add_hops(self, document: bytes) -> None:
        dapr = "dapr.proto.runtime.v1.Dapr"
        get = state_pb2.GetStateRequest(store_name=_STORE, key="document").SerializeToString()
        self._targets[LIST, "daprd-raw", 50] = Target(self._sidecar.grpc, f"{dapr}/GetState", [get])
        writes = [_three_rows(document, number) for number in range(_RAW_KEYS)]
        method = f"{dapr}/ExecuteStateTransaction"
        self._targets[APPEND, "daprd-raw", 50] = Target(self._sidecar.grpc, method, writes)
        ways = {"hop-empty": ["empty", str(self._work / "document")]}
        ways["hop-relay"] = ["relay", self._sidecar.grpc, _STORE, "document"]
        for system, arguments in ways.items():
            log = self._work / f"{system}.log"
            command = [sys.executable, "-m", "bench.hops", *arguments]
            port = first_line(self._held.enter_context(running(command, log, answers=True)), _START_SECONDS, log)
            hop = Target(f"127.0.0.1:{port}", "gaggle.bench.v1.Hop/Get", [get])
            self._targets[LIST, system, 50] = self._targets[SESSIONS, system, 50] = hop

    # -- measuring

    def measure(self, cell: Cell) -> Round:
        """Measure a cell for one round. Raises Failed."""
        if cell.case == EVENT:
            answer = self._stub.ask("events", _MEASURE_SECONDS, system="gaggle-python", count=self._pace.events)
            return Round(**answer)
        if cell.case == SESSIONS:
            return self._ghz.open_loop(self._target(cell), SESSION_COUNT, self._pace.session_seconds)
        return self.closed_loop(cell, self._pace.seconds)

    def closed_loop(self, cell: Cell, seconds: float) -> Round:
        """Measure a cell with callers who wait for their answers. Raises Failed."""
        if cell.case in DRIVEN:
            asked = {"case": cell.case, "callers": cell.callers, "history": 0, "seconds": seconds}
            system = f"{cell.case}-{cell.system}"
            return Round(**self._stub.ask("measure", seconds + _MEASURE_SECONDS, system=system, **asked))
        if CLIENTS[cell.system] == GHZ:
            return self._ghz.closed_loop(self._target(cell), cell.callers, seconds)
        worker = self._stub if CLIENTS[cell.system] == STUB else self._peers
        assert worker is not None
        asked = {"case": cell.case, "callers": cell.callers, "history": cell.history, "seconds": seconds}
        return Round(**worker.ask("measure", seconds + _MEASURE_SECONDS, system=cell.system, **asked))

    def _target(self, cell: Cell) -> Target:
        return self._targets[cell.case, cell.system, cell.history]


@contextlib.contextmanager
def _stage(cells: Sequence[Cell], pace: Pace, console: Console, tell: Tell) -> Iterator[_Stage]:
    """Start the mesh and the bench's sidecar; end all that was started."""
    tool("ghz", build_progress(console))
    if any(CLIENTS[cell.system] == PYTHON for cell in cells):
        tell("installing the peers, once")
        peers.interpreter()
    with contextlib.ExitStack() as held:
        # Unix sockets lie in it, whose paths are short.
        work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="gaggle-bench-", ignore_cleanup_errors=True)))
        cases = {cell.case for cell in cells}
        settings = dict(_SETTINGS)
        services = ["conversation", *(["extension"] if TOOLCALL in cases else [])]
        model_url = ""
        if cases & {TURN, FIRST_TEXT}:
            services.append("agent")
            model_url = _model(held, work)
            settings["GAGGLE_MODEL_ENDPOINTS"] = json.dumps([{**ENDPOINT, "base_url": model_url}])
        tell("starting the mesh")
        started = held.enter_context(mesh(work / "mesh", services, settings))
        sidecar = BenchSidecar(started)
        held.enter_context(sidecar.run(started, work))
        yield _Stage(held, started, sidecar, work, pace, tell, model_url)


def _extension(mesh: MeshDescription) -> dict[str, str]:
    found = mesh.services.get("extension")
    return {"extension": found.address, "extension_app_id": found.app_id} if found else {}


def _agent(mesh: MeshDescription, model_url: str) -> dict[str, str]:
    found = mesh.services.get("agent")
    return {"agent": found.address, "agent_app_id": found.app_id, "model_url": model_url} if found else {}


def _model(held: contextlib.ExitStack, work: Path) -> str:
    """Start the model that answers at once; gives its base URL."""
    log = work / "model.log"
    command = [sys.executable, "-m", "bench.model_server"]
    port = first_line(held.enter_context(running(command, log, answers=True)), _START_SECONDS, log)
    return f"http://127.0.0.1:{port}/v1"


def _target(address: str, method: str, requests: Sequence[Message], metadata: dict[str, str]) -> Target:
    return Target(address, f"{_SERVICE}/{method}", [one.SerializeToString() for one in requests], metadata)


def _append(conversation_id: str) -> api.AppendMessagesRequest:
    request = api.AppendMessagesRequest(conversation_id=conversation_id)
    request.messages.add(role=message_pb2.ROLE_USER).content.add().text.text = texts(1)[0]
    return request


def _three_rows(document: bytes, number: int) -> bytes:
    """Build what an append at the least has to write: the window, an event, and what finds the event again."""
    request = state_pb2.ExecuteStateTransactionRequest(storeName=_STORE)
    for name, value in (("window", document), ("event", document[:400]), ("row", document[:60])):
        item = common_pb2.StateItem(key=f"raw-{name}-{number}", value=value)
        request.operations.add(operationType="upsert", request=item)
    return request.SerializeToString()
