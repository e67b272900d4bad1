"""Times as people say them, and spans."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from cli.task_tools.times import read_long_span, read_when
from cli.tasks.times import NoTimeError

# A Saturday evening in Berlin; the clocks go forward that night.
_NOW = datetime(2031, 3, 29, 17, 30, tzinfo=UTC)
_BERLIN = ZoneInfo("Europe/Berlin")
_NEW_YORK = ZoneInfo("America/New_York")


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("tomorrow 9am", _BERLIN, "2031-03-30T07:00+00:00"),
        ("tomorrow 9am", _NEW_YORK, "2031-03-30T13:00+00:00"),
        ("tomorrow at 9am", _BERLIN, "2031-03-30T07:00+00:00"),
        ("tomorrow at 17:30", _BERLIN, "2031-03-30T15:30+00:00"),
        ("tomorrow", _BERLIN, "2031-03-30T07:00+00:00"),
        ("Monday", _BERLIN, "2031-03-31T07:00+00:00"),
        ("next monday 10:15", _BERLIN, "2031-03-31T08:15+00:00"),
        ("friday 5pm", _BERLIN, "2031-04-04T15:00+00:00"),
        ("in 2 hours", _BERLIN, "2031-03-29T19:30+00:00"),
        ("in 30 minutes", _BERLIN, "2031-03-29T18:00+00:00"),
        ("in 3 days", _BERLIN, "2031-04-01T07:00+00:00"),
        ("1 May 2031", _BERLIN, "2031-05-01T07:00+00:00"),
        ("May 1 2031 14:00", _BERLIN, "2031-05-01T12:00+00:00"),
        ("2031-05-01 09:00", _BERLIN, "2031-05-01T07:00+00:00"),
        ("2031-05-01T09:00Z", _BERLIN, "2031-05-01T09:00+00:00"),
        ("5pm", _BERLIN, "2031-03-30T15:00+00:00"),
        # Not on any clock in Berlin that night: as the offset before the change has it.
        ("2031-03-30 02:30", _BERLIN, "2031-03-30T01:30+00:00"),
        ("tomorrow at 2:30am", _BERLIN, "2031-03-30T01:30+00:00"),
        # Twice on the clocks of that night: the first.
        ("2031-10-26 02:30", _BERLIN, "2031-10-26T00:30+00:00"),
    ],
)
def test_times_as_people_say_them(text: str, zone: ZoneInfo, expected: str) -> None:
    """A time is read on the wall clock of the user's zone, also across a change of the clocks."""
    assert read_when(text, zone, _NOW) == datetime.fromisoformat(expected)


@pytest.mark.parametrize("text", ["", "soon", "someday", "the day after never", "2031", "may", "\x00", "25 o'clock"])
def test_what_is_no_time(text: str) -> None:
    """What is no time, or names no day, is refused with an example of one."""
    with pytest.raises(NoTimeError, match=r"write|say it like"):
        read_when(text, _BERLIN, _NOW)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10m", timedelta(minutes=10)),
        ("10 minutes", timedelta(minutes=10)),
        ("2 Hours", timedelta(hours=2)),
        ("1 day 6 hours", timedelta(days=1, hours=6)),
        ("1h30m", timedelta(hours=1, minutes=30)),
        ("1 week", timedelta(weeks=1)),
    ],
)
def test_spans(text: str, expected: timedelta) -> None:
    """A span may be said in full."""
    assert read_long_span(text) == expected


@pytest.mark.parametrize("text", ["", "ten", "10 parsecs", "-1h", "h"])
def test_no_spans(text: str) -> None:
    """What is no span is refused with an example of one."""
    with pytest.raises(NoTimeError, match="10m"):
        read_long_span(text)
