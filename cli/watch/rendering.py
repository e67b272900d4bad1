"""Events for a terminal. What people and models wrote is shown, never obeyed."""

from datetime import UTC

from rich.text import Text

from cli.conversations.rendering import harmless
from gaggle.sync.v1.sync_service_pb2 import WatchResponse

_TELLING = ("title", "name", "tool_name", "toolName", "recipe_name", "recipeName", "error", "reason")
"""What of an event's data says most to a person: the first of these that it has."""

_TYPE_WIDTH = 28


def line(response: WatchResponse) -> Text:
    """When, what, of which thing, and in its own words."""
    event = response.event
    when = event.timestamp.ToDatetime(UTC).astimezone().strftime("%H:%M:%S")
    text = Text(f"{when}  ", style="dim")
    text.append(f"{harmless(event.event_type):{_TYPE_WIDTH}}  ", style="cyan not dim")
    text.append(f"{harmless(event.entity_type)} {harmless(event.entity_id)}", style="not dim")
    fields = event.data.fields
    said = next((fields[name].string_value for name in _TELLING if name in fields and fields[name].string_value), "")
    if said:
        text.append(f"  {harmless(' '.join(said.split()))}", style="bold not dim")
    return text
