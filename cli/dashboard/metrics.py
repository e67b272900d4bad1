"""What a service's metrics page says, as far as the dashboard shows it: rates and quantiles over the last half minute.

Prometheus keeps the history; this is for a look at now, without anything else running.
"""

import re
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

WINDOW_SECONDS = 30.0
HISTORY = 60
"""Points of the little curves."""

_SAMPLE = re.compile(r"^(?P<name>[a-z_]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\]|\\.)*)"')
_OWN_CALLS = ("/gaggle.", "/lf.a2a.")
_ENDLESS = re.compile(r".*/(Watch.*|Chat|CallTool|LoadExtension|Rebuild|.*Stream.*)$")
_FAULTS = frozenset({"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS", "UNIMPLEMENTED"})

_BUCKETS = {
    "gaggle_call_seconds_bucket": "call_buckets",
    "gaggle_state_seconds_bucket": "state_buckets",
    "gaggle_event_lag_seconds_bucket": "lag_buckets",
    "gaggle_reminder_lateness_seconds_bucket": "lateness_buckets",
}
_SUMS = {
    "gaggle_events_published_total": "published",
    "gaggle_calls_in_flight": "in_flight",
    "gaggle_outbox_pending": "outbox_pending",
    "gaggle_reminders_fired_total": "reminders_fired",
    "gaggle_agent_cost_dollars_total": "cost",
    "process_cpu_seconds_total": "cpu_seconds",
}

Buckets = dict[float, float]


@dataclass
class Reading:
    """One look at a metrics page: sums since the process began."""

    at: float
    calls: float = 0
    faults: float = 0
    call_buckets: Buckets = field(default_factory=dict)
    state_buckets: Buckets = field(default_factory=dict)
    lag_buckets: Buckets = field(default_factory=dict)
    events: float = 0
    published: float = 0
    refused_events: float = 0
    in_flight: float = 0
    outbox_pending: float = 0
    reminders_fired: float = 0
    reminders_overdue: float | None = None
    lateness_buckets: Buckets = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)
    cost: float = 0
    cpu_seconds: float = 0


def read(text: str, at: float) -> Reading:
    """Reads a page in Prometheus's text format."""
    reading = Reading(at)
    for line in text.splitlines():
        if line.startswith("#") or not (found := _SAMPLE.match(line)):
            continue
        labels = dict(_LABEL.findall(found["labels"] or ""))
        _note(reading, found["name"], labels, float(found["value"]))
    return reading


def _note(reading: Reading, name: str, labels: Mapping[str, str], value: float) -> None:
    method = labels.get("method", "")
    if name in _BUCKETS and (not method or (method.startswith(_OWN_CALLS) and not _ENDLESS.match(method))):
        _add(getattr(reading, _BUCKETS[name]), labels, value)
    elif name in _SUMS:
        setattr(reading, _SUMS[name], getattr(reading, _SUMS[name]) + value)
    elif name == "gaggle_call_seconds_count" and method.startswith(_OWN_CALLS):
        reading.calls += value
        reading.faults += value if labels["code"] in _FAULTS else 0
    elif name == "gaggle_events_received_total":
        reading.events += value
        reading.refused_events += value if labels["outcome"] != "SUCCESS" else 0
    elif name == "gaggle_reminders_overdue":
        reading.reminders_overdue = value
    elif name == "gaggle_agent_tokens_total":
        reading.tokens[labels["kind"]] = reading.tokens.get(labels["kind"], 0) + value


def _add(buckets: Buckets, labels: Mapping[str, str], value: float) -> None:
    bound = float(labels["le"])
    buckets[bound] = buckets.get(bound, 0) + value


class Series:
    """The last readings of one process."""

    def __init__(self) -> None:
        self._readings: deque[Reading] = deque()
        self._rates: deque[float] = deque(maxlen=HISTORY)

    def add(self, reading: Reading) -> None:
        """Takes another reading; one that counts from nothing again is of a new process."""
        if self._readings and reading.cpu_seconds < self._readings[-1].cpu_seconds:
            self._readings.clear()
        if self._readings:
            self._rates.append(_rate(self._readings[-1], reading, reading.calls - self._readings[-1].calls))
        self._readings.append(reading)
        while len(self._readings) > 2 and self._readings[1].at < reading.at - WINDOW_SECONDS:  # noqa: PLR2004 - a pair
            self._readings.popleft()

    def shown(self) -> dict[str, Any]:
        """What the page shows of it; times in milliseconds, None where nothing happened."""
        if not self._readings:
            return {}
        first, last = self._readings[0], self._readings[-1]
        return {
            "calls_per_second": _rate(first, last, last.calls - first.calls),
            "faults_per_second": _rate(first, last, last.faults - first.faults),
            "p50_ms": _milliseconds(first.call_buckets, last.call_buckets, 0.5),
            "p99_ms": _milliseconds(first.call_buckets, last.call_buckets, 0.99),
            "state_p99_ms": _milliseconds(first.state_buckets, last.state_buckets, 0.99),
            "lag_p99_ms": _milliseconds(first.lag_buckets, last.lag_buckets, 0.99),
            "events_per_second": _rate(first, last, last.events - first.events),
            "published_per_second": _rate(first, last, last.published - first.published),
            "refused_events": last.refused_events,
            "in_flight": last.in_flight,
            "outbox_pending": last.outbox_pending,
            "cpu": _rate(first, last, last.cpu_seconds - first.cpu_seconds),
            "calls_total": last.calls,
            "rates": [round(rate, 2) for rate in self._rates],
            "reminders_fired": last.reminders_fired,
            "reminders_overdue": last.reminders_overdue,
            "lateness_p99_ms": quantile(last.lateness_buckets, 0.99),
            "tokens": last.tokens,
            "cost": last.cost,
        }


def _rate(first: Reading, last: Reading, difference: float) -> float:
    seconds = last.at - first.at
    return round(max(difference, 0) / seconds, 2) if seconds > 0 else 0.0


def _milliseconds(first: Buckets, last: Buckets, q: float) -> float | None:
    return quantile({bound: count - first.get(bound, 0) for bound, count in last.items()}, q)


def quantile(buckets: Buckets, q: float) -> float | None:
    """A quantile of a histogram in milliseconds, as Prometheus computes it: by a straight line within its bucket."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0
    if total <= 0:
        return None
    rank = q * total
    below, before = 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank:
            if bound == float("inf"):
                return round(below * 1000, 2)
            share = (rank - before) / (count - before) if count > before else 1.0
            return round((below + (bound - below) * share) * 1000, 2)
        below, before = bound, count
    return None


def now() -> float:
    """The clock of readings."""
    return time.monotonic()


def total(shown: Iterable[Mapping[str, Any]], name: str) -> float:
    """Sums one number over processes."""
    return round(sum(one.get(name) or 0 for one in shown), 2)
