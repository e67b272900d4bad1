"""The end of a process's log, line by line as it was written: JSON of services and sidecars, or plain text."""

import json
from pathlib import Path
from typing import Any

_MOST_BYTES = 256 * 1024
_MOST_LINES = 500
_LEVELS = {"debug": 0, "info": 1, "warning": 2, "warn": 2, "error": 3, "critical": 3, "fatal": 3}
_TIMES = ("timestamp", "time")
_TEXTS = ("event", "msg")


def tail(path: Path, *, after: int | None, level: str = "", text: str = "") -> dict[str, Any]:
    """The lines after a position, or the last ones; with the position to go on from.

    Args:
        path: the log.
        after: a position that an earlier answer gave; a log that has become shorter since is read from its start.
        level: only lines of this level or a graver one.
        text: only lines that hold this, in any case.
    """
    size = path.stat().st_size
    fresh = after is None or after > size
    start = max(size - _MOST_BYTES, 0 if fresh or after is None else after)
    with path.open("rb") as log:
        log.seek(start)
        data = log.read(size - start)
    if start and (fresh or start != after):
        # It began in the middle of a line.
        cut = data.find(b"\n") + 1
        data, start = data[cut:], start + cut
    end = data.rfind(b"\n") + 1
    lines = [line for line in data[:end].decode(errors="replace").splitlines() if text.lower() in line.lower()]
    parsed = [one for one in map(parse, lines) if _LEVELS.get(one["level"], 1) >= _LEVELS.get(level, 0)]
    return {"position": start + end, "lines": parsed[-_MOST_LINES:]}


def parse(line: str) -> dict[str, Any]:
    """One line: time, level, what happened, and the rest of its members."""
    try:
        body = json.loads(line)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        return {"time": "", "level": "info", "event": line, "fields": {}}
    time = next((str(body.pop(name)) for name in _TIMES if name in body), "")
    event = next((str(body.pop(name)) for name in _TEXTS if name in body), "")
    return {"time": time, "level": str(body.pop("level", "info")), "event": event, "fields": body}
