"""Times and spans as people type them."""

import os
import re
from datetime import UTC, datetime, timedelta
from datetime import time as clock
from pathlib import Path
from zoneinfo import ZoneInfo

_SPAN = re.compile(r"(\d+)(s|m|h|d|w)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2}))?\s*(am|pm)?")
_DAYS = {"today": 0, "tomorrow": 1}
_MORNING = clock(9)
_NOON = 12
_LOCALTIME = Path("/etc/localtime")


class NoTimeError(ValueError):
    """What was typed is no time; the text says what would be."""


def local_zone() -> str:
    """The name of this machine's zone; UTC if it has none."""
    name = os.environ.get("TZ", "").removeprefix(":")
    if not name and _LOCALTIME.is_symlink():
        name = str(_LOCALTIME.resolve()).partition("/zoneinfo/")[2]
    try:
        return ZoneInfo(name or "UTC").key
    except (ValueError, OSError, KeyError):
        return "UTC"


def read_span(text: str) -> timedelta:
    """Reads 90m, 2h, 1d, 1h30m. Raises NoTimeError."""
    compact = text.lower().replace(" ", "")
    pieces = list(_SPAN.finditer(compact))
    if not pieces or "".join(one.group(0) for one in pieces) != compact:
        raise NoTimeError(f"{text!r} is no span; write 10m, 2h, 1d or 1h30m")
    try:
        return sum((timedelta(**{_UNITS[one[2]]: int(one[1])}) for one in pieces), timedelta())
    except OverflowError:
        raise NoTimeError(f"{text!r} is too long") from None


def read_time(text: str, zone: ZoneInfo, now: datetime) -> datetime:
    """Reads a time on the wall clock of a zone: 2031-05-01 09:00, tomorrow 9am, today 17:30, +2h. Raises NoTimeError.

    A day without a time is 9 in the morning; a time with an offset is taken as it is.
    """
    words = text.strip().lower()
    if words.startswith("+"):
        return now + read_span(words[1:])
    day, _, rest = words.partition(" ")
    if day in _DAYS:
        date = (now.astimezone(zone) + timedelta(days=_DAYS[day])).date()
        return datetime.combine(date, _clock(rest) if rest else _MORNING, tzinfo=zone).astimezone(UTC)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise NoTimeError(f"{text!r} is no time; write 2031-05-01 09:00, tomorrow 9am, today 17:30 or +2h") from None
    if len(text.strip()) <= len("2031-05-01"):
        moment = datetime.combine(moment.date(), _MORNING)
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)


def _clock(text: str) -> clock:
    match = _CLOCK.fullmatch(text.strip())
    if match is not None:
        hour, minute = int(match[1]), int(match[2] or 0)
        if match[3]:
            hour = hour % _NOON + (_NOON if match[3] == "pm" else 0) if 1 <= hour <= _NOON else -1
        try:
            return clock(hour, minute)
        except ValueError:
            pass
    raise NoTimeError(f"{text!r} is no time of day; write 9am or 17:30")
