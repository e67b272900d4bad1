"""Holds the results against the speed that Gaggle must have: `python -m bench.targets [latest.json]`.

A report, not a gate: it exits 0 whatever it finds.
"""

import json
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from rich.console import Console
from rich.table import Table

from bench.plan import APPEND, EVENT, LIST, PEERS, REMINDER_COUNT, REMINDERS, SESSION_COUNT, SESSIONS

RESULTS = Path(__file__).with_name("results") / "latest.json"
_FLAT = 1.1
"""What counts as flat: a tenth more at 10,000 messages than at 50."""

_FIT = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


class Row(TypedDict):
    """A line of latest.json."""

    case: str
    system: str
    callers: int
    history: int
    per_second: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Check:
    """One target and what came of it."""

    what: str
    value: float | None
    """None: a row that it needs is missing."""

    relation: str
    limit: float
    goal: bool = False
    """Hoped for, beyond what must be reached."""

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None if that is not known."""
        return None if self.value is None else bool(_FIT[self.relation](self.value, self.limit))


class Results:
    """Rows by what they measure."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """`rows` as in latest.json."""
        self._rows = {(row["case"], row["system"], row["callers"], row["history"]): row for row in rows}

    def p50(self, case: str, system: str, callers: int = 1, history: int = 50) -> float:
        """Give a median latency. KeyError if it was not measured."""
        return self._rows[case, system, callers, history]["p50_ms"]

    def p99(self, case: str, system: str, callers: int = 1, history: int = 50) -> float:
        """Give a 99th percentile. KeyError if it was not measured."""
        return self._rows[case, system, callers, history]["p99_ms"]

    def rate(self, case: str, system: str, callers: int = 32, history: int = 50) -> float:
        """Give calls a second. KeyError if it was not measured."""
        return self._rows[case, system, callers, history]["per_second"]


def checks(results: Results) -> list[Check]:
    """Compute every target."""
    p50, p99, rate = results.p50, results.p99, results.rate
    sql = "openai-agents-sqlalchemy"
    dapr = "openai-agents-dapr"

    def serial() -> float:
        return 1 / (1 / rate(LIST, "hop-empty") + 1 / rate(LIST, "daprd-raw"))

    def longest(case: str) -> float:
        return p50(case, "gaggle", history=10_000) / p50(case, "gaggle")

    wanted: list[tuple[str, Callable[[], float], str, float, bool]] = [
        ("list50, 1 caller: p50 / relay", lambda: p50(LIST, "gaggle") / p50(LIST, "hop-relay"), "<=", 1.15, False),
        (
            "list50, 1 caller: p50 / (empty hop + raw)",
            lambda: p50(LIST, "gaggle") / (p50(LIST, "hop-empty") + p50(LIST, "daprd-raw")),
            "<=",
            1.1,
            True,
        ),
        (
            "list50, 32 callers: rate / relay",
            lambda: rate(LIST, "gaggle") / rate(LIST, "hop-relay"),
            ">=",
            0.85,
            False,
        ),
        *(
            (
                f"list50, 32 callers, history {history:,}: rate / SQLAlchemySession",
                lambda history=history: rate(LIST, "gaggle", history=history) / rate(LIST, sql, history=history),
                ">=",
                limit,
                goal,
            )
            for history in (50, 1_000)
            for limit, goal in ((1.2, False), (1.75, True))
        ),
        (
            "list50, 32 callers: rate / (empty hop and raw in turn)",
            lambda: rate(LIST, "gaggle") / serial(),
            ">=",
            0.8,
            True,
        ),
        *(
            (
                "list50 of a known sequence, 1 caller: p50 / empty hop",
                lambda: p50(LIST, "gaggle-known") / p50(LIST, "hop-empty"),
                "<=",
                limit,
                goal,
            )
            for limit, goal in ((1.4, False), (1.15, True))
        ),
        (
            "list50 of a known sequence, 1 caller: p50 / fastest peer",
            lambda: p50(LIST, "gaggle-known") / min(p50(LIST, peer) for peer in PEERS),
            "<",
            1.0,
            False,
        ),
        ("list50, 1 caller: p50 at 10,000 / at 50", lambda: longest(LIST), "<=", 1.1, False),
        (
            "1,000 sessions, each once a second: p99 in ms",
            lambda: p99(SESSIONS, "gaggle", SESSION_COUNT),
            "<=",
            50.0,
            False,
        ),
        (
            "append1, 1 caller: p50 / SQLAlchemySession.add_items",
            lambda: p50(APPEND, "gaggle") / p50(APPEND, sql),
            "<=",
            1.5,
            False,
        ),
        (
            "append1, 1 caller: p50 / DaprSession.add_items",
            lambda: p50(APPEND, "gaggle") / p50(APPEND, dapr),
            "<=",
            0.8,
            False,
        ),
        ("append1, 1 caller: p50 at 10,000 / at 50", lambda: longest(APPEND), "<=", _FLAT, False),
        (
            "append1, 32 callers: rate / SQLAlchemySession",
            lambda: rate(APPEND, "gaggle") / rate(APPEND, sql),
            ">",
            1.0,
            False,
        ),
        (
            "append1, 32 callers: rate / DaprSession",
            lambda: rate(APPEND, "gaggle") / rate(APPEND, dapr),
            ">",
            1.0,
            False,
        ),
        *(
            (
                f"{case}, 1 caller: ms more through two sidecars, at the median",
                lambda case=case: p50(case, "gaggle-mesh") - p50(case, "gaggle"),
                "<=",
                1.0,
                False,
            )
            for case in (LIST, APPEND)
        ),
        ("event from answer to subscriber: p50 in ms", lambda: p50(EVENT, "gaggle"), "<=", 10.0, False),
        (
            "1,000 reminders due within a minute, at their subscriber: p99 of lateness in ms",
            lambda: p99(REMINDERS, "gaggle", REMINDER_COUNT, 0),
            "<=",
            100.0,
            False,
        ),
    ]
    return [Check(what, _known(compute), relation, limit, goal) for what, compute, relation, limit, goal in wanted]


def _known(compute: Callable[[], float]) -> float | None:
    try:
        return compute()
    except (KeyError, ZeroDivisionError):
        return None


def verdict(check: Check) -> str:
    """Put what came of a target in a word or two."""
    if check.met is None:
        return "not measured"
    return "met" if check.met else "not met"


def table(found: Sequence[Check]) -> Table:
    """Draw the targets for a terminal."""
    drawn = Table(title="Targets")
    for name in ("What", "Value", "Wanted", ""):
        drawn.add_column(name, justify="right" if name in {"Value", "Wanted"} else "left")
    for check in found:
        value = "" if check.value is None else f"{check.value:.2f}"
        wanted = f"{check.relation} {check.limit:g}" + (" (goal)" if check.goal else "")
        colour = {True: "green", False: "yellow" if check.goal else "red", None: "dim"}[check.met]
        drawn.add_row(check.what, value, wanted, f"[{colour}]{verdict(check)}[/]")
    return drawn


if __name__ == "__main__":
    rows = json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else RESULTS).read_text())
    Console().print(table(checks(Results(rows))))
