"""Rows of the read model as messages of the contracts."""

import base64
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.audit.v1 import audit_service_pb2 as api
from gaggle.common.v1 import event_pb2
from gaggle.conversation.v1 import conversation_pb2

Row = dict[str, Any]


def timestamp(text: str | None) -> Timestamp | None:
    """Read a time as PostgreSQL writes it in JSON."""
    if text is None:
        return None
    moment = Timestamp()
    moment.FromJsonString(text)
    return moment


def log_entry(row: Row) -> api.LogEntry:
    """Shape a row of goose.events."""
    event = event_pb2.Event(
        event_id=row["event_id"],
        event_type=row["event_type"],
        entity_type=row["entity_type"],
        entity_id=row["entity_id"],
        user_id=row["user_id"],
        timestamp=timestamp(row["timestamp"]),
        revision=row["revision"],
        part=row["part"],
        parts=row["parts"],
        incarnation=row["incarnation"],
        metadata=row["metadata"],
    )
    event.data.update(row["data"])
    return api.LogEntry(position=row["position"], topic=row["topic"], event=event, log_time=timestamp(row["log_time"]))


def count(row: Row) -> api.EventCount:
    """Shape a count."""
    return api.EventCount(key=row["key"], hour=timestamp(row["hour"]), count=row["count"])


def hit(row: Row) -> api.SearchHit:
    """Shape a find."""
    return api.SearchHit(
        conversation_id=row["conversation_id"],
        sequence=row["sequence"],
        message_id=row["message_id"],
        snippet=row["snippet"],
        rank=row["rank"],
        create_time=timestamp(row["create_time"]),
    )


def conversation(row: Row) -> conversation_pb2.Conversation:
    """Shape a row of goose.conversations."""
    shaped = conversation_pb2.Conversation(
        id=row["id"],
        title=row["title"],
        metadata=row["metadata"],
        create_time=timestamp(row["created_at"]),
        update_time=timestamp(row["updated_at"]),
        etag=str(row["revision"]),
        last_sequence=row["last_sequence"],
        message_count=row["message_count"],
        first_sequence=row["first_sequence"],
        fence=row["fence"],
        summary_sequence=row["summary_sequence"],
    )
    if row["max_messages"] or row["ttl_seconds"] is not None:
        shaped.retention.max_messages = row["max_messages"]
        if row["ttl_seconds"] is not None:
            ttl = Duration()
            ttl.FromNanoseconds(int(row["ttl_seconds"] * 1e9))
            shaped.retention.ttl.CopyFrom(ttl)
    if row["forked_from_id"] is not None:
        shaped.forked_from.conversation_id = row["forked_from_id"]
        shaped.forked_from.sequence = row["forked_from_sequence"] or 0
    return shaped


def dead_letter(row: Row) -> api.DeadLetter:
    """Shape a row of goose.dead_letters."""
    return api.DeadLetter(
        position=row["position"],
        topic=row["topic"],
        event_id=row["event_id"],
        error=row["error"],
        payload=base64.b64decode(row["payload"]),
        log_time=timestamp(row["log_time"]),
    )
