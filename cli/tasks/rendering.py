"""Tasks for a terminal. What people and models wrote is shown, never obeyed."""

from collections.abc import Iterable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from rich.table import Table
from rich.text import Text

from cli.conversations.rendering import harmless
from gaggle.task.v1.task_pb2 import TASK_STATUS_COMPLETED, Task, TaskPriority

_TITLE_MIN_WIDTH = 12
_OTHER_COLUMNS_WIDTH = len("  " * 5 + "x" + "2000-01-01 00:00" + "MEDIUM" + "REPEATS")


def task_table(tasks: Iterable[Task], width: int, now: datetime) -> Table:
    """One line each, titles cut so that it fits into `width` columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("ID", no_wrap=True, style="cyan")
    table.add_column("TITLE", no_wrap=True)
    table.add_column("DUE", no_wrap=True)
    table.add_column("PRIORITY", no_wrap=True)
    table.add_column("REPEATS", no_wrap=True)
    rows = list(tasks)
    longest = max((len(each.id) for each in rows), default=0)
    room = max(width - longest - _OTHER_COLUMNS_WIDTH, _TITLE_MIN_WIDTH)
    for each in rows:
        done = each.status == TASK_STATUS_COMPLETED
        title = Text(harmless(" ".join((each.title, *(f"#{tag}" for tag in each.tags)))), style="dim" if done else "")
        title.truncate(room, overflow="ellipsis")
        late = not done and each.HasField("due_time") and each.due_time.ToDatetime(UTC) < now
        table.add_row(
            "x" if done else "",
            each.id,
            title,
            Text(due(each), style="red" if late else ""),
            _priority(each),
            _repeats(each),
        )
    return table


def due(task: Task) -> str:
    """When a task is due, on the wall clock of its zone, to the minute; a dash if at no time."""
    if not task.HasField("due_time"):
        return "-"
    return task.due_time.ToDatetime(UTC).astimezone(ZoneInfo(task.time_zone)).strftime("%Y-%m-%d %H:%M")


def _priority(task: Task) -> str:
    return TaskPriority.Name(task.priority).removeprefix("TASK_PRIORITY_").lower() if task.priority else "-"


def _repeats(task: Task) -> str:
    return task.recurrence.rule.partition(";")[0].removeprefix("FREQ=").lower() if task.HasField("recurrence") else "-"
