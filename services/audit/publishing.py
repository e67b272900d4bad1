"""Publishes typed events for applications that have no service in the mesh."""

import json
import re
from collections.abc import Mapping
from typing import Protocol

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.common.v1 import error_reason_pb2, event_pb2
from services.audit.domain import OPEN_TOPICS
from services.runtime import topics
from services.runtime.errors import InvalidArgumentError, PermissionDeniedError, TooLargeError
from services.runtime.identity import Caller
from services.runtime.ids import new_id

MAX_EVENT_BYTES = 1024 * 1024
_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_NAME_BYTES = 256
# Kinds whose revisions a service here counts: nobody else may tell of one, or a gap would look closed.
_OWNED_ENTITIES = frozenset({"conversation", "user"})


class Publisher(Protocol):
    """Publishes JSON: `services.runtime.sidecar.Sidecar`."""

    async def publish(self, pubsub: str, topic: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Raise UnavailableError if it may not have reached the broker."""
        ...


class EventPublisher:
    """Checks an event, completes it and hands it to the broker."""

    def __init__(self, publisher: Publisher, pubsub: str) -> None:
        """`pubsub` is the component."""
        self._publisher = publisher
        self._pubsub = pubsub

    async def publish(self, caller: Caller, event: event_pb2.Event, topic: str) -> str:
        """Publish for a caller and give the event's id. Raises InvalidArgumentError, PermissionDeniedError."""
        topic = topic or event.event_type
        check(caller, event, topic)
        body = encode(complete(caller, event, topic), topic)
        if len(body) > MAX_EVENT_BYTES:
            raise TooLargeError("the event in JSON", size=len(body), limit=MAX_EVENT_BYTES)
        await self._publisher.publish(self._pubsub, topic, body, {"cloudevent.id": event.event_id})
        return event.event_id


def check(caller: Caller, event: event_pb2.Event, topic: str) -> None:
    """Refuse what may not be published. Raises InvalidArgumentError, PermissionDeniedError."""
    violations: dict[str, str] = {}
    if topic not in topics.ALL_TOPICS:
        violations["topic"] = f"{topic!r} is no topic of this mesh"
    if not event.event_type:
        violations["event.event_type"] = "must be set"
    if event.event_id and not _EVENT_ID.fullmatch(event.event_id):
        violations["event.event_id"] = "must match [A-Za-z0-9_-]{1,64}"
    for name in ("event_type", "entity_type", "entity_id", "user_id"):
        value = getattr(event, name)
        if len(value.encode()) > _MAX_NAME_BYTES or "\0" in value:
            violations[f"event.{name}"] = f"at most {_MAX_NAME_BYTES} bytes, without U+0000"
    if event.revision and event.entity_type in _OWNED_ENTITIES:
        violations["event.revision"] = f"is counted by the owner of each {event.entity_type} alone"
    if violations:
        raise InvalidArgumentError(violations)
    if topic not in OPEN_TOPICS:
        raise PermissionDeniedError(
            f"events of {topic} come from the mesh's own services alone",
            reason=error_reason_pb2.ERROR_REASON_SERVICE_NOT_ALLOWED,
            metadata={"topic": topic},
        )
    if event.user_id and event.user_id != caller.user_id and not caller.is_admin:
        raise PermissionDeniedError("another user's event needs the role 'admin'", metadata={"role": "admin"})


def complete(caller: Caller, event: event_pb2.Event, topic: str) -> event_pb2.Event:
    """Fill in what the publisher left out; gives the same event."""
    event.event_id = event.event_id or new_id()
    event.user_id = event.user_id or caller.user_id
    event.event_type = event.event_type or topic
    if not event.HasField("timestamp"):
        now = Timestamp()
        now.GetCurrentTime()
        event.timestamp.CopyFrom(now)
    return event


def encode(event: event_pb2.Event, topic: str) -> bytes:
    """Write an event as its topic's subscribers read it; the same event gives the same bytes."""
    try:
        body = json_format.MessageToDict(event, preserving_proto_field_name=topic in topics.SNAKE_CASE_TOPICS)
    except (json_format.Error, ValueError) as error:
        raise InvalidArgumentError({"event": f"can't be written as JSON: {error}"}) from error
    return json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
