"""The circuit breaker, by a clock of the test's own."""

import asyncio

import pytest

from services.auth.breaker import Breaker, BusyError
from services.runtime.errors import UnauthenticatedError, UnavailableError


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    """Time stands still until the test moves it."""
    return _Clock()


@pytest.fixture
def breaker(clock: _Clock) -> Breaker:
    """Opens after three failures, for five seconds."""
    return Breaker("sessions", failures=3, pause_seconds=5, clock=clock)


def _call(breaker: Breaker, error: BaseException | None = None) -> None:
    with breaker.guard():
        if error is not None:
            raise error


def _fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        with pytest.raises(UnavailableError):
            _call(breaker, UnavailableError("sessions"))


def test_a_dependency_that_fails_is_left_alone(breaker: Breaker, clock: _Clock) -> None:
    """After so many failures in a row no call is made for a while, and callers hear when to come back."""
    _fail(breaker, 3)
    clock.now += 2
    made = False
    with pytest.raises(UnavailableError) as caught, breaker.guard():
        made = True
    assert (made, caught.value.retry_after_seconds) == (False, 3)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(None, id="an answer"),
        pytest.param(UnauthenticatedError("no"), id="a refusal"),
        pytest.param(BusyError("sessions"), id="too many at once"),
    ],
)
def test_only_failures_in_a_row_count(breaker: Breaker, answer: Exception | None) -> None:
    """Whoever answers is well, whatever the answer: a refused session does not cut off the others."""
    for _ in range(3):
        _fail(breaker, 2)
        if answer is None:
            _call(breaker)
        else:
            with pytest.raises(type(answer)):
                _call(breaker, answer)
    _call(breaker)


def test_one_call_tries_whether_it_is_back(breaker: Breaker, clock: _Clock) -> None:
    """When the pause is over one call goes through and the others wait for what it brings."""
    _fail(breaker, 3)
    clock.now += 5
    with breaker.guard(), pytest.raises(UnavailableError):
        _call(breaker)
    _call(breaker)


def test_a_failed_try_begins_another_pause(breaker: Breaker, clock: _Clock) -> None:
    """A dependency that is still away is left alone again, at once."""
    _fail(breaker, 3)
    clock.now += 5
    _fail(breaker, 1)
    clock.now += 4.9
    with pytest.raises(UnavailableError) as caught:
        _call(breaker)
    assert caught.value.retry_after_seconds == 0.5


def test_a_try_that_was_cancelled_tells_nothing(breaker: Breaker, clock: _Clock) -> None:
    """A probe whose caller left holds nobody up: the next call is the probe."""
    _fail(breaker, 3)
    clock.now += 5
    with pytest.raises(asyncio.CancelledError):
        _call(breaker, asyncio.CancelledError())
    _call(breaker)
