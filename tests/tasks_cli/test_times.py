"""Times and spans as people type them."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from cli.tasks.times import NoTimeError, local_zone, read_span, read_time

_NOW = datetime(2031, 3, 29, 22, 30, tzinfo=UTC)
_BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2031-05-01 09:00", "2031-05-01T07:00+00:00"),
        ("2031-05-01T09:00:30", "2031-05-01T07:00:30+00:00"),
        ("2031-05-01", "2031-05-01T07:00+00:00"),
        ("2031-05-01T09:00Z", "2031-05-01T09:00+00:00"),
        ("2031-05-01T09:00+09:00", "2031-05-01T00:00+00:00"),
        ("today 17:30", "2031-03-29T16:30+00:00"),
        ("Tomorrow 9am", "2031-03-30T07:00+00:00"),
        ("tomorrow", "2031-03-30T07:00+00:00"),
        ("tomorrow 12am", "2031-03-29T23:00+00:00"),
        ("tomorrow 12:15pm", "2031-03-30T10:15+00:00"),
        ("+2h", "2031-03-30T00:30+00:00"),
        ("+1d12h", "2031-03-31T10:30+00:00"),
    ],
)
def test_times(text: str, expected: str) -> None:
    """A time is read on the wall clock of the zone, also across a change of the clocks."""
    assert read_time(text, _BERLIN, _NOW) == datetime.fromisoformat(expected)


@pytest.mark.parametrize(
    "text", ["", "soon", "tomorrow noonish", "tomorrow 25:00", "tomorrow 13pm", "2031-13-01", "+", "+2", "+2 parsecs"]
)
def test_no_times(text: str) -> None:
    """What is no time is refused with an example of one."""
    with pytest.raises(NoTimeError, match="write"):
        read_time(text, _BERLIN, _NOW)


def test_spans() -> None:
    """Spans add up; what is no span is refused."""
    assert read_span("1h30m") == timedelta(minutes=90)
    assert read_span("2 w") == timedelta(weeks=2)
    for text in ("", "1", "m", "1h-5m", "1hour", "-1h"):
        with pytest.raises(NoTimeError):
            read_span(text)


def test_this_machines_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zone is that of TZ; one that is none counts as UTC."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert local_zone() == "Asia/Tokyo"
    monkeypatch.setenv("TZ", "Nowhere/Land")
    assert local_zone() == "UTC"
