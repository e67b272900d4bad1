"""Recurrence rules: what they name, on the wall clocks of real zones."""

import calendar
import itertools
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from dateutil.rrule import rrulestr
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runtime.recurrence import (
    Occurrence,
    RuleError,
    check_yields,
    next_occurrence,
    occurrences,
    parse_rule,
)

_UTC = ZoneInfo("UTC")
_BERLIN = "Europe/Berlin"


def _local(rule: str, start: str, zone: str, count: int) -> list[str]:
    """The first occurrences as local times with their offsets; `start` is local."""
    place = ZoneInfo(zone)
    first = datetime.fromisoformat(start).replace(tzinfo=place)
    found = itertools.islice(occurrences(parse_rule(rule), first, place), count)
    return [one.time.astimezone(place).isoformat(timespec="minutes") for one in found]


@pytest.mark.parametrize(
    ("rule", "zone", "expected"),
    [
        pytest.param(
            "FREQ=MONTHLY;BYMONTHDAY=-1",
            _BERLIN,
            ["2026-01-31T09:00+01:00", "2026-02-28T09:00+01:00", "2026-03-31T09:00+02:00", "2026-04-30T09:00+02:00"],
            id="last day of the month",
        ),
        pytest.param(
            "FREQ=MONTHLY;BYDAY=3MO",
            "America/New_York",
            ["2026-01-19T09:00-05:00", "2026-02-16T09:00-05:00", "2026-03-16T09:00-04:00", "2026-04-20T09:00-04:00"],
            id="third Monday",
        ),
        pytest.param(
            "FREQ=MONTHLY",
            "UTC",
            ["2026-01-31T09:00+00:00", "2026-03-31T09:00+00:00", "2026-05-31T09:00+00:00"],
            id="the 31st leaves months without one out",
        ),
        pytest.param(
            "FREQ=DAILY",
            _BERLIN,
            ["2026-03-28T02:30+01:00", "2026-03-29T03:30+02:00", "2026-03-30T02:30+02:00"],
            id="an hour that is skipped",
        ),
        pytest.param(
            "FREQ=DAILY",
            "America/New_York",
            ["2026-10-31T01:30-04:00", "2026-11-01T01:30-04:00", "2026-11-02T01:30-05:00"],
            id="an hour that comes twice",
        ),
        pytest.param(
            "FREQ=DAILY",
            "Australia/Lord_Howe",
            ["2026-10-03T02:15+10:30", "2026-10-04T02:45+11:00", "2026-10-05T02:15+11:00"],
            id="half an hour is skipped",
        ),
        pytest.param(
            "FREQ=DAILY",
            "Pacific/Apia",
            ["2011-12-29T09:00-10:00", "2011-12-31T09:00+14:00", "2012-01-01T09:00+14:00"],
            id="a day that never was",
        ),
        pytest.param(
            "FREQ=DAILY;BYHOUR=2,3;BYMINUTE=30",
            _BERLIN,
            ["2026-03-28T03:30+01:00", "2026-03-29T03:30+02:00", "2026-03-30T02:30+02:00"],
            id="two times that fall together are one",
        ),
        pytest.param(
            "FREQ=YEARLY",
            "Asia/Kathmandu",
            ["2024-02-29T09:00+05:45", "2028-02-29T09:00+05:45", "2032-02-29T09:00+05:45"],
            id="29 February",
        ),
        pytest.param(
            "FREQ=WEEKLY;INTERVAL=2;BYDAY=TU,SU;WKST=SU",
            "UTC",
            ["1997-08-05T09:00+00:00", "1997-08-17T09:00+00:00", "1997-08-19T09:00+00:00", "1997-08-31T09:00+00:00"],
            id="the RFC's example of WKST",
        ),
        pytest.param(
            "FREQ=MONTHLY;BYDAY=FR;BYMONTHDAY=13",
            "UTC",
            ["1998-02-13T09:00+00:00", "1998-03-13T09:00+00:00", "1998-11-13T09:00+00:00", "1999-08-13T09:00+00:00"],
            id="Friday the 13th",
        ),
        pytest.param(
            "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1;COUNT=3",
            "UTC",
            ["2026-01-30T09:00+00:00", "2026-02-27T09:00+00:00", "2026-03-31T09:00+00:00"],
            id="last working day, three times",
        ),
        pytest.param(
            "FREQ=WEEKLY;UNTIL=20260117",
            "Asia/Tokyo",
            ["2026-01-03T09:00+09:00", "2026-01-10T09:00+09:00", "2026-01-17T09:00+09:00"],
            id="until a day, which counts",
        ),
        pytest.param(
            "FREQ=WEEKLY;UNTIL=20260116T235959Z",
            "Asia/Tokyo",
            ["2026-01-03T09:00+09:00", "2026-01-10T09:00+09:00"],
            id="until a moment",
        ),
        pytest.param(
            "freq=daily;count=2", "UTC", ["2026-01-01T09:00+00:00", "2026-01-02T09:00+00:00"], id="small letters"
        ),
        pytest.param(
            "FREQ=WEEKLY;BYDAY=MO;COUNT=2",
            "UTC",
            ["2026-01-01T09:00+00:00", "2026-01-05T09:00+00:00"],
            id="the start counts, though it is no Monday",
        ),
    ],
)
def test_what_a_rule_names(rule: str, zone: str, expected: list[str]) -> None:
    """A rule names the times that RFC 5545 gives it, on the wall clock of its zone."""
    ends = "COUNT" in rule.upper() or "UNTIL" in rule
    start = expected[0][:16]
    assert _local(rule, start, zone, len(expected) + ends) == expected


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        pytest.param("", "RFC 5545", id="empty"),
        pytest.param("RRULE:FREQ=DAILY", "FREQ", id="with its name"),
        pytest.param("every day", "RFC 5545", id="words"),
        pytest.param("FREQ=SECONDLY", "FREQ", id="every second"),
        pytest.param("FREQ=HOURLY", "FREQ", id="every hour"),
        pytest.param("INTERVAL=2", "FREQ", id="no frequency"),
        pytest.param("FREQ=DAILY;FREQ=WEEKLY", "twice", id="twice"),
        pytest.param("FREQ=DAILY;INTERVAL=0", "INTERVAL", id="interval 0"),
        pytest.param("FREQ=DAILY;INTERVAL=-1", "INTERVAL", id="negative interval"),
        pytest.param("FREQ=DAILY;INTERVAL=99999999999", "INTERVAL", id="huge interval"),
        pytest.param("FREQ=DAILY;INTERVAL=²", "INTERVAL", id="a digit that is none"),
        pytest.param("FREQ=DAILY;COUNT=0", "COUNT", id="count 0"),
        pytest.param("FREQ=DAILY;COUNT=2;UNTIL=20260101", "exclude", id="two ends"),
        pytest.param("FREQ=DAILY;UNTIL=20261332", "UNTIL", id="no such day"),
        pytest.param("FREQ=DAILY;UNTIL=tomorrow", "UNTIL", id="no date"),
        pytest.param("FREQ=MONTHLY;BYMONTHDAY=32", "BYMONTHDAY", id="day 32"),
        pytest.param("FREQ=MONTHLY;BYMONTHDAY=0", "BYMONTHDAY", id="day 0"),
        pytest.param("FREQ=WEEKLY;BYMONTHDAY=1", "BYMONTHDAY", id="a day of the month in weeks"),
        pytest.param("FREQ=MONTHLY;BYYEARDAY=1", "BYYEARDAY", id="a day of the year in months"),
        pytest.param("FREQ=MONTHLY;BYWEEKNO=1", "BYWEEKNO", id="a week in months"),
        pytest.param("FREQ=YEARLY;BYMONTH=13", "BYMONTH", id="month 13"),
        pytest.param("FREQ=YEARLY;BYMONTH=-1", "BYMONTH", id="last month"),
        pytest.param("FREQ=WEEKLY;BYDAY=1MO", "BYDAY", id="first Monday of a week"),
        pytest.param("FREQ=MONTHLY;BYDAY=0MO", "BYDAY", id="Monday number 0"),
        pytest.param("FREQ=MONTHLY;BYDAY=6MO", "1 to 5 in a month", id="sixth Monday of a month"),
        pytest.param("FREQ=YEARLY;BYMONTH=12;BYDAY=-53SU", "1 to 5 in a month", id="53rd Sunday of a month"),
        pytest.param("FREQ=YEARLY;BYDAY=54SU", "1 to 53", id="54th Sunday of a year"),
        pytest.param("FREQ=WEEKLY;BYDAY=XX", "BYDAY", id="no day"),
        pytest.param("FREQ=DAILY;BYHOUR=24", "BYHOUR", id="hour 24"),
        pytest.param("FREQ=DAILY;BYSECOND=1", "BYSECOND", id="seconds"),
        pytest.param("FREQ=YEARLY;BYEASTER=1", "BYEASTER", id="not of the RFC"),
        pytest.param("FREQ=DAILY;BYSETPOS=1", "BYSETPOS", id="a position in nothing"),
        pytest.param("FREQ=DAILY;BYMINUTE=" + ",".join(map(str, range(60))), "24 times", id="every minute"),
        pytest.param("FREQ=DAILY;WKST=1", "WKST", id="no day to begin with"),
        pytest.param("FREQ=DAILY;" + "X" * 600, "bytes", id="too long"),
        pytest.param("FREQ=DAILY\nDTSTART:20260101T000000", "FREQ", id="a second line"),
    ],
)
def test_what_is_no_rule(rule: str, word: str) -> None:
    """What is no rule, or none that is taken, is refused with the part that is wrong."""
    with pytest.raises(RuleError, match=word):
        parse_rule(rule)


@pytest.mark.parametrize(
    "rule",
    ["FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=31", "FREQ=YEARLY;BYWEEKNO=53;BYMONTH=7"],
)
def test_a_rule_that_never_comes_true(rule: str) -> None:
    """A rule that names no day of any year is found out, and does not keep a thread for long."""
    with pytest.raises(RuleError, match="no time"):
        check_yields(parse_rule(rule), datetime(2026, 1, 1, tzinfo=UTC), _UTC)
    check_yields(parse_rule("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29"), datetime(2026, 1, 1, tzinfo=UTC), _UTC)


_DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_starts = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)).map(lambda one: one.replace(microsecond=0))  # noqa: DTZ001


@given(
    start=_starts,
    days=st.lists(st.sampled_from([*range(-31, 0), *range(1, 32)]), min_size=1, max_size=3, unique=True),
    weekdays=st.lists(st.sampled_from(range(7)), max_size=3, unique=True),
    months=st.lists(st.sampled_from(range(1, 13)), max_size=3, unique=True),
)
def test_against_a_calendar_read_day_by_day(
    start: datetime, days: list[int], weekdays: list[int], months: list[int]
) -> None:
    """Whatever days of month, days of week and months a rule combines, it names those that a calendar shows."""
    rule = "FREQ=MONTHLY;BYMONTHDAY=" + ",".join(map(str, days))
    rule += ";BYDAY=" + ",".join(_DAYS[one] for one in weekdays) if weekdays else ""
    rule += ";BYMONTH=" + ",".join(map(str, months)) if months else ""

    def named(one: date) -> bool:
        last = calendar.monthrange(one.year, one.month)[1]
        return (
            any(one.day == (day if day > 0 else last + 1 + day) for day in days)
            and (not weekdays or one.weekday() in weekdays)
            and (not months or one.month in months)
        )

    end = start + timedelta(days=900)
    expected = [start] + [
        moment for number in range(1, 901) if named((moment := start + timedelta(days=number)).date())
    ]
    found = occurrences(parse_rule(rule), start.replace(tzinfo=UTC), _UTC)
    times = [one.time.replace(tzinfo=None) for one in itertools.takewhile(lambda one: _naive(one) <= end, found)]
    assert times == expected


def _naive(one: Occurrence) -> datetime:
    return one.time.replace(tzinfo=None)


_rules = st.builds(
    lambda frequency, interval, parts, wkst: ";".join(
        [f"FREQ={frequency}", f"INTERVAL={interval}", *parts.get(frequency, []), f"WKST={wkst}"]
    ),
    st.sampled_from(["DAILY", "WEEKLY", "MONTHLY", "YEARLY"]),
    st.integers(1, 5),
    st.fixed_dictionaries(
        {
            "DAILY": st.sampled_from([[], ["BYDAY=MO,FR"], ["BYHOUR=7,19"]]),
            "WEEKLY": st.sampled_from([[], ["BYDAY=MO,SA"], ["BYDAY=TU,TH,SU", "BYSETPOS=-1"]]),
            "MONTHLY": st.sampled_from([[], ["BYDAY=3MO"], ["BYDAY=-1FR"], ["BYMONTHDAY=-1"]]),
            "YEARLY": st.sampled_from([[], ["BYWEEKNO=1", "BYDAY=MO"], ["BYYEARDAY=-1"], ["BYMONTH=2", "BYDAY=2TU"]]),
        }
    ),
    st.sampled_from(_DAYS),
)


@given(rule=_rules, start=_starts)
@settings(max_examples=150)
def test_nineteen_cycles_later_it_is_the_same(rule: str, start: datetime) -> None:
    """Computing 7,600 years later changes nothing: the times are those that dateutil gives for the year itself."""
    expected = [start, *itertools.islice((one for one in rrulestr(rule, dtstart=start) if one > start), 12)]
    found = itertools.islice(occurrences(parse_rule(rule), start.replace(tzinfo=UTC), _UTC), 13)
    assert [_naive(one) for one in found] == expected


@given(
    rule=_rules,
    start=_starts,
    zone=st.sampled_from([_BERLIN, "America/Sao_Paulo", "Australia/Lord_Howe", "Asia/Tehran", "UTC"]),
    at=st.integers(0, 6),
    late=st.timedeltas(timedelta(0), timedelta(days=400)),
    count=st.one_of(st.none(), st.integers(1, 12)),
)
@settings(max_examples=150)
def test_the_next_one(rule: str, start: datetime, zone: str, at: int, late: timedelta, count: int | None) -> None:
    """The next occurrence is the following one of the series; with a time it must not miss, the first one after it."""
    place = ZoneInfo(zone)
    first = start.replace(tzinfo=place)
    read = parse_rule(rule + (f";COUNT={count}" if count else ""))
    series = list(itertools.islice(occurrences(read, first, place), 450))
    assert [one.number for one in series] == list(range(1, len(series) + 1))
    assert all(one.time < other.time for one, other in itertools.pairwise(series))
    current = series[min(at, len(series) - 1)]
    after = series[current.number : current.number + 1]
    assert next_occurrence(read, first, place, current) == (after[0] if after else None)
    now = current.time + late
    left = [one for one in series[current.number :] if one.time > now]
    if left or len(series) < 450:
        assert next_occurrence(read, first, place, current, not_before=now) == (left[0] if left else None)


def test_a_series_that_was_moved_goes_on_counting() -> None:
    """A series with three left that is moved to another hour has three left, from the moved one on."""
    moved = Occurrence(3, datetime(2026, 1, 3, 17, tzinfo=UTC))
    rule = parse_rule("FREQ=DAILY;COUNT=5")
    fourth = next_occurrence(rule, moved.time, _UTC, moved)
    assert fourth == Occurrence(4, datetime(2026, 1, 4, 17, tzinfo=UTC))
    fifth = next_occurrence(rule, moved.time, _UTC, fourth)
    assert fifth is not None
    assert next_occurrence(rule, moved.time, _UTC, fifth) is None


@given(text=st.one_of(st.text(max_size=60), st.lists(st.sampled_from(
    ["FREQ=DAILY", "FREQ=YEARLY", "FREQ=MONTHLY", "BYDAY=", "BYDAY=53SU", "BYDAY=-53MO", "BYDAY=-5MO",
     "BYMONTHDAY=29,30", "BYMONTH=2", "COUNT=1e3",
     "BYWEEKNO=53", "BYWEEKNO=-53", "BYYEARDAY=366", "UNTIL=20260101T000000", "BYHOUR=0,23", "BYSETPOS=366", "=", "a=b",
     "INTERVAL=1000"]), max_size=5).map(";".join)))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_no_text_does_harm(text: str) -> None:
    """Any text is a rule or is refused, and a rule gives ascending times."""
    try:
        rule = parse_rule(text)
    except RuleError:
        return
    found = list(itertools.islice(occurrences(rule, datetime(2026, 5, 1, tzinfo=UTC), _UTC), 4))
    assert found == sorted(found, key=lambda one: one.time)
    assert found
