"""Dialogues of the LoCoMo benchmark, reduced to their turns: {"id", "speakers", "messages": [{"id", "session", ...}]}.

https://github.com/snap-research/locomo (ACL 2024). The first speaker becomes the user, the second the assistant,
others users too; every message keeps its speaker in `name`, its session in the metadata, its time in `original_time`.
"""

import re
from datetime import UTC, datetime
from typing import Any

from cli.transcripts._source import Document, Node
from cli.transcripts._transcript import Transcript, Written, dump, keep, kept, restore
from gaggle.conversation.v1.message_pb2 import ROLE_ASSISTANT, ROLE_USER, Message, TextContent

_DIALECT = "locomo"
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
# 1:56 pm on 8 May, 2023
_TIME = re.compile(r"(\d{1,2}):(\d{2}) (am|pm) on (\d{1,2}) ([A-Z][a-z]+), (\d{4})")


class LocomoFormat:
    """One dialogue a document."""

    name = "locomo"
    summary = 'dialogues of the LoCoMo benchmark: "speakers" and "messages"'

    def recognises(self, document: Document) -> bool:
        """An object that names its speakers."""
        if document.is_lines:
            return False
        root = document.root
        return root.has("speakers") and root.has("messages")

    def read(self, document: Document) -> list[Transcript]:
        """The one conversation of the document."""
        root = document.root
        members = {name: value for name, value in root.object().items() if name != "messages"}
        speakers = [speaker.text() for speaker in root.field("speakers").elements()]
        transcript = Transcript([], source=root.value, title=" and ".join(speakers)[:200])
        transcript.note_id(members)
        for node in root.field("messages").elements():
            envelope = None if transcript.messages else {"members": members}
            transcript.messages.append(_read(node, speakers, envelope))
            transcript.places.append(node)
        if not transcript.messages:
            raise root.field("messages").error("has no messages")
        return [transcript]

    def write(self, messages: list[Message]) -> Written:
        """The dialogue as it was; of another origin, with the speakers that its messages name."""
        omitted: dict[str, None] = {}
        turns = [_write(message, omitted) for message in messages]
        envelope = kept(messages[0], _DIALECT).get("envelope") if messages else None
        members = envelope.get("members") if isinstance(envelope, dict) else None
        if not isinstance(members, dict):
            members = {"speakers": list(dict.fromkeys(turn.get("speaker") for turn in turns))}
        return Written(dump(members | {"messages": turns}, indent=2) + "\n", tuple(omitted))


def _read(node: Node, speakers: list[str], envelope: dict[str, Any] | None) -> Message:
    speaker = node.field("speaker")
    if speaker.text() not in speakers:
        raise speaker.error(f"must be one of the speakers, {', '.join(speakers)}")
    role = ROLE_ASSISTANT if speakers.index(speaker.text()) == 1 else ROLE_USER
    message = Message(role=role, name=speaker.text())
    message.content.add(text=TextContent(text=node.field("text").text()))
    session = node.optional("session")
    if session is not None and isinstance(session.value, int | str):
        message.metadata["session"] = str(session.value)
    time = node.optional("time")
    moment = _read_time(time.text()) if time is not None else None
    if moment is not None:
        message.original_time.FromDatetime(moment)
    keep(message, _DIALECT, _plain(message, {}), node.value, envelope=envelope)
    return message


def _write(message: Message, omitted: dict[str, None]) -> dict[str, Any]:
    made = _plain(message, omitted)
    notes = kept(message, _DIALECT)
    if "delta" not in notes:  # not from such a file: every imported turn has at least its id there
        return {"id": message.id, "time": _write_time(message.create_time.ToDatetime(tzinfo=UTC))} | made
    restored = restore(made, notes)
    return restored if isinstance(restored, dict) else made


def _plain(message: Message, omitted: dict[str, None]) -> dict[str, Any]:
    """The turn from the message's fields alone; its id and create_time are the service's."""
    made: dict[str, Any] = {}
    if session := message.metadata.get("session"):
        made["session"] = int(session) if session.isascii() and session.isdigit() else session
    if message.HasField("original_time"):
        made["time"] = _write_time(message.original_time.ToDatetime(tzinfo=UTC))
    made["speaker"] = message.name or ("Assistant" if message.role == ROLE_ASSISTANT else "User")
    omitted |= {str(kind): None for part in message.content if (kind := part.WhichOneof("kind")) != "text"}
    made["text"] = "\n".join(part.text.text for part in message.content if part.HasField("text"))
    return made


def _read_time(text: str) -> datetime | None:
    """The moment, taken as UTC since the benchmark names no zone; None if it is written otherwise."""
    match = _TIME.fullmatch(text)
    if match is None or match[5] not in _MONTHS:
        return None
    hour = int(match[1]) % 12 + (12 if match[3] == "pm" else 0)
    try:
        return datetime(int(match[6]), _MONTHS.index(match[5]) + 1, int(match[4]), hour, int(match[2]), tzinfo=UTC)
    except ValueError:
        return None


def _write_time(moment: datetime) -> str:
    half = "pm" if moment.hour >= 12 else "am"  # noqa: PLR2004 - noon
    month = _MONTHS[moment.month - 1]
    return f"{moment.hour % 12 or 12}:{moment.minute:02} {half} on {moment.day} {month}, {moment.year}"


LOCOMO = LocomoFormat()
