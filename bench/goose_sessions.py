"""Makes a session database as goose keeps one, with sessions of mixed sizes: `python -m bench.goose_sessions FILE`.

The same seed gives the same sessions. Sizes are skewed as people's are: most sessions are a few messages, one in a
thousand has two thousand. All kinds of content that goose stores are there, and a line of usage for each answer.
"""

import argparse
import base64
import json
import random
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 17
_SCHEMA = """
CREATE TABLE schema_version (version INTEGER PRIMARY KEY, applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, name TEXT NOT NULL DEFAULT '', description TEXT NOT NULL DEFAULT '',
    user_set_name BOOLEAN DEFAULT FALSE, session_type TEXT NOT NULL DEFAULT 'user', working_dir TEXT NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    extension_data TEXT DEFAULT '{}', total_tokens INTEGER, input_tokens INTEGER, output_tokens INTEGER,
    cache_read_tokens INTEGER, cache_write_tokens INTEGER, accumulated_total_tokens INTEGER,
    accumulated_input_tokens INTEGER, accumulated_output_tokens INTEGER, accumulated_cache_read_tokens INTEGER,
    accumulated_cache_write_tokens INTEGER, accumulated_cost REAL, schedule_id TEXT, recipe_json TEXT,
    user_recipe_values_json TEXT, provider_name TEXT, model_config_json TEXT, goose_mode TEXT NOT NULL DEFAULT 'auto',
    archived_at TIMESTAMP, project_id TEXT, parent_session_id TEXT, parent_delegation TEXT
);
CREATE TABLE messages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, message_id TEXT, session_id TEXT NOT NULL REFERENCES sessions(id),
    role TEXT NOT NULL, content_json TEXT NOT NULL, created_timestamp INTEGER NOT NULL,
    timestamp TIMESTAMP DEFAULT CURRENT_TIMESTAMP, tokens INTEGER, metadata_json TEXT
);
CREATE TABLE usage_ledger (
    id INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
    created_timestamp INTEGER NOT NULL, model TEXT, input_tokens INTEGER, output_tokens INTEGER, total_tokens INTEGER,
    cache_read_tokens INTEGER, cache_write_tokens INTEGER, cost REAL, cost_source TEXT, is_compaction INTEGER DEFAULT 0
);
CREATE INDEX idx_messages_session ON messages(session_id);
CREATE INDEX idx_messages_timestamp ON messages(timestamp);
CREATE INDEX idx_messages_message_id ON messages(message_id);
CREATE INDEX idx_messages_session_created ON messages(session_id, created_timestamp, id);
CREATE INDEX idx_sessions_updated ON sessions(updated_at DESC);
CREATE INDEX idx_sessions_type ON sessions(session_type);
CREATE INDEX idx_sessions_parent ON sessions(parent_session_id);
CREATE INDEX idx_usage_ledger_session ON usage_ledger(session_id);
"""
_FIRST_SECOND = 1_767_225_600  # 2026-01-01
_LAST_SECOND = 1_772_323_200
# Share of sessions, and how many messages they have.
_SIZES = ((0.6, 2, 12), (0.9, 12, 40), (0.99, 40, 120), (0.999, 200, 600), (1.0, 2000, 2000))
_WORDS = (
    *("the", "kettle", "boils", "at", "nine", "while", "a", "sparrow", "waits", "outside", "of", "window", "and"),
    *("someone", "counts", "files", "that", "nobody", "opened", "since", "spring", "tests", "pass", "again", "slowly"),
)
_MODELS = (("tern-large", 3.0, 15.0), ("tern-small", 0.3, 1.2), ("local/plover", 0.0, 0.0))
_PIXEL = base64.b64encode(bytes(range(67))).decode()


def create(path: Path) -> sqlite3.Connection:
    """An empty database of goose's, open. Raises sqlite3.Error if the file is there already."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(_SCHEMA)
    connection.execute("INSERT INTO schema_version (version) VALUES (?)", [SCHEMA_VERSION])
    return connection


def make(path: Path, sessions: int, seed: int = 1, *, sizes: tuple[int, int] | None = None) -> tuple[int, int]:
    """Fill a new database; gives how many messages and ledger lines it has. `sizes`: least and most messages."""
    source = random.Random(seed)
    with create(path) as connection:
        for number in range(sessions):
            _session(connection, source, number, sessions, sizes)
    counts = [connection.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in ("messages", "usage_ledger")]  # noqa: S608
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return int(counts[0]), int(counts[1])


def _session(
    connection: sqlite3.Connection, source: random.Random, number: int, of: int, sizes: tuple[int, int] | None
) -> None:
    began = _FIRST_SECOND + (_LAST_SECOND - _FIRST_SECOND) * number // max(of, 1)
    identity = f"{_day(began)}_{number + 1}"
    draw = source.random()
    low, high = sizes or next((low, high) for share, low, high in _SIZES if draw <= share)
    model, input_price, output_price = source.choice(_MODELS)
    messages = list(_messages(source, identity, began, source.randint(low, high), model))
    row: dict[str, Any] = {
        "id": identity,
        "name": _text(source, 4, 8).capitalize(),
        "user_set_name": int(source.random() < 0.2),
        "session_type": source.choice(("user", "user", "user", "scheduled", "sub_agent", "terminal")),
        "working_dir": f"/home/somebody/{source.choice(_WORDS)}/{source.choice(_WORDS)}",
        "extension_data": json.dumps({"todo.v0": {"content": _text(source, 0, 30)}}),
        "provider_name": source.choice(("tern", "ollama")),
        "model_config_json": json.dumps({"model_name": model, "context_limit": 128_000, "temperature": None}),
        "goose_mode": source.choice(("auto", "approve", "smart_approve")),
    }
    if source.random() < 0.1:
        row["recipe_json"] = json.dumps({"version": "1.0.0", "title": row["name"], "description": _text(source, 5, 9)})
        row["user_recipe_values_json"] = json.dumps({"place": source.choice(_WORDS)})
    sums: dict[str, Any] = {}
    lines = []
    for message in messages:
        if message["role"] != "assistant":
            continue
        used = {"input_tokens": source.randint(50, 9000), "output_tokens": source.randint(5, 900)}
        used["total_tokens"] = sum(used.values())
        used["cache_read_tokens"] = source.choice((0, used["input_tokens"] // 2))
        cost = (used["input_tokens"] * input_price + used["output_tokens"] * output_price) / 1e6
        line = used | {"session_id": identity, "created_timestamp": message["created"], "model": model, "cost": cost}
        lines.append(line | {"cost_source": "estimated", "is_compaction": 0})
        for name, count in used.items():
            row[name] = count
            sums[f"accumulated_{name}"] = sums.get(f"accumulated_{name}", 0) + count
        sums["accumulated_cost"] = sums.get("accumulated_cost", 0.0) + cost
    row |= sums
    last = messages[-1]["created"] if messages else began
    row["created_at"], row["updated_at"] = _stamp(connection, began), _stamp(connection, last)
    _insert(connection, "sessions", row)
    for message in messages:
        _insert(
            connection,
            "messages",
            {
                "message_id": message["id"],
                "session_id": identity,
                "role": message["role"],
                "content_json": json.dumps(message["content"], ensure_ascii=False),
                "created_timestamp": message["created"],
                "metadata_json": json.dumps(message["metadata"]),
            },
        )
    for line in lines:
        _insert(connection, "usage_ledger", line)


def _messages(source: random.Random, session: str, began: int, count: int, model: str) -> Iterator[dict[str, Any]]:
    created = began
    call = ""
    compacted = source.randint(0, count) if source.random() < 0.1 else 0
    for number in range(count):
        created += source.choice((0, 1, 7, 40))
        assistant = number % 2 == 1
        content: list[dict[str, Any]] = []
        if call:
            content.append(_response(source, call))
            call = ""
        elif assistant and source.random() < 0.4:
            call = f"call_{session}_{number}"
            content += [{"type": "thinking", "thinking": _text(source, 5, 40), "signature": ""}] * source.randint(0, 1)
            content.append(_request(source, call))
        else:
            content.append({"type": "text", "text": _text(source, 3, 120)})
            if source.random() < 0.03:
                content.append({"type": "image", "data": _PIXEL, "mimeType": "image/png"})
            if source.random() < 0.02:
                told = {"type": "systemNotification", "notificationType": "inlineMessage", "msg": _text(source, 2, 6)}
                content.append(told)
        metadata: dict[str, Any] = {"userVisible": True, "agentVisible": number >= compacted}
        if assistant:
            metadata["inference"] = {"provider": "tern", "requestedModel": model}
        yield {
            "id": f"msg_{session}_{source.getrandbits(128):032x}",
            "role": "assistant" if assistant else "user",
            "created": created,
            "content": content,
            "metadata": metadata,
        }


def _request(source: random.Random, call: str) -> dict[str, Any]:
    arguments = {"command": f"ls {source.choice(_WORDS)}", "depth": source.randint(1, 9), "ratio": source.random()}
    value = {"name": source.choice(("developer__shell", "memory__recall")), "arguments": arguments}
    return {"type": "toolRequest", "id": call, "toolCall": {"status": "success", "value": value}}


def _response(source: random.Random, call: str) -> dict[str, Any]:
    if source.random() < 0.05:
        return {"type": "toolResponse", "id": call, "toolResult": {"status": "error", "error": _text(source, 3, 9)}}
    content = [{"type": "text", "text": _text(source, 1, 400), "annotations": {"audience": ["assistant"]}}]
    value = {"content": content, "isError": source.random() < 0.1}
    return {"type": "toolResponse", "id": call, "toolResult": {"status": "success", "value": value}}


def _text(source: random.Random, least: int, most: int) -> str:
    return " ".join(source.choices(_WORDS, k=source.randint(least, most)))


def _insert(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))  # noqa: S608


def _stamp(connection: sqlite3.Connection, second: int) -> str:
    return str(connection.execute("SELECT datetime(?, 'unixepoch')", [second]).fetchone()[0])


def _day(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y%m%d")


def main() -> None:
    """Make a database, and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="a new file")
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    messages, lines = make(asked.file, asked.sessions, asked.seed)
    size = asked.file.stat().st_size / 1e6
    print(f"{asked.sessions:,} sessions, {messages:,} messages, {lines:,} lines of usage, {size:,.0f} MB")


if __name__ == "__main__":
    main()
