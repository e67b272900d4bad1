"""Reminders for a terminal. What people and models wrote is shown, never obeyed."""

from collections.abc import Iterable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from rich.table import Table
from rich.text import Text

from cli.conversations.rendering import harmless
from gaggle.reminder.v1.reminder_pb2 import (
    REMINDER_STATE_SCHEDULED,
    REMINDER_STATE_SNOOZED,
    Reminder,
    ReminderState,
)

_TITLE_MIN_WIDTH = 12
_OTHER_COLUMNS_WIDTH = len("  " * 4 + "2000-01-01 00:00:00" + "2000-01-01 00:00" + "SCHEDULED")
_LIVE = {REMINDER_STATE_SCHEDULED, REMINDER_STATE_SNOOZED}


def reminder_table(reminders: Iterable[Reminder], width: int, now: datetime) -> Table:
    """One line each, titles cut so that it fits into `width` columns; what is overdue is red."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ID", no_wrap=True, style="cyan")
    table.add_column("REMINDS AT", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    table.add_column("DUE", no_wrap=True)
    table.add_column("TITLE", no_wrap=True)
    rows = list(reminders)
    longest = max((len(each.id) for each in rows), default=0)
    for each in rows:
        live = each.state in _LIVE
        title = Text(harmless(each.title), style="" if live else "dim")
        title.truncate(max(width - longest - _OTHER_COLUMNS_WIDTH, _TITLE_MIN_WIDTH), overflow="ellipsis")
        late = live and each.remind_at.ToDatetime(UTC) < now
        state = ReminderState.Name(each.state).removeprefix("REMINDER_STATE_").lower()
        table.add_row(
            each.id,
            Text(_local(each, each.remind_at.ToDatetime(UTC), "%Y-%m-%d %H:%M:%S"), style="red" if late else ""),
            state,
            _local(each, each.due_at.ToDatetime(UTC), "%Y-%m-%d %H:%M") if each.HasField("due_at") else "-",
            title,
        )
    return table


def _local(reminder: Reminder, at: datetime, how: str) -> str:
    """Write a time on the wall clock of the task's zone."""
    return at.astimezone(ZoneInfo(reminder.time_zone or "UTC")).strftime(how)
