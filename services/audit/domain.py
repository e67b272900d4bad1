"""What an event is, as read from a topic, and what is searched for in a message."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from gaggle.conversation.v1 import message_pb2
from services.runtime import topics

MAX_EVENT_BYTES = 2 * 1024 * 1024
"""A larger event is not kept."""

MAX_DEAD_LETTER_BYTES = 64 * 1024
"""What is kept of an event that could not be read."""

MAX_TEXT_BYTES = 256 * 1024
"""What is searched of one message: its first so many bytes."""

# Readers get data as google.protobuf.Struct, three messages a level, and parsers stop at a hundred.
_MAX_DEPTH = 30
_MAX_ID_BYTES = 512
_MAX_COUNT = 2**31 - 1
# goose.number() reads 15 digits, and JSON's doubles hold them all.
_MAX_REVISION = 10**15 - 1
_MILLISECONDS_FROM = 1e10

_OWNED = (
    topics.MESSAGE_SENT,
    topics.MESSAGE_RECEIVED,
    topics.CONVERSATION_CREATED,
    topics.CONVERSATION_UPDATED,
    topics.CONVERSATION_DELETED,
    topics.USER_ERASED,
    topics.USER_ERASURE_COMPLETED,
)
OPEN_TOPICS = frozenset(topics.ALL_TOPICS) - frozenset(_OWNED)
"""Topics that other applications may publish on; the rest tell of what a service of the mesh alone can know."""

_ENVELOPE = frozenset(
    {
        "eventId", "event_id", "eventType", "event_type", "entityType", "entity_type", "entityId", "entity_id",
        "userId", "user_id", "timestamp", "revision", "part", "parts", "incarnation", "data", "metadata",
    }
)  # fmt: skip

# Publishers without our envelope name the thing by its kind: {"event_type": "task.created", "task_id": 7}.
_ENTITY_OF_PREFIX = (
    ("goose.agent.message.", "conversation"),
    ("goose.agent.session.", "session"),
    ("goose.agent.tool.", "tool"),
    ("goose.conversation.", "conversation"),
    ("goose.recipe.started", "execution"),
    ("goose.recipe.completed", "execution"),
    ("goose.recipe.failed", "execution"),
    ("goose.recipe.cancelled", "execution"),
    ("goose.recipe.paused", "execution"),
    ("goose.recipe.resumed", "execution"),
    ("goose.recipe.step.", "execution"),
    ("goose.recipe.", "recipe"),
    ("goose.extension.", "extension"),
    ("goose.user.", "user"),
    (topics.TASK_EVENTS, "task"),
    (topics.REMINDERS, "reminder"),
    (topics.NOTIFICATIONS, "notification"),
)


class UnreadableEventError(Exception):
    """What came by a topic is no event; the text says why."""


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One event, as the log takes it."""

    event_id: str
    topic: str
    event_type: str
    entity_type: str
    entity_id: str
    user_id: str
    timestamp: str
    """RFC 3339, UTC."""

    revision: int
    incarnation: int
    part: int
    parts: int
    data: dict[str, Any]
    metadata: dict[str, str]

    def as_row(self) -> dict[str, Any]:
        """Give it as goose.append_events takes it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What came by a topic and could not be read."""

    topic: str
    event_id: str
    user_id: str
    """Whom it seems to be about; empty if that can't be told."""

    error: str
    payload: bytes
    """At most MAX_DEAD_LETTER_BYTES."""


def read_event(topic: str, cloud_event_id: str, payload: bytes, received: datetime) -> LoggedEvent:
    """Read an event in either spelling; what it does not say is taken from its topic, CloudEvent and arrival.

    Raises UnreadableEventError.
    """
    body = _read_object(payload)
    event_type = _text(body, "event_type", "eventType") or topic
    entity_type = _text(body, "entity_type", "entityType") or _entity_type(topic)
    data = body.get("data")
    if data is None:
        data = {name: value for name, value in body.items() if name not in _ENVELOPE}
    if not isinstance(data, dict):
        raise UnreadableEventError("data: must be an object")
    entity_id = _text(body, "entity_id", "entityId") or _named_id(entity_type, body) or _named_id(entity_type, data)
    event_id = _text(body, "event_id", "eventId") or cloud_event_id
    if not event_id:
        raise UnreadableEventError("event_id: there is none, and the CloudEvent has no id either")
    return LoggedEvent(
        event_id=_clean_id("event_id", event_id),
        topic=topic,
        event_type=event_type,
        entity_type=entity_type,
        entity_id=entity_id,
        user_id=_text(body, "user_id", "userId") or _text(data, "user_id", "userId"),
        timestamp=_time(body.get("timestamp"), received),
        revision=_count(body, "revision", _MAX_REVISION),
        incarnation=_count(body, "incarnation", _MAX_COUNT),
        part=_count(body, "part", _MAX_COUNT),
        parts=_count(body, "parts", _MAX_COUNT),
        data=data,
        metadata=_metadata(body.get("metadata")),
    )


def dead_letter(topic: str, cloud_event_id: str, payload: bytes, error: str) -> DeadLetter:
    """Keep what could not be read, with the user it seems to be about, so that an erasure finds it."""
    user_id = ""
    try:
        body = json.loads(payload)
        user_id = _text(body, "user_id", "userId")
    except (ValueError, RecursionError, UnreadableEventError, AttributeError):
        pass
    return DeadLetter(topic, _printable(cloud_event_id), user_id, _printable(error), payload[:MAX_DEAD_LETTER_BYTES])


def _read_object(payload: bytes) -> dict[str, Any]:
    if len(payload) > MAX_EVENT_BYTES:
        raise UnreadableEventError(f"is {len(payload)} bytes, the limit is {MAX_EVENT_BYTES}")
    try:
        body = json.loads(payload, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise UnreadableEventError(f"is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise UnreadableEventError("must be a JSON object")
    if _deeper_than(body, _MAX_DEPTH):
        raise UnreadableEventError(f"is nested deeper than {_MAX_DEPTH} levels")
    # PostgreSQL's text holds neither U+0000 nor half of a surrogate pair; JSON can write both, in escapes alone.
    lowered = payload.lower()
    if b"\\u0000" in lowered or b"\\ud" in lowered:
        cleaned = _printable_all(body)
        assert isinstance(cleaned, dict)
        return cleaned
    return body


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text} is too large a number")
    return number


def _whole(text: str) -> int:
    # Readers get data as google.protobuf.Struct, whose numbers are doubles.
    _finite(text)
    return int(text)


def _deeper_than(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper_than(one, levels - 1) for one in inner if isinstance(one, dict | list))


def _printable_all(value: Any) -> Any:
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, list):
        return [_printable_all(one) for one in value]
    if isinstance(value, dict):
        return {_printable(name): _printable_all(one) for name, one in value.items()}
    return value


def _printable(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text(body: dict[str, Any], *names: str) -> str:
    for name in names:
        value = body.get(name)
        if value is None or value == "":
            continue
        # Ids are numbers where a publisher counts its rows.
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise UnreadableEventError(f"{name}: must be a string")
        return _clean_id(name, str(value))
    return ""


def _clean_id(name: str, value: str) -> str:
    if len(value.encode(errors="replace")) > _MAX_ID_BYTES:
        raise UnreadableEventError(f"{name}: is longer than {_MAX_ID_BYTES} bytes")
    return _printable(value)


def _entity_type(topic: str) -> str:
    return next((kind for prefix, kind in _ENTITY_OF_PREFIX if topic.startswith(prefix)), "")


def _named_id(entity_type: str, body: dict[str, Any]) -> str:
    return _text(body, f"{entity_type}_id", f"{entity_type}Id") if entity_type else ""


def _count(body: dict[str, Any], name: str, most: int) -> int:
    value = body.get(name, 0)
    # proto3 JSON writes 64-bit numbers as strings.
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:  # noqa: PLR2004 - digits
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise UnreadableEventError(f"{name}: must be a whole number from 0 to {most}")
    return value


def _time(value: Any, received: datetime) -> str:
    try:
        if value is None or value == "":
            moment = received
        elif isinstance(value, str):
            moment = datetime.fromisoformat(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            moment = datetime.fromtimestamp(value / 1000 if value > _MILLISECONDS_FROM else value, UTC)
        else:
            raise UnreadableEventError("timestamp: must be a time in RFC 3339")
        # Without a zone it is UTC: so do publishers that print datetime.utcnow().
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (ValueError, OverflowError, OSError) as error:
        raise UnreadableEventError(f"timestamp: {error}") from error


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UnreadableEventError("metadata: must be an object")
    return {name: one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for name, one in value.items()}


def message_text(message: message_pb2.Message) -> str:
    """Give what a person would search for in a message: what was said, asked of tools and answered by them.

    Hidden reasoning is left out, and so is what is no text.
    """
    text = "\n".join(piece for piece in _pieces(message.content) if piece)
    return _printable(text.encode()[:MAX_TEXT_BYTES].decode(errors="ignore"))


def _pieces(content: Iterable[message_pb2.ContentPart]) -> Iterator[str]:
    for part in content:
        kind = part.WhichOneof("kind")
        if kind == "text":
            yield part.text.text
        elif kind == "tool_request":
            yield part.tool_request.call.name
            yield part.tool_request.call.arguments_json
        elif kind == "tool_response":
            yield part.tool_response.error
            yield from _pieces(part.tool_response.result.content)
        elif kind == "tool_confirmation_request":
            yield part.tool_confirmation_request.tool_name
            yield part.tool_confirmation_request.prompt
        elif kind == "system_notification":
            yield part.system_notification.message
        elif kind == "summary":
            yield part.summary.text
