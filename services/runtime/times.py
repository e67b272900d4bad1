"""Moments and zones."""

import re
from datetime import UTC, datetime, time
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from google.protobuf.timestamp_pb2 import Timestamp

_MOST_ZONE_BYTES = 64
_TIME_OF_DAY = re.compile(r"\d\d:\d\d(:\d\d)?")
EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)
LATEST = datetime(2400, 1, 1, tzinfo=UTC)
"""What a caller may name lies between: times that every zone, every language and a recurrence can work with."""


def timestamp(moment: datetime) -> Timestamp:
    """Write a time as protobuf's."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


@lru_cache(maxsize=1000)
def find_zone(name: str) -> ZoneInfo | None:
    """Find a zone of the IANA by its name; None if there is none."""
    if not name or len(name.encode()) > _MOST_ZONE_BYTES or name.startswith((".", "/")):
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def sensible(stamp: Timestamp) -> bool:
    """Tell whether a caller's time is a valid one from 1900 to 2400."""
    try:
        return EARLIEST <= stamp.ToDatetime(UTC) < LATEST
    except (ValueError, OverflowError):
        return False


def on_wall_clock(local: datetime, zone: ZoneInfo) -> datetime:
    """Give the moment at which a zone's wall clock shows this: RFC 5545, 3.3.5.

    What a change of the clocks leaves out is read with the offset before it, so that it moves on by what was left out;
    what comes twice is the first of the two. Both are what `fold` 0 means (PEP 495).
    """
    return local.replace(tzinfo=zone, fold=0).astimezone(UTC)


def parse_time_of_day(text: str) -> time | None:
    """Read a time of a wall clock, 09:00 or 09:00:30; None if it is none."""
    if not _TIME_OF_DAY.fullmatch(text):
        return None
    try:
        return time.fromisoformat(text)
    except ValueError:
        return None
