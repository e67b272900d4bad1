"""Latencies: taken one call after the other, told as median and 99th percentile."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import ceil

_WARM_UP = 20


@dataclass(frozen=True)
class Latencies:
    """Of calls made one after the other, in milliseconds, ascending."""

    milliseconds: tuple[float, ...]

    @classmethod
    def of(cls, milliseconds: list[float]) -> "Latencies":
        """Sorts them."""
        return cls(tuple(sorted(milliseconds)))

    def percentile(self, percent: float) -> float:
        """The smallest that so many percent do not exceed."""
        return self.milliseconds[max(ceil(len(self.milliseconds) * percent / 100) - 1, 0)]

    @property
    def median(self) -> float:
        """The 50th percentile."""
        return self.percentile(50)

    @property
    def per_second(self) -> float:
        """How many one caller makes in a second."""
        return 1000 * len(self.milliseconds) / sum(self.milliseconds)


async def measure(call: Callable[[], Awaitable[object]], times: int) -> Latencies:
    """Makes the call so often, after some that are not counted."""
    for _ in range(min(_WARM_UP, times)):
        await call()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - began) * 1000)
    return Latencies.of(taken)
