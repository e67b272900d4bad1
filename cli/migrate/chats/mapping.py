"""A conversation's rows as the contract's messages. Nothing is dropped: columns of their own kind go along as JSON."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from cli.mesh.keys import LONGEST_USER_BYTES
from cli.transcripts import MAX_APPEND_BYTES, MAX_APPEND_MESSAGES
from gaggle.conversation.v1 import conversation_service_pb2 as pb
from gaggle.conversation.v1.message_pb2 import (
    ROLE_ASSISTANT,
    ROLE_DEVELOPER,
    ROLE_SYSTEM,
    ROLE_TOOL,
    ROLE_UNSPECIFIED,
    ROLE_USER,
    ContentPart,
    Message,
    RawContent,
    Role,
    TextContent,
)

PREFIX = "chat_tables."
ID_KEY = f"{PREFIX}id"
"""Metadata of a conversation that came from the tables: its id there."""

ROLES: dict[str, "Role.ValueType"] = {
    "user": ROLE_USER,
    "human": ROLE_USER,
    "assistant": ROLE_ASSISTANT,
    "ai": ROLE_ASSISTANT,
    "bot": ROLE_ASSISTANT,
    "model": ROLE_ASSISTANT,
    "system": ROLE_SYSTEM,
    "developer": ROLE_DEVELOPER,
    "tool": ROLE_TOOL,
    "function": ROLE_TOOL,
}

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_MESSAGE_BYTES = 1024 * 1024
_MAX_PARTS = 256
_MAX_TITLE_BYTES = 1024
_MAX_METADATA_BYTES = 16 * 1024
_MAX_METADATA_ENTRIES = 64
# protobuf's Timestamp: the years 1 to 9999.
_FIRST_MICROSECOND, _LAST_MICROSECOND = -62_135_596_800_000_000, 253_402_300_799_999_999


@dataclass(frozen=True)
class MessageRow:
    """One row of `messages`."""

    id: str
    role: str
    content: str
    """Text, or JSON if `is_json`."""

    is_json: bool
    created: int | None
    """Microseconds since 1970."""

    user: str | None
    """Whose it says it is, where the table says so."""

    others: str
    """The other columns as a JSON object; empty: there are none."""


@dataclass(frozen=True)
class ConversationRow:
    """One row of `conversations` and those of its messages, oldest first."""

    id: str
    user: str | None
    created: int | None
    title: str
    others: str
    messages: list[MessageRow] = field(repr=False)


@dataclass(frozen=True)
class Chat:
    """A conversation to be stored, or the reasons why it can't be."""

    source_id: str
    user: str
    title: str
    metadata: dict[str, str]
    messages: list[Message] = field(repr=False)
    faults: list[str]

    @property
    def conversation_id(self) -> str:
        """Its id in the conversation service: the same one, if that may be."""
        return conversation_id(self.source_id)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that is stored of it."""
        digest = hashlib.sha256()
        for part in (self.user, self.title, json.dumps(self.metadata, sort_keys=True)):
            digest.update(f"{len(part)}:{part}".encode())
        for message in self.messages:
            data = message.SerializeToString(deterministic=True)
            digest.update(f"{len(data)}:".encode() + data)
        return digest.hexdigest()

    def creation(self, keep_messages: int) -> pb.CreateConversationRequest:
        """The request that creates it; `keep_messages`: its retention, 0 for none."""
        request = pb.CreateConversationRequest(
            conversation_id=self.conversation_id, title=self.title, metadata=self.metadata
        )
        if keep_messages:
            request.retention.max_messages = keep_messages
        request.request_id = request_id(request)
        return request

    def append(self, stored: int, last_sequence: int) -> pb.AppendMessagesRequest:
        """The request that adds messages to the first `stored` ones, where `last_sequence` is the service's newest."""
        request = pb.AppendMessagesRequest(conversation_id=self.conversation_id, expected_sequence=last_sequence)
        size = 0
        for message in self.messages[stored : stored + MAX_APPEND_MESSAGES]:
            size += message.ByteSize()
            if request.messages and size > MAX_APPEND_BYTES:
                break
            request.messages.append(message)
        request.request_id = request_id(request)
        return request


def conversation_id(source_id: str) -> str:
    """What a conversation of the tables is called in the service."""
    return _id(source_id, "chat")


def request_id(request: Any) -> str:
    """An id that only this very body has, so that a repeated request has no second effect."""
    body = request.SerializeToString(deterministic=True)
    return f"mig-{hashlib.sha256(request.DESCRIPTOR.name.encode() + body).hexdigest()[:48]}"


def chat(row: ConversationRow) -> Chat:
    """Maps a conversation; what can't be stored is among its `faults`."""
    faults: list[str] = []
    user = row.user or ""
    if not 1 <= len(user.encode()) <= LONGEST_USER_BYTES:
        faults.append(f"its user_id must be 1 to {LONGEST_USER_BYTES} bytes")
    messages = []
    for one in row.messages:
        message, why = _message(one, user)
        messages.append(message)
        faults += (f"message {one.id}: {text}" for text in why)
    metadata = {ID_KEY: row.id}
    if row.created is not None and not _time(metadata, row.created):
        faults.append("its created_at is not in the years 1 to 9999")
    for name, value in json.loads(row.others or "{}").items():
        if value is not None:
            metadata[f"{PREFIX}{name}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    title = _cut(row.title, _MAX_TITLE_BYTES)
    if title != row.title:
        metadata[f"{PREFIX}title"] = row.title
    size = sum(len(text.encode()) for pair in metadata.items() for text in pair)
    if size > _MAX_METADATA_BYTES or len(metadata) > _MAX_METADATA_ENTRIES:
        faults.append(f"its own columns are over {_MAX_METADATA_BYTES} bytes or {_MAX_METADATA_ENTRIES} entries")
    return Chat(row.id, user, title, metadata, messages, faults)


def _message(row: MessageRow, owner: str) -> tuple[Message, list[str]]:
    faults = []
    role = ROLES.get(row.role.lower(), ROLE_UNSPECIFIED)
    if role == ROLE_UNSPECIFIED:
        faults.append(f"the role {row.role[:40]!r} is not known; there are {', '.join(ROLES)}")
    message = Message(id=_id(row.id, "msg"), role=role, content=_content(row))
    if len(message.content) > _MAX_PARTS:
        faults.append(f"more than {_MAX_PARTS} parts")
    if row.created is not None:
        if _FIRST_MICROSECOND <= row.created <= _LAST_MICROSECOND:
            message.original_time.FromMicroseconds(row.created)
        else:
            faults.append("its created_at is not in the years 1 to 9999")
    if row.user is not None and row.user != owner:
        faults.append("it belongs to another user than its conversation")
    if row.others and any(value is not None for value in json.loads(row.others).values()):
        message.extra_json = row.others
    if message.ByteSize() > _MAX_MESSAGE_BYTES:
        faults.append(f"it is {message.ByteSize()} bytes, the limit is {_MAX_MESSAGE_BYTES}")
    return message, faults


def _content(row: MessageRow) -> Iterable[ContentPart]:
    if not row.is_json:
        return [_text(row.content)]
    value = json.loads(row.content or '""')
    parts = value if isinstance(value, list) and value else [value]
    return [_part(one) for one in parts]


def _part(value: Any) -> ContentPart:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict) and value.keys() == {"type", "text"} and value["type"] == "text":
        return _text(str(value["text"]))
    kind = str(value.get("type", "json")) if isinstance(value, dict) else "json"
    body = value if isinstance(value, dict) else {"value": value}
    return ContentPart(raw=RawContent(type=kind, json=json.dumps(body, ensure_ascii=False)))


def _text(text: str) -> ContentPart:
    return ContentPart(text=TextContent(text=text))


def _time(metadata: dict[str, str], microseconds: int) -> bool:
    if not _FIRST_MICROSECOND <= microseconds <= _LAST_MICROSECOND:
        return False
    time = Timestamp()
    time.FromMicroseconds(microseconds)
    metadata[f"{PREFIX}created_at"] = time.ToJsonString()
    return True


def _id(text: str, kind: str) -> str:
    return text if _ID.fullmatch(text) else f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _cut(text: str, most: int) -> str:
    if len(text.encode()) <= most:
        return text
    return text.encode()[: most - len("…".encode())].decode(errors="ignore") + "…"
