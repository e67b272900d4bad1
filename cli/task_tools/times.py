"""Times as people say them: what the command line reads, and beyond that what dateparser makes of English."""

import re
from datetime import UTC, datetime, timedelta
from datetime import time as clock
from typing import Any
from zoneinfo import ZoneInfo

from cli.tasks.times import NoTimeError, read_span, read_time

_MORNING = clock(9)
_LONG_UNITS = re.compile(r"(\d+)\s*(s|m|h|d|w)[a-z]*\b\.?", re.IGNORECASE)
# dateparser finds no "next friday"; with dates from the future preferred, "friday" means that.
_NEXT = re.compile(r"\b(?:next|this|coming)\s+(?=(?:mon|tues|wednes|thurs|fri|satur|sun)day\b)", re.IGNORECASE)
_BY = re.compile(r"^(?:due|by|on)\s+", re.IGNORECASE)
_MOMENT = re.compile(r"\b(?:hours?|hrs?|minutes?|mins?|seconds?|secs?|now|noon|midnight)\b", re.IGNORECASE)
_WHOLE_DAYS = frozenset({"day", "week"})


def read_when(text: str, zone: ZoneInfo, now: datetime) -> datetime:
    """Reads "tomorrow 9am", "next friday at 17:30", "in two hours", "1 May 2031", on the wall clock of a zone; in UTC.

    A day without a time is 9 in the morning, a time without a day the next time that it is so. A time that a change of
    the clocks leaves out is read with the offset before it, one that comes twice is the first. Raises NoTimeError.
    """
    words = " ".join(text.split())
    try:
        return read_time(words, zone, now)
    except NoTimeError:
        pass
    local = now.astimezone(zone).replace(tzinfo=None)
    found, period = _parse(_NEXT.sub("", _BY.sub("", words)), local)
    if found is None or period in {"month", "year"}:
        raise NoTimeError(f"{text!r} is no time; say it like tomorrow 9am, next friday 17:30 or 2031-05-01 09:00")
    if period in _WHOLE_DAYS and not _MOMENT.search(words) and found.tzinfo is None:
        found = datetime.combine(found.date(), _MORNING)
    return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)


def read_long_span(text: str) -> timedelta:
    """Reads 10m, 2 hours, 1 day 6 hours. Raises NoTimeError."""
    return read_span(_LONG_UNITS.sub(lambda match: f"{match[1]}{match[2].lower()}", text))


def _parse(text: str, local: datetime) -> tuple[datetime | None, str]:
    # It takes a third of a second to import; `gaggle --help` needs none of it.
    from dateparser.date import DateDataParser

    settings: dict[str, Any] = {
        "PREFER_DATES_FROM": "future",
        "RELATIVE_BASE": local,
        "RETURN_TIME_AS_PERIOD": True,
    }
    found = DateDataParser(languages=["en"], settings=settings).get_date_data(text)
    return found.date_obj, str(found.period)
