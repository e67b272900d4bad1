"""A circuit breaker: a dependency that keeps failing is left alone for a while, and then asked by one call alone.

The pattern is Michael Nygard's (Release It!, 2007). Without it every call would wait for its own timeout.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from services.runtime.errors import UnavailableError

_log = structlog.get_logger()


class BusyError(UnavailableError):
    """The dependency answered that it takes no more for now: it is well."""


class Breaker:
    """Guards the calls to one dependency; for one event loop."""

    def __init__(
        self, dependency: str, *, failures: int, pause_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Open after so many `failures` in a row, for `pause_seconds` each time."""
        self._dependency = dependency
        self._limit = failures
        self._pause = pause_seconds
        self._clock = clock
        self._failures = 0
        self._open_until = 0.0
        self._probing = False

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Make one call in it; UnavailableError counts as its failure, anything else does not.

        Raises UnavailableError without making the call while the breaker is open.
        """
        probe = self._failures >= self._limit
        if probe:
            left = self._open_until - self._clock()
            if left > 0 or self._probing:
                raise UnavailableError(self._dependency, retry_after_seconds=max(left, 0.5))
        self._probing = probe
        try:
            yield
        except BusyError:
            self._succeeded()
            raise
        except UnavailableError:
            self._failed()
            raise
        except Exception:
            # It answered, if not what was hoped for.
            self._succeeded()
            raise
        else:
            self._succeeded()
        finally:
            # A call that was cancelled tells nothing: the next one probes.
            if probe:
                self._probing = False

    def _succeeded(self) -> None:
        if self._failures >= self._limit:
            _log.info("circuit_closed", dependency=self._dependency)
        self._failures = 0

    def _failed(self) -> None:
        self._failures += 1
        if self._failures >= self._limit:
            self._open_until = self._clock() + self._pause
            _log.warning("circuit_open", dependency=self._dependency, seconds=self._pause)
