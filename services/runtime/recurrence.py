"""Recurrence rules of RFC 5545, by python-dateutil, on the wall clock of a zone.

dateutil works on naive local times; the zone comes in afterwards. By the RFC (3.3.5) a local time that a change of the
clock skips is read with the offset before the change, so that 02:30 becomes 03:30, and one that comes twice is the
first of the two: what Python's `fold=0` gives.

A rule may name days that never come (30 February), and dateutil would look for them up to the year 9999. The Gregorian
calendar repeats itself, weekdays and weeks of the year included, every 400 years; so all of it is computed 7,600 years
later, where that end is near: a search takes 0.4 s at worst (every day, none fits), and whoever calls does it in a
thread.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

from dateutil.rrule import rrulestr

MAX_RULE_BYTES = 512
MAX_TIMES_A_DAY = 24
MAX_OCCURRENCES = 200_000
"""A series ends here; so does a search in it."""

_CYCLES_YEARS = 7_600
_FREQUENCIES = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")
_DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_NUMBER = re.compile(r"[+-]?[0-9]{1,4}")
_DAY = re.compile(r"([+-]?[0-9]{1,2})?(MO|TU|WE|TH|FR|SA|SU)")
_UNTIL = re.compile(r"([0-9]{8})(T[0-9]{6}Z?)?")
_WEEKS_A_MONTH = 5
"""dateutil looks for a sixth beyond the year's end, and fails."""

_WEEKS_A_YEAR = 53
_MOST = {"INTERVAL": 1_000, "COUNT": 100_000}
_LISTS = {
    # Lowest and highest magnitude, and whether counting from the end (negative) is allowed.
    "BYMONTH": (1, 12, False),
    "BYMONTHDAY": (1, 31, True),
    "BYYEARDAY": (1, 366, True),
    "BYWEEKNO": (1, _WEEKS_A_YEAR, True),
    "BYHOUR": (0, 23, False),
    "BYMINUTE": (0, 59, False),
    "BYSETPOS": (1, 366, True),
}
_ONLY_WITH = {
    "BYWEEKNO": ("YEARLY",),
    "BYYEARDAY": ("YEARLY",),
    "BYMONTHDAY": ("DAILY", "MONTHLY", "YEARLY"),
}


class RuleError(ValueError):
    """A rule that can't be taken; the text says why."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that was read and found good."""

    text: str
    """Without COUNT and UNTIL, for dateutil."""

    count: int = 0
    """0: no end by it."""

    until: datetime | date | None = None
    """An aware time, a local one, or a date, which includes that day."""

    def ended(self, number: int, time: datetime, local: datetime) -> bool:
        """Tell whether an occurrence lies beyond the rule's end; `local` is `time` on the zone's wall clock, naive."""
        if self.count and number > self.count:
            return True
        if isinstance(self.until, datetime):
            return (time if self.until.tzinfo else local) > self.until
        return self.until is not None and local.date() > self.until


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One of a series' times."""

    number: int
    """From 1."""

    time: datetime
    """UTC."""


def parse_rule(text: str) -> Rule:
    """Read the value of an RRULE. Raises RuleError."""
    if len(text.encode()) > MAX_RULE_BYTES:
        raise RuleError(f"at most {MAX_RULE_BYTES} bytes")
    parts: dict[str, str] = {}
    for piece in text.upper().split(";"):
        name, equals, value = piece.partition("=")
        if not equals or not value:
            raise RuleError("must be an RRULE value of RFC 5545, for example FREQ=WEEKLY;BYDAY=MO")
        if name in parts:
            raise RuleError(f"{name} is there twice")
        parts[name] = value
    frequency = parts.get("FREQ", "")
    if frequency not in _FREQUENCIES:
        raise RuleError(f"FREQ must be one of {', '.join(_FREQUENCIES)}")
    for name, value in parts.items():
        _check_part(name, value, frequency, parts)
    if "COUNT" in parts and "UNTIL" in parts:
        raise RuleError("COUNT and UNTIL exclude each other")
    if "BYSETPOS" in parts and not any(name.startswith("BY") and name != "BYSETPOS" for name in parts):
        raise RuleError("BYSETPOS needs another BY part")
    times = len(set(parts.get("BYHOUR", "0").split(","))) * len(set(parts.get("BYMINUTE", "0").split(",")))
    if times > MAX_TIMES_A_DAY:
        raise RuleError(f"at most {MAX_TIMES_A_DAY} times a day")
    core = ";".join(f"{name}={value}" for name, value in parts.items() if name not in ("COUNT", "UNTIL"))
    return Rule(core, int(parts.get("COUNT", 0)), _until(parts["UNTIL"]) if "UNTIL" in parts else None)


def _check_part(name: str, value: str, frequency: str, parts: dict[str, str]) -> None:
    if frequency not in _ONLY_WITH.get(name, _FREQUENCIES):
        raise RuleError(f"{name} does not go with FREQ={frequency}")
    if name in _LISTS:
        _check_numbers(name, value)
    elif name == "BYDAY":
        numbered = frequency in ("MONTHLY", "YEARLY") and "BYWEEKNO" not in parts
        of_months = frequency == "MONTHLY" or "BYMONTH" in parts
        _check_days(value, most=(_WEEKS_A_MONTH if of_months else _WEEKS_A_YEAR) if numbered else 0)
    elif name in _MOST:
        most = _MOST[name]
        if not value.isascii() or not value.isdigit() or len(value) > len(str(most)) or not 1 <= int(value) <= most:
            raise RuleError(f"{name} must be 1 to {most}")
    elif name == "WKST":
        if value not in _DAYS:
            raise RuleError("WKST must be a day: MO")
    elif name not in ("FREQ", "UNTIL"):
        raise RuleError(f"{name[:32]} is not taken")


def _check_numbers(name: str, value: str) -> None:
    lowest, highest, backwards = _LISTS[name]
    for one in value.split(","):
        number = int(one) if _NUMBER.fullmatch(one) else highest + 1
        if not lowest <= (abs(number) if backwards else number) <= highest:
            raise RuleError(f"{name} must be {'+- ' if backwards else ''}{lowest} to {highest}")


def _check_days(value: str, *, most: int) -> None:
    for one in value.split(","):
        day = _DAY.fullmatch(one)
        if day is None:
            raise RuleError("BYDAY must be days: MO, 3MO, -1FR")
        if day[1] and not most:
            raise RuleError("BYDAY takes a number with FREQ=MONTHLY or YEARLY alone, and not beside BYWEEKNO")
        if day[1] and not 1 <= abs(int(day[1])) <= most:
            raise RuleError(f"BYDAY's number must be +- 1 to {most}{' in a month' if most == _WEEKS_A_MONTH else ''}")


def _until(value: str) -> datetime | date:
    match = _UNTIL.fullmatch(value)
    try:
        if match is not None:
            if not match[2]:
                return datetime.strptime(value, "%Y%m%d").date()  # noqa: DTZ007 - a day on the zone's wall clock
            moment = datetime.strptime(value.rstrip("Z"), "%Y%m%dT%H%M%S")  # noqa: DTZ007 - the same
            return moment.replace(tzinfo=UTC) if value.endswith("Z") else moment
    except ValueError:
        pass
    raise RuleError("UNTIL must be a date or a time: 20261231, 20261231T235959Z")


def occurrences(rule: Rule, start: datetime, zone: ZoneInfo) -> Iterator[Occurrence]:
    """Give the times of a series, ascending; `start`, aware, is the first, whatever the rule says.

    Ends with the rule, with the 24th century, or after MAX_OCCURRENCES.
    """
    first = start.astimezone(zone).replace(tzinfo=None)
    yield Occurrence(1, start.astimezone(UTC))
    number, last = 1, start
    for local in _local_times(rule, first):
        time = local.replace(tzinfo=zone).astimezone(UTC)
        if local <= first or time <= last:
            continue  # Two of a day may fall together where the clock skips an hour.
        number, last = number + 1, time
        if rule.ended(number, time, local):
            return
        yield Occurrence(number, time)


def _local_times(rule: Rule, first: datetime) -> Iterator[datetime]:
    later = first.replace(year=first.year + _CYCLES_YEARS)
    times = iter(rrulestr(rule.text, dtstart=later))
    for _ in range(MAX_OCCURRENCES):
        try:
            local: datetime = next(times)
        except (StopIteration, ValueError, OverflowError):
            return  # The calendar's end, which dateutil's week arithmetic may run into.
        yield local.replace(year=local.year - _CYCLES_YEARS)


def next_occurrence(
    rule: Rule, start: datetime, zone: ZoneInfo, current: Occurrence, *, not_before: datetime | None = None
) -> Occurrence | None:
    """Find the one after `current`; with `not_before` the first that lies after that time too. None: the series ends.

    Times left out are counted, as COUNT has it. `current`'s number need not be its place after `start`: when a series
    was moved, it is more.
    """
    number = current.number
    for one in itertools.islice(occurrences(rule, start, zone), 1, None):
        if one.time <= current.time:
            continue
        number += 1
        if rule.count and number > rule.count:
            return None
        if not_before is None or one.time > not_before:
            return Occurrence(number, one.time)
    return None


def check_yields(rule: Rule, start: datetime, zone: ZoneInfo) -> None:
    """Refuse a rule that names no time at all after the start, and does not say that it ends. Raises RuleError."""
    if rule.count or rule.until is not None:
        return
    if len(list(itertools.islice(occurrences(rule, start, zone), 2))) == 1:
        raise RuleError("names no time after the due time")
