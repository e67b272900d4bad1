"""What a format reads and writes."""

import json
from dataclasses import dataclass, field
from typing import Any, Protocol

from cli.transcripts._delta import apply, difference
from cli.transcripts._source import Document, Node
from gaggle.conversation.v1.message_pb2 import Message

_LONGEST_ID = 128


@dataclass
class Transcript:
    """One conversation of a document."""

    messages: list[Message] = field(repr=False)
    """In order; without sequence and create_time, which are the service's."""

    places: list[Node] = field(default_factory=list, repr=False)
    """Where each message stood; empty for a transcript that was not read from a document."""

    title: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    """For the conversation, for example the id that it had."""

    source: Any = field(default=None, repr=False)
    """The conversation's JSON as it was read: what identifies its content."""

    def note_id(self, members: dict[str, Any]) -> None:
        """Keeps the conversation's own id, where it has one that is fit to be shown."""
        identity = members.get("id")
        if isinstance(identity, str) and identity.isprintable() and 1 <= len(identity) <= _LONGEST_ID:
            self.metadata["import.source_id"] = identity


@dataclass(frozen=True)
class Written:
    """A transcript in a format's text."""

    text: str
    omitted: tuple[str, ...] = ()
    """Kinds of content that the format has no form for and that were left out, each once."""


class Format(Protocol):
    """A transcript format. To add one: implement this and list it in `FORMATS`."""

    @property
    def name(self) -> str:
        """What `--format` takes."""
        ...

    @property
    def summary(self) -> str:
        """What it is, in a few words, for the help."""
        ...

    def recognises(self, document: Document) -> bool:
        """Whether it looks like this format, faulty or not. Raises TranscriptError if it is no JSON."""
        ...

    def read(self, document: Document) -> list[Transcript]:
        """Every conversation of the document. Raises TranscriptError."""
        ...

    def write(self, messages: list[Message]) -> Written:
        """The conversation in this format; what was imported from it comes back as it was."""
        ...


def dump(value: Any, *, indent: int | None = None, separators: tuple[str, str] | None = None) -> str:
    """JSON with characters as they are, or escaped where it holds half of a surrogate pair."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent, separators=separators)
    return text


def keep(message: Message, dialect: str, made: Any, wanted: Any, **marks: Any) -> None:
    """Notes in the message what `made`, written from its fields alone, lacks of `wanted`; and marks that are truthy."""
    delta = difference(made, wanted)
    notes = {name: mark for name, mark in marks.items() if mark} | ({"delta": delta} if delta else {})
    if notes:
        message.extra_json = dump({dialect: notes}, separators=(",", ":"))


def kept(message: Message, dialect: str) -> dict[str, Any]:
    """What `keep` noted for this dialect; empty if nothing, or if somebody else wrote the field."""
    try:
        notes = json.loads(message.extra_json or "{}")
    except ValueError:
        return {}
    own = notes.get(dialect) if isinstance(notes, dict) else None
    return own if isinstance(own, dict) else {}


def envelope_of(notes: Any, shape: str) -> tuple[str, dict[str, Any]]:
    """The shape of the document that held the conversation, `shape` if it is not known, and its other members."""
    if not isinstance(notes, dict):
        return shape, {}
    members = notes.get("members")
    return str(notes.get("shape", shape)), members if isinstance(members, dict) else {}


def restore(made: Any, notes: dict[str, Any]) -> Any:
    """`wanted` of `keep` again; `made` as it is if the notes do not fit it."""
    try:
        return apply(made, notes["delta"]) if "delta" in notes else made
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return made
