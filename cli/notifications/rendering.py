"""Notifications for a terminal. What people and models wrote is shown, never obeyed."""

from collections.abc import Sequence
from datetime import UTC

from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Table
from rich.text import Text

from cli.conversations.rendering import harmless
from gaggle.notification.v1.notification_pb2 import Channel, Notification, NotificationKind, Preferences
from gaggle.notification.v1.notification_service_pb2 import ParkedDelivery

_TEXT_MIN_WIDTH = 12
_OTHER_COLUMNS_WIDTH = len("  " * 4 + "*" + "0" * 36 + "2000-01-01 00:00" + "approval_waiting")


def notification_table(notifications: Sequence[Notification], width: int) -> Table:
    """One line each, unread ones with a star; titles cut so that it fits into `width` columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "ID", "WHEN", "KIND", "TITLE"):
        table.add_column(name, no_wrap=True, style="cyan" if name == "ID" else "")
    for one in notifications:
        line = " - ".join(part for part in (one.title, one.body) if part)
        text = Text(harmless(line), style="dim" if one.read else "")
        text.truncate(max(width - _OTHER_COLUMNS_WIDTH, _TEXT_MIN_WIDTH), overflow="ellipsis")
        table.add_row("" if one.read else "*", one.id, _local(one.create_time), _kind(one.kind), text)
    return table


def parked_table(parked: Sequence[ParkedDelivery], width: int) -> Table:
    """One line each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("ID", "USER", "CHANNEL", "KIND", "SINCE", "TRIES", "ERROR"):
        table.add_column(name, no_wrap=True, style="cyan" if name == "ID" else "")
    for one in parked:
        error = Text(harmless(one.error))
        error.truncate(max(width // 3, _TEXT_MIN_WIDTH), overflow="ellipsis")
        channel = Channel.Name(one.channel).removeprefix("CHANNEL_").lower()
        user = Text(harmless(one.user_id))
        table.add_row(one.id, user, channel, _kind(one.kind), _local(one.park_time), str(one.attempts), error)
    return table


def preference_lines(preferences: Preferences) -> list[str]:
    """What a user wants, a line each."""
    hours = preferences.quiet_hours
    lines = [
        f"e-mail       {harmless(preferences.email_address) or '-'}",
        f"webhook      {harmless(preferences.webhook.url) or '-'}",
        f"quiet hours  {f'{hours.start}-{hours.end}' if hours.start else '-'}",
        f"digest       {', '.join(preferences.digest.times_of_day) or '-'}",
        f"zone         {preferences.time_zone}",
    ]
    for one in preferences.kinds:
        ways = ["inbox", *(["e-mail"] if one.email else []), *(["webhook"] if one.webhook else [])]
        lines.append(f"{_kind(one.kind):17}{'muted' if one.muted else ', '.join(ways)}")
    return [*lines, f"etag         {preferences.etag}"]


def _kind(kind: "NotificationKind.ValueType") -> str:
    return NotificationKind.Name(kind).removeprefix("NOTIFICATION_KIND_").lower()


def _local(stamp: Timestamp) -> str:
    return stamp.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M")
