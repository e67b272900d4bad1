"""goose's sessions, as its export and the row of its SQLite file hold them, and the contract's sessions.

The session's `extra_json` holds the whole original. What is written starts from it; a field that has another value in
the mesh than the original gave it was changed here, and is written as it is here.
"""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cli.transcripts import MESSAGE_ID, dump
from gaggle.agent.v1.session_pb2 import Session, UsageEntry, UsageTotals
from gaggle.conversation.v1.message_pb2 import TokenUsage

Row = dict[str, Any]

_DIALECT = "goose"
# What a column holds where nobody has set it.
_DEFAULTS: Row = {
    "name": "",
    "description": "",
    "user_set_name": 0,
    "session_type": "user",
    "extension_data": {},
    "goose_mode": "auto",
}
_MAX_NAME_BYTES = 1024
_MAX_PATH_BYTES = 4096
_MAX_TYPE_BYTES = 64
# goose's name of a sum, its column, the contract's field.
_TOKENS = (
    ("input_tokens", "input_tokens", "input_tokens"),
    ("output_tokens", "output_tokens", "output_tokens"),
    ("total_tokens", "total_tokens", "total_tokens"),
    ("cache_read_input_tokens", "cache_read_tokens", "cache_read_input_tokens"),
    ("cache_write_input_tokens", "cache_write_tokens", "cache_write_input_tokens"),
)
_JSON_COLUMNS = {
    "extension_data": "extension_data",
    "recipe_json": "recipe",
    "user_recipe_values_json": "user_recipe_values",
    "model_config_json": "model_config",
}
_TIME_COLUMNS = ("created_at", "updated_at", "archived_at")
_PLAIN_COLUMNS = (
    *("id", "name", "session_type", "working_dir", "accumulated_cost", "schedule_id", "provider_name"),
    *("goose_mode", "project_id", "parent_session_id"),
)


@dataclass(frozen=True)
class Fields:
    """What the contract's session has fields for."""

    name: str = ""
    working_dir: str = ""
    session_type: str = "user"
    last_usage: UsageTotals = field(default_factory=UsageTotals)
    accumulated_usage: UsageTotals = field(default_factory=UsageTotals)

    @classmethod
    def of(cls, session: Session) -> "Fields":
        """As they are in the mesh; calls of models are ours to count."""
        sums = UsageTotals(), UsageTotals()
        for made, there in zip(sums, (session.last_usage, session.accumulated_usage), strict=True):
            made.CopyFrom(there)
            made.model_calls = 0
        # What the newest turn cost is in the sum; goose keeps no such number.
        sums[0].cost = 0
        return cls(session.name, session.working_dir, session.session_type or "user", sums[0], sums[1])


def fields_of_row(row: Row) -> Fields:
    """The fields of a row of `sessions`."""
    return Fields(
        name=_shortened(row.get("name") or row.get("description"), _MAX_NAME_BYTES),
        working_dir=_shortened(row.get("working_dir"), _MAX_PATH_BYTES),
        session_type=_shortened(row.get("session_type") or "user", _MAX_TYPE_BYTES),
        last_usage=_totals({ours: row.get(column) for _, column, ours in _TOKENS}),
        accumulated_usage=_totals(
            {ours: row.get(f"accumulated_{column}") for _, column, ours in _TOKENS}, row.get("accumulated_cost")
        ),
    )


def fields_of_export(export: Row) -> Fields:
    """The fields of an export; older ones have sums of tokens beside each other instead of in `usage`."""
    usage, accumulated = export.get("usage"), export.get("accumulated_usage")
    flat = {ours: export.get(theirs, export.get(column)) for theirs, column, ours in _TOKENS}
    flat_sums = {ours: export.get(f"accumulated_{column}") for _, column, ours in _TOKENS}
    return Fields(
        name=_shortened(export.get("name") or export.get("description"), _MAX_NAME_BYTES),
        working_dir=_shortened(export.get("working_dir"), _MAX_PATH_BYTES),
        session_type=_shortened(export.get("session_type") or "user", _MAX_TYPE_BYTES),
        last_usage=_totals({o: usage.get(t) for t, _, o in _TOKENS} if isinstance(usage, dict) else flat),
        accumulated_usage=_totals(
            {o: accumulated.get(t) for t, _, o in _TOKENS} if isinstance(accumulated, dict) else flat_sums,
            export.get("accumulated_cost"),
        ),
    )


def extra_of_row(row: Row) -> str:
    """What Session.extra_json holds of a row."""
    return _extra("columns", {name: value for name, value in row.items() if value is not None})


def extra_of_export(export: Row) -> str:
    """What Session.extra_json holds of an export: all but the conversation."""
    return _extra("export", {name: value for name, value in export.items() if name != "conversation"})


def row_of(session: Session) -> Row:
    """The row that a session stands for; columns without a value are left out."""
    notes = _notes(session)
    columns = notes.get("columns")
    if isinstance(columns, dict):
        row, origin = dict(columns), fields_of_row(columns)
    else:
        export = notes.get("export")
        row = _row_of_export(export) if isinstance(export, dict) else {}
        origin = fields_of_row(row)
        row.setdefault("created_at", _sqlite_time(session.create_time.ToDatetime(UTC)))
        row.setdefault("extension_data", "{}")
        row.setdefault("goose_mode", "auto")
    now = Fields.of(session)
    # A row whose id is none of ours lies under another one in the mesh.
    row["id"] = row["id"] if isinstance(columns, dict) and "id" in row else session.id
    if now.name != origin.name:
        row["name"] = now.name
    if now.working_dir != origin.working_dir or "working_dir" not in row:
        row["working_dir"] = now.working_dir
    if now.session_type != origin.session_type or "session_type" not in row:
        row["session_type"] = now.session_type
    for prefix, ours, theirs in (
        ("", now.last_usage, origin.last_usage),
        ("accumulated_", now.accumulated_usage, origin.accumulated_usage),
    ):
        for _, column, name in _TOKENS:
            if getattr(ours, name) != getattr(theirs, name):
                row[prefix + column] = getattr(ours, name)
    if now.accumulated_usage.cost != origin.accumulated_usage.cost:
        row["accumulated_cost"] = now.accumulated_usage.cost
    return row


def export_of(session: Session, conversation: list[dict[str, Any]]) -> Row:
    """The export that a session stands for."""
    notes = _notes(session)
    export = notes.get("export")
    if isinstance(export, dict):
        made, origin = dict(export), fields_of_export(export)
    else:
        made = _export_of_row(row_of(session))
        origin = Fields.of(session)
    now = Fields.of(session)
    made["id"] = session.id
    name_key = "name" if "name" in made or "description" not in made else "description"
    if now.name != origin.name:
        made[name_key] = now.name
    if now.working_dir != origin.working_dir:
        made["working_dir"] = now.working_dir
    if now.session_type != origin.session_type:
        made["session_type"] = now.session_type
    for key, ours, theirs in (
        ("usage", now.last_usage, origin.last_usage),
        ("accumulated_usage", now.accumulated_usage, origin.accumulated_usage),
    ):
        if _tokens(ours) != _tokens(theirs):
            made[key] = _tokens(ours)
    if now.accumulated_usage.cost != origin.accumulated_usage.cost:
        made["accumulated_cost"] = now.accumulated_usage.cost
    _derive(made, conversation)
    made["conversation"] = conversation
    return made


def new_export(row: Row, conversation: list[dict[str, Any]]) -> Row:
    """The export of a row and its messages, as goose writes it."""
    made = _export_of_row(row)
    _derive(made, conversation)
    made["conversation"] = conversation
    return made


def same_session(one: Row, other: Row) -> list[str]:
    """The columns in which two rows differ, their values' JSON apart from how it is written.

    `updated_at` is not compared: each side writes it by its own clock.
    """
    names = (one.keys() | other.keys()) - {"updated_at"}
    return sorted(name for name in names if _value(name, one.get(name)) != _value(name, other.get(name)))


def canonical(row: Row) -> Row:
    """A row as it is compared."""
    compared = {name: _value(name, value) for name, value in sorted(row.items()) if name != "updated_at"}
    return {name: value for name, value in compared.items() if value is not None}


def usage_entry(line: Row) -> UsageEntry:
    """A row of `usage_ledger` as a line to import."""
    usage = TokenUsage()
    for _, column, ours in _TOKENS:
        if isinstance(line.get(column), int):
            setattr(usage, ours, line[column])
    if isinstance(line.get("cost"), int | float):
        usage.cost = line["cost"]
    entry = UsageEntry(
        source_id=line["id"],
        model=_shortened(line.get("model"), 256),
        usage=usage,
        is_compaction=bool(line.get("is_compaction")),
        cost_source=_shortened(line.get("cost_source"), _MAX_TYPE_BYTES),
    )
    created = line.get("created_timestamp")
    seconds = int(created) if isinstance(created, int) else 0
    # As with messages: what is too large for seconds is milliseconds.
    seconds = seconds // 1000 if seconds > 10_000_000_000 else seconds  # noqa: PLR2004
    entry.time.FromSeconds(max(seconds, 1))
    return entry


def ledger_line(entry: UsageEntry) -> Row:
    """A line of the mesh's ledger as a row of `usage_ledger`, without id and session."""
    usage: Any = entry.usage
    made: Row = {"created_timestamp": entry.time.seconds, "model": entry.model or None}
    for _, column, ours in _TOKENS:
        made[column] = getattr(usage, ours) if usage.HasField(ours) else None
    made["cost"] = usage.cost if usage.HasField("cost") else None
    made["cost_source"] = entry.cost_source or None
    made["is_compaction"] = int(entry.is_compaction)
    return made


def new_session_id(identity: Any) -> str:
    """A goose id as one of ours; empty if it can't be."""
    return identity if isinstance(identity, str) and MESSAGE_ID.fullmatch(identity) else ""


# -- between the two shapes


def _export_of_row(row: Row) -> Row:
    made: Row = {name: row.get(name) for name in _PLAIN_COLUMNS}
    made["name"] = row.get("name") or row.get("description") or ""
    made["user_set_name"] = bool(row.get("user_set_name"))
    for name in _TIME_COLUMNS:
        made[name] = _export_time(row.get(name))
    for column, name in _JSON_COLUMNS.items():
        made[name] = _loads(row.get(column))
    made["extension_data"] = made["extension_data"] or {}
    made["goose_mode"] = row.get("goose_mode") or "auto"
    made["usage"] = {theirs: row.get(column) for theirs, column, _ in _TOKENS}
    made["accumulated_usage"] = {theirs: row.get(f"accumulated_{column}") for theirs, column, _ in _TOKENS}
    return made


def _row_of_export(export: Row) -> Row:
    row: Row = {name: export.get(name) for name in _PLAIN_COLUMNS}
    row["name"] = export.get("name") or export.get("description") or ""
    row["user_set_name"] = int(export.get("user_set_name") is True)
    for name in _TIME_COLUMNS:
        row[name] = export.get(name)
    for column, name in _JSON_COLUMNS.items():
        row[column] = dump(export[name]) if export.get(name) is not None else None
    fields = fields_of_export(export)
    for prefix, totals in (("", fields.last_usage), ("accumulated_", fields.accumulated_usage)):
        for _, column, ours in _TOKENS:
            row[prefix + column] = getattr(totals, ours) or None
    return {name: value for name, value in row.items() if value is not None}


def _derive(made: Row, conversation: list[dict[str, Any]]) -> None:
    """What goose counts anew in each export; one that an old export has not stays away."""
    visible = sum((one.get("metadata") or {}).get("userVisible", True) is not False for one in conversation)
    times = [one["created"] for one in conversation if isinstance(one.get("created"), int)]
    newest = max((one // 1000 if one > 10_000_000_000 else one for one in times), default=None)  # noqa: PLR2004
    if made.get("message_count") != len(conversation):
        made["message_count"] = visible
    if newest is not None and _seconds_of(made.get("last_message_at")) != newest:
        made["last_message_at"] = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    made.setdefault("last_message_at", None)
    made.setdefault("last_message_snippet", None)


def _seconds_of(text: Any) -> int | None:
    try:
        return int(datetime.fromisoformat(text).timestamp()) if isinstance(text, str) else None
    except ValueError:
        return None


def _export_time(text: Any) -> Any:
    """SQLite's `2026-02-28 12:00:00` (UTC) as RFC 3339."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat().replace("+00:00", "Z")


def _sqlite_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _totals(tokens: Row, cost: Any = None) -> UsageTotals:
    totals = UsageTotals()
    for name, value in tokens.items():
        if isinstance(value, int) and not isinstance(value, bool):
            setattr(totals, name, value)
    if isinstance(cost, int | float):
        totals.cost = cost
    return totals


def _tokens(totals: UsageTotals) -> Row:
    return {theirs: getattr(totals, ours) or None for theirs, _, ours in _TOKENS}


def _shortened(value: Any, most: int) -> str:
    if not isinstance(value, str):
        return ""
    return value.encode(errors="replace")[:most].decode(errors="ignore")


def _extra(shape: str, value: Row) -> str:
    return dump({_DIALECT: {shape: value}}, separators=(",", ":"))


def _notes(session: Session) -> Row:
    try:
        own = json.loads(session.extra_json or "{}").get(_DIALECT)
    except (ValueError, AttributeError):
        return {}
    return own if isinstance(own, dict) else {}


def _loads(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _value(name: str, value: Any) -> Any:
    """A column's value as it is compared: JSON by what it says, flags as numbers, a default like no value."""
    if name in _JSON_COLUMNS and isinstance(value, str):
        value = _loads(value) if _loads(value) is not None else value
    if isinstance(value, bool):
        value = int(value)
    return None if name in _DEFAULTS and value == _DEFAULTS[name] else value
