"""The bench's arithmetic."""

import pytest

from bench.stats import Round, from_schedule, percentile, summarise


@pytest.mark.parametrize(
    ("samples", "fraction", "expected"),
    [
        pytest.param([3.0], 0.99, 3.0, id="one sample is every percentile"),
        pytest.param([4.0, 1.0, 3.0, 2.0], 0.5, 2.0, id="the lower of two middles"),
        pytest.param([5.0, 1.0, 3.0], 0.5, 3.0, id="the middle, whatever the order"),
        pytest.param([float(n) for n in range(1, 101)], 0.99, 99.0, id="one in a hundred is above"),
        pytest.param([float(n) for n in range(1, 11)], 0.99, 10.0, id="too few for a hundredth: the highest"),
        pytest.param([1.0, 2.0], 0.0, 1.0, id="none is below: the lowest"),
    ],
)
def test_percentile(samples: list[float], fraction: float, expected: float) -> None:
    """A percentile is a sample that was measured, by nearest rank."""
    assert percentile(samples, fraction) == expected


def test_no_samples_have_no_percentile() -> None:
    """A system that never answered gets no number."""
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)


def test_rounds_are_summed_up_by_their_median() -> None:
    """One slow round moves neither rate nor median, but it shows in the 99th percentile and in the spread."""
    quick, slow = Round(1.0, [1.0] * 100), Round(2.0, [3.0] * 100)
    summary = summarise([quick, slow, quick])
    assert summary.per_second == 100
    assert summary.p50_ms == 1.0
    assert summary.p99_ms == 3.0
    assert summary.spread == 2.0


def test_calls_on_schedule_keep_their_latencies() -> None:
    """Who is sent when it is due waits for nothing but its answer."""
    calls = [(10.0 + index / 100, 5.0) for index in range(50)]
    assert from_schedule(calls, 100) == pytest.approx([5.0] * 50)


def test_waiting_to_be_sent_counts() -> None:
    """Where the client falls behind, every delayed call is late by as much as it was delayed."""
    # Due every 100 ms; the second one held the others up by 300 ms.
    calls = [(0.0, 10.0), (0.1, 10.0), (0.5, 10.0), (0.5, 10.0), (0.5, 10.0)]
    assert from_schedule(calls, 10) == pytest.approx([10.0, 10.0, 310.0, 210.0, 110.0])


def test_answers_out_of_order_change_nothing() -> None:
    """Calls are told by when they were sent, not by when they were answered."""
    calls = [(0.2, 1.0), (0.0, 250.0), (0.1, 1.0)]
    assert from_schedule(calls, 10) == pytest.approx([250.0, 1.0, 1.0])


def test_an_early_start_does_not_hide_what_comes_late() -> None:
    """The schedule begins where no call was sent before it was due."""
    # The first was sent 50 ms after the schedule that the other three kept.
    calls = [(0.05, 1.0), (0.1, 1.0), (0.2, 1.0), (0.3, 1.0)]
    assert from_schedule(calls, 10) == pytest.approx([51.0, 1.0, 1.0, 1.0])
