"""Conversations and messages for a terminal. What people and models wrote is shown, never obeyed."""

import html
import re
from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from gaggle.conversation.v1.conversation_pb2 import Conversation
from gaggle.conversation.v1.conversation_service_pb2 import MessageHit
from gaggle.conversation.v1.message_pb2 import ContentPart, Message, Role

_STYLES = {"USER": "green", "ASSISTANT": "cyan", "SYSTEM": "yellow", "DEVELOPER": "yellow", "TOOL": "magenta"}
# A terminal acts on these: escape sequences in a message must not move the cursor or set the window's title.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SHOWN_CHARACTERS = 4_000
_OTHER_COLUMNS_WIDTH = len("  " * 3 + "MESSAGES" + "2000-01-01 00:00")
_TITLE_MIN_WIDTH = 12


def harmless(text: str) -> str:
    """The text with a mark in place of every character that a terminal would act on."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def when(time: Timestamp) -> str:
    """A time in the terminal's zone, to the minute; a dash if there is none."""
    return time.ToDatetime().astimezone().strftime("%Y-%m-%d %H:%M") if time.seconds else "-"


def conversation_table(conversations: Iterable[Conversation], width: int) -> Table:
    """One line each, titles cut so that it fits into `width` columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ID", no_wrap=True, style="cyan")
    table.add_column("TITLE", no_wrap=True)
    table.add_column("MESSAGES", justify="right")
    table.add_column("CHANGED", no_wrap=True)
    rows = list(conversations)
    longest = max((len(each.id) for each in rows), default=0)
    room = max(width - longest - _OTHER_COLUMNS_WIDTH, _TITLE_MIN_WIDTH)
    for each in rows:
        title = Text(harmless(each.title))
        title.truncate(room, overflow="ellipsis")
        table.add_row(each.id, title, f"{each.message_count:,}", when(each.update_time))
    return table


def show_conversation(console: Console, conversation: Conversation, messages: list[Message]) -> None:
    """The whole of it, or its end."""
    console.print(Text(harmless(conversation.title) or "(no title)", style="bold"))
    facts = [conversation.id, f"{conversation.message_count:,} messages", f"changed {when(conversation.update_time)}"]
    if conversation.forked_from.conversation_id:
        facts.append(f"forked from {conversation.forked_from.conversation_id} at {conversation.forked_from.sequence}")
    console.print(Text(" · ".join(facts), style="dim"))
    if messages and len(messages) < conversation.message_count:
        console.print(Text(f"the last {len(messages)}:", style="dim"))
    for message in messages:
        show_message(console, message)


def show_message(console: Console, message: Message) -> None:
    """Who, when, and what."""
    role = Role.Name(message.role).removeprefix("ROLE_")
    style = _STYLES.get(role, "white")
    time = message.original_time if message.HasField("original_time") else message.create_time
    speaker = f"{message.name} ({role.lower()})" if message.name else role.lower()
    head = f"{message.sequence} · {harmless(speaker)} · {when(time)}"
    if message.hidden_from_user:
        head += " · hidden"
    console.print()
    console.print(Rule(Text(head), align="left", style=style))
    for part in message.content:
        text = describe_part(part)
        if text.plain:
            console.print(Padding(text, (0, 0, 0, 2)))


def describe_part(part: ContentPart) -> Text:  # noqa: PLR0911 - one for each kind
    """A part of a message in words; long ones are cut and say so."""
    match part.WhichOneof("kind"):
        case "text":
            return _cut(part.text.text)
        case "image":
            size = f"{len(part.image.data):,} bytes" if part.image.data else harmless(part.image.uri)
            return Text(f"[image {harmless(part.image.mime_type)} {size}]", style="italic")
        case "tool_request":
            call = part.tool_request.call
            told = f"{call.name}({call.arguments_json})" if call.name else part.tool_request.error
            return Text("→ ", style="bold magenta") + _cut(told)
        case "tool_response":
            response = part.tool_response
            told = "\n".join(describe_part(inner).plain for inner in response.result.content) or response.error
            return Text("← ", style="bold magenta") + _cut(told)
        case "thinking":
            return Text("thinking: ", style="dim italic") + _cut(part.thinking.thinking, "dim italic")
        case "summary":
            span = f"summary of {part.summary.first_sequence} to {part.summary.last_sequence}: "
            return Text(span, style="bold yellow") + _cut(part.summary.text)
        case "system_notification":
            return _cut(part.system_notification.message, "yellow")
        case "tool_confirmation_request":
            return Text(f"[may {harmless(part.tool_confirmation_request.tool_name)} run?]", style="italic")
        case "raw":
            return Text(f"[{harmless(part.raw.type)}] ", style="italic") + _cut(part.raw.json, "dim")
        case kind:
            return Text(f"[{kind}]", style="italic")


def hit_line(hit: MessageHit) -> Text:
    """One find, its words in bold."""
    line = Text.assemble((hit.conversation_id, "cyan"), f" {hit.sequence:>5}  ")
    for index, piece in enumerate(re.split(r"</?b>", hit.snippet)):
        line.append(harmless(html.unescape(piece)).replace("\n", " "), style="bold yellow" if index % 2 else "")
    return line


def _cut(text: str, style: str = "") -> Text:
    left_out = len(text) - _SHOWN_CHARACTERS
    shown = Text(harmless(text[:_SHOWN_CHARACTERS]), style=style)
    return shown.append(f" … {left_out:,} characters more", style="dim") if left_out > 0 else shown
