"""What the tools answer: a text for people and models, and the same as data."""

from collections.abc import Sequence
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from mcp_types import CallToolResult, ContentBlock, TextContent

from gaggle.reminder.v1.reminder_pb2 import Reminder
from gaggle.task.v1.task_pb2 import TASK_STATUS_COMPLETED, Task, TaskPriority


def said(text: str, **data: Any) -> CallToolResult:
    """An answer: what is said, and the messages that it speaks of."""
    content: list[ContentBlock] = [TextContent(type="text", text=text)]
    return CallToolResult(content=content, structured_content={name: _plain(value) for name, value in data.items()})


def refused(text: str) -> CallToolResult:
    """An answer that says why nothing was done."""
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)


def line(task: Task) -> str:
    """A task in one line, its id last."""
    parts = [f'"{" ".join(task.title.split())}"']
    if task.HasField("due_time"):
        parts.append(f"due {moment(task.due_time, task.time_zone)}")
    if task.priority:
        parts.append(f"priority {TaskPriority.Name(task.priority).removeprefix('TASK_PRIORITY_').lower()}")
    if task.HasField("recurrence"):
        parts.append(f"repeats {task.recurrence.rule}")
    if task.tags:
        parts.append(" ".join(f"#{tag}" for tag in task.tags))
    if task.status == TASK_STATUS_COMPLETED:
        parts.append("completed")
    return f"{', '.join(parts)} (id {task.id})"


def listed(tasks: Sequence[Task]) -> str:
    """Tasks, one a line."""
    return "\n".join(f"- {line(one)}" for one in tasks)


def moment(stamp: Timestamp, zone: str) -> str:
    """A time on the wall clock of a zone, to the minute."""
    return stamp.ToDatetime(UTC).astimezone(ZoneInfo(zone or "UTC")).strftime("%a %d %b %Y %H:%M %Z")


def _plain(value: Any) -> Any:
    if isinstance(value, Task | Reminder):
        return MessageToDict(value, preserving_proto_field_name=True)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value
