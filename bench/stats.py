"""The bench's arithmetic: percentiles, rounds, and latencies counted from a schedule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Round:
    """What one system did in one round of a case."""

    seconds: float
    latencies_ms: Sequence[float]
    """One for each call that was answered well."""

    rate: float | None = None
    """How many a second, where that was measured apart from the latencies."""

    @property
    def per_second(self) -> float:
        """Calls answered in a second."""
        return len(self.latencies_ms) / self.seconds if self.rate is None else self.rate


@dataclass(frozen=True, slots=True)
class Summary:
    """Several rounds of one system in one case."""

    per_second: float
    p50_ms: float
    p99_ms: float
    spread: float
    """How far the rounds lie apart: the highest median latency minus the lowest, over the median of them."""


def percentile(samples: Sequence[float], fraction: float) -> float:
    """Give the smallest sample that at least `fraction` of all do not exceed (nearest rank). ValueError if empty."""
    if not samples:
        raise ValueError("no samples")
    rank = math.ceil(fraction * len(samples))
    return sorted(samples)[max(rank, 1) - 1]


def summarise(rounds: Sequence[Round]) -> Summary:
    """Sum rounds up: the median round's rate and median latency, but the 99th percentile of all samples together.

    A median of percentiles would hide the one round in which something stalled.
    """
    medians = [percentile(one.latencies_ms, 0.5) for one in rounds]
    middle = median(medians)
    return Summary(
        per_second=median(one.per_second for one in rounds),
        p50_ms=middle,
        p99_ms=percentile([sample for one in rounds for sample in one.latencies_ms], 0.99),
        spread=(max(medians) - min(medians)) / middle if middle else 0.0,
    )


def from_schedule(calls: Sequence[tuple[float, float]], rate: float) -> list[float]:
    """Count latencies from when each call was due, so that waiting to be sent counts too.

    `calls` are (second at which it was sent, milliseconds it took), `rate` is how many were due in a second. The
    schedule is laid so that no call was sent before it was due, which counts any delay against the system.
    """
    ordered = sorted(calls)
    interval = 1 / rate
    origin = min((sent - index * interval for index, (sent, _) in enumerate(ordered)), default=0.0)
    return [took + max(sent - (origin + index * interval), 0.0) * 1000 for index, (sent, took) in enumerate(ordered)]
