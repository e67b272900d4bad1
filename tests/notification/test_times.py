"""When what leaves the mesh may leave, on the wall clocks of real zones."""

from datetime import UTC, datetime, timedelta

import pytest

from gaggle.notification.v1 import notification_pb2
from services.notification import domain
from services.notification.domain import EMAIL, WEBHOOK, Preferences

_DUE = notification_pb2.NOTIFICATION_KIND_REMINDER_DUE
_FAILED = notification_pb2.NOTIFICATION_KIND_RECIPE_FAILED


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _quiet(start: str, end: str, zone: str = "Europe/Berlin") -> Preferences:
    return Preferences(quiet_hours=notification_pb2.QuietHours(start=start, end=end), time_zone=zone)


# Hours, now, and until when it is quiet; all moments in UTC. Berlin's clocks went from 02:00 to 03:00 on 2026-03-29 at
# 01:00 UTC, and from 03:00 to 02:00 on 2026-10-25 at 01:00 UTC. Lord Howe's moves by half an hour.
QUIET = {
    "before": (_quiet("22:00", "07:00"), "2026-01-10T20:59:59", None),
    "begins": (_quiet("22:00", "07:00"), "2026-01-10T21:00", "2026-01-11T06:00"),
    "after-midnight": (_quiet("22:00", "07:00"), "2026-01-11T05:59:59", "2026-01-11T06:00"),
    "ends": (_quiet("22:00", "07:00"), "2026-01-11T06:00", None),
    "within-a-day": (_quiet("12:00", "13:30", "UTC"), "2026-01-11T12:30", "2026-01-11T13:30"),
    "same": (_quiet("12:00", "12:00", "UTC"), "2026-01-11T12:00", None),
    "none": (Preferences(), "2026-01-11T12:00", None),
    "spring-shorter": (_quiet("22:00", "07:00"), "2026-03-28T21:30", "2026-03-29T05:00"),
    "spring-end-left-out": (_quiet("22:00", "02:30"), "2026-03-29T00:59:59", "2026-03-29T01:30"),
    "spring-end-left-out-over": (_quiet("22:00", "02:30"), "2026-03-29T01:30", None),
    "spring-start-left-out": (_quiet("02:30", "07:00"), "2026-03-29T01:29:59", None),
    "spring-start-left-out-in": (_quiet("02:30", "07:00"), "2026-03-29T01:30", "2026-03-29T05:00"),
    "autumn-longer": (_quiet("22:00", "07:00"), "2026-10-24T20:00", "2026-10-25T06:00"),
    "autumn-end-twice": (_quiet("22:00", "02:30"), "2026-10-25T00:29:59", "2026-10-25T00:30"),
    "autumn-end-twice-not-again": (_quiet("22:00", "02:30"), "2026-10-25T01:15", None),
    "autumn-start-twice": (_quiet("02:30", "07:00"), "2026-10-25T00:30", "2026-10-25T06:00"),
    "autumn-start-twice-still": (_quiet("02:30", "07:00"), "2026-10-25T01:05", "2026-10-25T06:00"),
    "lord-howe": (_quiet("22:00", "02:15", "Australia/Lord_Howe"), "2026-10-03T15:29", "2026-10-03T15:45"),
}


@pytest.mark.parametrize(("preferences", "now", "until"), QUIET.values(), ids=QUIET)
def test_quiet_hours(preferences: Preferences, now: str, until: str | None) -> None:
    """Quiet hours are spans on the wall clock, each with one beginning and one end, whatever the clocks do."""
    assert domain.quiet_until(preferences, _DUE, _at(now)) == (None if until is None else _at(until))


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca"])
def test_quiet_hours_end_for_everybody(zone: str) -> None:
    """At no moment of a year do quiet hours last longer than they may, and at their end they are over."""
    preferences = _quiet("22:00", "02:30", zone)
    now = _at("2026-01-01T00:00")
    quiet = timedelta()
    for _ in range(365 * 48):
        until = domain.quiet_until(preferences, _DUE, now)
        if until is not None:
            quiet += timedelta(minutes=30)
            assert timedelta() < until - now <= timedelta(hours=5, minutes=30)
            assert domain.quiet_until(preferences, _DUE, until) is None
        now += timedelta(minutes=30)
    assert abs(quiet - timedelta(hours=4.5 * 365)) < timedelta(hours=6)


def test_exempt_kinds_are_not_held_back() -> None:
    """A kind that quiet hours do not concern leaves at once; others wait."""
    preferences = _quiet("22:00", "07:00", "UTC")
    preferences.quiet_hours.exempt_kinds.append(_FAILED)
    now = _at("2026-01-01T23:00")
    assert domain.due_time(preferences, _FAILED, WEBHOOK, now) == (now, False)
    assert domain.due_time(preferences, _DUE, WEBHOOK, now) == (_at("2026-01-02T07:00"), False)


# Times of the digest, now, when it leaves.
DIGEST = {
    "today": (["08:00"], "2026-01-10T06:59", "2026-01-10T07:00"),
    "just-gone": (["08:00"], "2026-01-10T07:00", "2026-01-11T07:00"),
    "next-of-several": (["18:00", "08:00"], "2026-01-10T12:00", "2026-01-10T17:00"),
    "left-out": (["02:30"], "2026-03-29T00:00", "2026-03-29T01:30"),
    "twice-first": (["02:30"], "2026-10-25T00:00", "2026-10-25T00:30"),
    "twice-not-again": (["02:30"], "2026-10-25T00:30", "2026-10-26T01:30"),
}


@pytest.mark.parametrize(("times", "now", "leaves"), DIGEST.values(), ids=DIGEST)
def test_digest(times: list[str], now: str, leaves: str) -> None:
    """A digest leaves once at each of its times of each day."""
    preferences = Preferences(time_zone="Europe/Berlin", digest=notification_pb2.Digest(times_of_day=times))
    assert domain.due_time(preferences, _DUE, EMAIL, _at(now)) == (_at(leaves), True)
    assert domain.due_time(preferences, _DUE, WEBHOOK, _at(now)) == (_at(now), False)


def test_a_digest_within_quiet_hours_waits_for_their_end() -> None:
    """Quiet hours hold for the digest too."""
    preferences = _quiet("22:00", "07:00", "UTC")
    preferences.digest.times_of_day.append("06:00")
    assert domain.due_time(preferences, _DUE, EMAIL, _at("2026-01-01T12:00")) == (_at("2026-01-02T07:00"), True)


def test_pauses_grow_to_a_limit() -> None:
    """Pauses double, with at most a quarter more, and stay at the longest."""
    for attempts, seconds in ((1, 5), (2, 10), (5, 80), (9, 900), (10_000, 900)):
        pause = domain.pause(attempts, 5, 900).total_seconds()
        assert seconds <= pause <= seconds * 1.25
