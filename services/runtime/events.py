"""Typed events, as they go on the wire.

An event is `gaggle.common.v1.Event` in proto3 JSON. It is built as the JSON itself, since a commit does that on the
path of a conversation and the protobuf library's JSON printer costs ten times as much; a test holds the two together.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gaggle.runtime.state.v1 import document_pb2
from services.runtime.topics import SNAKE_CASE_TOPICS


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit did to one entity; the events that tell of it share this."""

    entity_type: str
    entity_id: str
    user_id: str
    revision: int
    incarnation: int
    time: datetime
    """By the owner's clock, UTC."""

    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Telling:
    """One of the events of a change, where the topic alone does not say what happened."""

    topic: str
    event_type: str
    """What it is on that topic, for example "task.created"."""

    data: Mapping[str, Any]
    """The typed payload in proto3 JSON, in the spelling of its topic."""


def build_events(
    change: Change, payloads: Mapping[str, Mapping[str, Any]] | Sequence[Telling], *, id_prefix: str = ""
) -> list[document_pb2.OutboxEvent]:
    """Build the events of one change: topic to typed payload in proto3 JSON, published in that order.

    On a topic with events of several types each is given as a Telling. Ids are derived from user, entity, incarnation,
    revision and part, so that building them again gives the same ones; an entity that keeps no revisions needs an
    `id_prefix` of its own.
    """
    if not id_prefix:
        # Two users may have an entity of one id; a digest keeps the id short and the user's name out of it.
        owner = hashlib.blake2b(change.user_id.encode(), digest_size=6).hexdigest()
        id_prefix = f"{change.entity_type}.{owner}.{change.entity_id}.{change.incarnation}.{change.revision}"
    ordering_key = f"{change.entity_type}:{change.user_id}:{change.entity_id}"
    told = payloads
    if isinstance(told, Mapping):
        told = [Telling(topic, topic, data) for topic, data in told.items()]
    events = []
    for part, one in enumerate(told, start=1):
        event_id = f"{id_prefix}.{part}"
        body = envelope(change, one.topic, event_id, one.data, event_type=one.event_type, part=part, parts=len(told))
        events.append(
            document_pb2.OutboxEvent(
                topic=one.topic,
                event_id=event_id,
                ordering_key=ordering_key,
                payload=body,
                traceparent=change.traceparent,
            )
        )
    return events


def envelope(
    change: Change,
    topic: str,
    event_id: str,
    data: Mapping[str, Any],
    *,
    event_type: str = "",
    part: int = 1,
    parts: int = 1,
) -> bytes:
    """Write one event as JSON, in the spelling of its topic; `event_type` is the topic's name unless given."""
    fields: dict[str, Any] = {
        "eventId": event_id,
        "eventType": event_type or topic,
        "entityType": change.entity_type,
        "entityId": change.entity_id,
        "userId": change.user_id,
        "timestamp": json_time(change.time),
        "revision": str(change.revision),
        "part": part,
        "parts": parts,
        "incarnation": change.incarnation,
        "data": data,
    }
    if change.traceparent:
        fields["metadata"] = {"traceparent": change.traceparent}
    if topic in SNAKE_CASE_TOPICS:
        fields = {_snake(name): value for name, value in fields.items()}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def json_time(moment: datetime) -> str:
    """Write a time as proto3 JSON does: RFC 3339 in UTC, with Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
