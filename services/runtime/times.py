"""Moments and zones."""

from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from google.protobuf.timestamp_pb2 import Timestamp

_MOST_ZONE_BYTES = 64
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
