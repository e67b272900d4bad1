"""When a reminder fires: elapsed time and wall clocks, over the changes of real zones."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from gaggle.reminder.v1 import reminder_pb2
from services.reminder import domain
from tests.reminder.reminding import before, local


def _calendar(days: int, time_of_day: str = "") -> reminder_pb2.ReminderTime:
    return reminder_pb2.ReminderTime(
        calendar_before_due=reminder_pb2.CalendarOffset(days=days, time_of_day=time_of_day)
    )


LOCAL = {
    "an ordinary time": ("Europe/Berlin", "2026-06-01T09:30", "2026-06-01T07:30"),
    "left out in Berlin: moves on by the hour": ("Europe/Berlin", "2026-03-29T02:30", "2026-03-29T01:30"),
    "twice in Berlin: the first": ("Europe/Berlin", "2026-10-25T02:30", "2026-10-25T00:30"),
    "left out in New York": ("America/New_York", "2026-03-08T02:30", "2026-03-08T07:30"),
    "twice in New York": ("America/New_York", "2026-11-01T01:30", "2026-11-01T05:30"),
    "half an hour left out on Lord Howe": ("Australia/Lord_Howe", "2026-10-04T02:15", "2026-10-03T15:45"),
    "twice on Lord Howe": ("Australia/Lord_Howe", "2026-04-05T01:45", "2026-04-04T14:45"),
    "midnight left out in Beirut": ("Asia/Beirut", "2026-03-29T00:30", "2026-03-28T22:30"),
    "a day that Samoa left out": ("Pacific/Apia", "2011-12-30T12:00", "2011-12-30T22:00"),
    "a quarter to in Kathmandu": ("Asia/Kathmandu", "2026-01-01T00:00", "2025-12-31T18:15"),
    "with seconds": ("UTC", "2026-01-01T00:00:59", "2026-01-01T00:00:59"),
}


@pytest.mark.parametrize(("zone", "text", "utc"), LOCAL.values(), ids=LOCAL.keys())
def test_wall_clock(zone: str, text: str, utc: str) -> None:
    """A time that a change leaves out moves on by what was left out, one that comes twice is the first."""
    expected = datetime.fromisoformat(utc).replace(tzinfo=UTC)
    assert domain.remind_at(local(text), None, zone) == expected


BEFORE = {
    # Berlin's clocks go forward at 2026-03-29T01:00Z, from 02:00 to 03:00; back at 2026-10-25T01:00Z.
    "24 hours over spring": (before(86_400), "2026-03-29T10:00", "2026-03-28T10:00"),
    "a day over spring": (_calendar(1), "2026-03-29T10:00", "2026-03-28T11:00"),
    "24 hours over autumn": (before(86_400), "2026-10-25T10:00", "2026-10-24T10:00"),
    "a day over autumn": (_calendar(1), "2026-10-25T10:00", "2026-10-24T09:00"),
    "a day before, at nine": (_calendar(1, "09:00"), "2026-03-30T10:00", "2026-03-29T07:00"),
    "into the gap": (_calendar(1, "02:30"), "2026-03-30T10:00", "2026-03-29T01:30"),
    "due at 02:30, the day before has none": (_calendar(1), "2026-03-30T00:30", "2026-03-29T01:30"),
    "into the overlap": (_calendar(1, "02:30"), "2026-10-26T10:00", "2026-10-25T00:30"),
    "the same day": (_calendar(0, "08:00"), "2026-07-01T10:00", "2026-07-01T06:00"),
    "when it is due": (before(0), "2026-07-01T10:00", "2026-07-01T10:00"),
}


@pytest.mark.parametrize(("when", "due", "utc"), BEFORE.values(), ids=BEFORE.keys())
def test_before_due(when: reminder_pb2.ReminderTime, due: str, utc: str) -> None:
    """24 hours are 24 hours; a day is the same time of the wall clock, a day earlier."""
    due_at = datetime.fromisoformat(due).replace(tzinfo=UTC)
    expected = datetime.fromisoformat(utc).replace(tzinfo=UTC)
    assert domain.remind_at(when, due_at, "Europe/Berlin") == expected


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"])
def test_each_day_once(zone: str) -> None:
    """Over a year of days at 02:30 no reminder is skipped, doubled or out of order, whatever the clocks do."""
    days = [datetime(2026, 1, 1, 2, 30) + timedelta(days=number) for number in range(365)]  # noqa: DTZ001 - a wall clock
    times = [domain.remind_at(local(f"{day:%Y-%m-%dT%H:%M}"), None, zone) for day in days]
    assert None not in times
    gaps = {(later - earlier) for earlier, later in pairwise(times) if earlier and later}
    assert all(timedelta(hours=22) < gap < timedelta(hours=26) for gap in gaps)
    assert len(set(times)) == len(times)


def test_no_due_time() -> None:
    """Relative to nothing there is no time."""
    assert domain.remind_at(before(60), None, "UTC") is None
    assert domain.remind_at(_calendar(1), None, "UTC") is None
