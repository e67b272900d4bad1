"""What is measured: every cell of the table, and how long each is given."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

LIST = "list50"
APPEND = "append1"
SESSIONS = "sessions1000"
EVENT = "event"
EVENTS = "events"
REMINDERS = "reminders1000"
SYNC = "sync1000"
TOOLCALL = "toolcall"
TURN = "turn"
FIRST_TEXT = "firsttext"
RECIPESTEP = "recipestep"
CASES = (LIST, APPEND, SESSIONS, EVENT, EVENTS, REMINDERS, SYNC, TOOLCALL, TURN, FIRST_TEXT, RECIPESTEP)

DRIVEN = (TOOLCALL, TURN, FIRST_TEXT)
"""Measured by a client in Python on every way, `{case}-{system}` in worker.py, without a history of their own."""

BROKERS = ("local", "rabbitmq", "kafka", "kafka-cloud")
"""Component sets, each with a broker of its own."""

GHZ = "ghz"
PYTHON = "Python, in process"
STUB = "Python, generated stub"
SUBSCRIBER = "Python, a subscriber"

# Whose client measures what.
CLIENTS = {
    "hop-empty": GHZ,
    "daprd-raw": GHZ,
    "hop-relay": GHZ,
    "gaggle": GHZ,
    "gaggle-known": GHZ,
    "gaggle-mesh": GHZ,
    "gaggle-python": STUB,
    "mcp-sdk": STUB,
    "openai-sdk": STUB,
    "asyncpg": PYTHON,
    "dapr-http-json": PYTHON,
    "openai-agents-dapr": PYTHON,
    "openai-agents-sqlalchemy": PYTHON,
    "langgraph-postgres": PYTHON,
    **dict.fromkeys(BROKERS, SUBSCRIBER),
}
PEERS = ("dapr-http-json", "openai-agents-dapr", "openai-agents-sqlalchemy", "langgraph-postgres")
"""What else keeps conversations for agents. asyncpg is no peer but the floor."""

_FLAT = ("asyncpg", "hop-empty", "daprd-raw", "hop-relay")
_OURS = ("gaggle", "gaggle-known", "gaggle-mesh")
_CALLERS = (1, 32)
HISTORIES = (50, 1_000, 10_000)
PEER_HISTORIES = (50, 1_000)
SESSION_COUNT = 1_000
REMINDER_COUNT = 1_000
SYNC_CLIENTS = 1_000
SYNC_PER_SECOND = 100
TOOL_CALLERS = (1, 8)
"""A connection takes 16 calls at once."""
TURN_CALLERS = (1, 8)
BURST_CALLERS = 32
RECIPE_CALLERS = (1, 8)
"""Executions under way at once."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the results."""

    case: str
    system: str
    callers: int
    history: int

    def __str__(self) -> str:
        return f"{self.case} {self.system} x{self.callers} of {self.history:,}"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take. Seconds are of one cell in one round."""

    rounds: int
    seconds: float
    warm_up_seconds: float
    session_rounds: int
    session_seconds: float
    events: int
    """Appends whose event is awaited, in each of `rounds`."""

    recipe_seconds: float
    """Of a cell of recipes in one round: an execution takes many times what a read takes."""

    reminder_rounds: int
    reminder_count: int
    reminder_seconds: float
    """Within which so many reminders come due, in each round of theirs."""

    sync_rounds: int
    sync_seconds: float
    """For which a hundred events a second find their clients, in each round of theirs."""

    burst: int
    """Events published at once on each broker, in each of `rounds`."""

    budget_seconds: float
    """After so long no further round is begun: what was measured by then is the result."""

    pools: dict[int, int]
    """Conversations of each history that appends go round, so that none grows much."""


FULL = Pace(
    rounds=5,
    seconds=0.8,
    warm_up_seconds=0.4,
    session_rounds=3,
    session_seconds=5.0,
    events=60,
    recipe_seconds=8.0,
    reminder_rounds=1,
    reminder_count=REMINDER_COUNT,
    reminder_seconds=60.0,
    sync_rounds=1,
    sync_seconds=30.0,
    burst=2000,
    budget_seconds=600.0,
    pools={50: SESSION_COUNT, 1_000: 64, 10_000: 32},
)
QUICK = Pace(
    rounds=1,
    seconds=0.3,
    warm_up_seconds=0.1,
    session_rounds=1,
    session_seconds=2.0,
    events=30,
    recipe_seconds=3.0,
    reminder_rounds=1,
    reminder_count=100,
    reminder_seconds=6.0,
    sync_rounds=1,
    sync_seconds=5.0,
    burst=500,
    budget_seconds=90.0,
    pools={50: SESSION_COUNT, 1_000: 32, 10_000: 4},
)


def cells(only_cases: Collection[str] = (), only_systems: Collection[str] = ()) -> list[Cell]:
    """Give the cells in the order of a round: what is compared lies side by side. Empty filters keep all."""
    return [
        cell
        for cell in _all()
        if (not only_cases or cell.case in only_cases) and (not only_systems or cell.system in only_systems)
    ]


def _all() -> Iterator[Cell]:  # noqa: C901 - a table, read from top to bottom
    yield Cell(REMINDERS, "gaggle", REMINDER_COUNT, 0)
    yield from (Cell(SYNC, system, SYNC_CLIENTS, 0) for system in ("gaggle", "gaggle-python"))
    yield Cell(EVENT, "gaggle", 1, 50)
    tools = ("mcp-sdk", "gaggle", "gaggle-mesh")
    yield from (Cell(TOOLCALL, system, callers, 0) for callers in TOOL_CALLERS for system in tools)
    ways = ("openai-sdk", "gaggle", "gaggle-mesh")
    yield from (
        Cell(case, system, callers, 0) for case in (TURN, FIRST_TEXT) for callers in TURN_CALLERS for system in ways
    )
    yield from (Cell(RECIPESTEP, "gaggle", callers, 0) for callers in RECIPE_CALLERS)
    yield from (Cell(EVENTS, broker, BURST_CALLERS, 0) for broker in BROKERS)
    for callers in _CALLERS:
        for history in HISTORIES:
            if history == HISTORIES[0]:
                yield from (Cell(LIST, system, callers, history) for system in _FLAT)
            yield from (Cell(LIST, system, callers, history) for system in _OURS)
            if history == HISTORIES[0]:
                yield Cell(LIST, "gaggle-python", callers, history)
            if history in PEER_HISTORIES:
                yield from (Cell(LIST, system, callers, history) for system in PEERS)
    for system in ("hop-relay", "gaggle", "gaggle-known"):
        yield Cell(SESSIONS, system, SESSION_COUNT, 50)
    for callers in _CALLERS:
        for history in HISTORIES:
            if history == HISTORIES[0]:
                yield from (Cell(APPEND, system, callers, history) for system in ("asyncpg", "daprd-raw"))
            yield from (Cell(APPEND, system, callers, history) for system in ("gaggle", "gaggle-mesh"))
            if history == HISTORIES[0]:
                yield Cell(APPEND, "gaggle-python", callers, history)
            if history in PEER_HISTORIES:
                yield from (Cell(APPEND, system, callers, history) for system in PEERS)
