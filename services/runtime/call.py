"""The call being served, as far as the layers below need to know of it: its deadline and its trace."""

import time
from contextvars import ContextVar

from services.runtime.errors import DeadlineError
from services.runtime.telemetry import current_trace

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def set_deadline(seconds: float | None) -> None:
    """Bound the current call; set by the call pipeline."""
    _deadline.set(None if seconds is None else time.monotonic() + seconds)


def remaining_seconds(at_most: float) -> float:
    """Give the time left for a call further down, never more than `at_most`. Raises DeadlineError."""
    deadline = _deadline.get()
    if deadline is None:
        return at_most
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineError("this call")
    return min(left, at_most)


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """Give the metadata that joins a call further down to the current trace."""
    trace = current_trace.get()
    return (("traceparent", trace.traceparent),) if trace is not None else ()
