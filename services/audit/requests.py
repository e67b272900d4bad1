"""What callers ask for, checked, and narrowed to what they may see."""

import json
from collections.abc import Mapping
from typing import Any

from gaggle.audit.v1 import audit_service_pb2 as api
from services.runtime.errors import InvalidArgumentError, PermissionDeniedError
from services.runtime.identity import Caller

_MAX_EVENT_TYPES = 32
_MAX_METADATA_FILTERS = 8
_MAX_QUERY_BYTES = 1024
_COUNTED_BY = {
    api.COUNT_BY_UNSPECIFIED: "event_type",
    api.COUNT_BY_EVENT_TYPE: "event_type",
    api.COUNT_BY_ENTITY_TYPE: "entity_type",
    api.COUNT_BY_HOUR: "hour",
}


def event_filter(caller: Caller, asked: api.EventFilter) -> dict[str, Any]:
    """Write a filter as goose.matching_events takes it; but for an admin, only the caller's own events match it.

    Raises InvalidArgumentError.
    """
    if len(asked.event_types) > _MAX_EVENT_TYPES:
        raise InvalidArgumentError({"filter.event_types": f"at most {_MAX_EVENT_TYPES}"})
    chosen: dict[str, Any] = {}
    for name in ("user_id", "entity_type", "entity_id"):
        value = getattr(asked, name)
        if value:
            chosen[name] = storable(f"filter.{name}", value)
    if asked.event_types:
        chosen["event_types"] = sorted({storable("filter.event_types", one) for one in asked.event_types})
    for name in ("start_time", "end_time"):
        if asked.HasField(name):  # type: ignore[arg-type]
            chosen[name] = _time(f"filter.{name}", getattr(asked, name))
    if not caller.is_admin:
        chosen["only_user_id"] = caller.user_id
    return chosen


def filter_scope(chosen: Mapping[str, Any]) -> str:
    """Give what makes a page token good for this list alone."""
    return json.dumps(chosen, sort_keys=True)


def user_of(caller: Caller, named: str) -> str:
    """Give whose rows are meant. Raises PermissionDeniedError if a user names another."""
    if named and named != caller.user_id and not caller.is_admin:
        raise PermissionDeniedError("another user's data needs the role 'admin'", metadata={"role": "admin"})
    return storable("user_id", named or caller.user_id)


def counted_by(by: int) -> str:
    """Give what to count by. Raises InvalidArgumentError."""
    if by not in _COUNTED_BY:
        raise InvalidArgumentError({"by": "is not known"})
    return _COUNTED_BY[api.CountBy.ValueType(by)]


def search_query(query: str) -> str:
    """Check a search. Raises InvalidArgumentError."""
    if not 0 < len(query.encode()) <= _MAX_QUERY_BYTES:
        raise InvalidArgumentError({"query": f"must be 1 to {_MAX_QUERY_BYTES} bytes"})
    return storable("query", query)


def metadata_filter(metadata: Mapping[str, str]) -> dict[str, str] | None:
    """Check a filter by metadata; None if there is none. Raises InvalidArgumentError."""
    if len(metadata) > _MAX_METADATA_FILTERS:
        raise InvalidArgumentError({"metadata": f"at most {_MAX_METADATA_FILTERS} entries"})
    return {storable("metadata", name): storable("metadata", value) for name, value in metadata.items()} or None


def storable(field: str, value: str) -> str:
    """Refuse what no text of the database can hold. Raises InvalidArgumentError."""
    if "\0" in value:
        raise InvalidArgumentError({field: "must not hold U+0000"})
    return value


def _time(field: str, value: Any) -> str:
    try:
        return str(value.ToJsonString())
    except ValueError as error:
        raise InvalidArgumentError({field: "is no valid time"}) from error
