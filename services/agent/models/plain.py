"""What the offline model makes of plain words, where it is offered tools for tasks.

One line is one command; words in brackets may be left out:

    add task TITLE [due WHEN] [every day] [remind SPAN before] [priority high] [#tag ...]
    list [open|completed|all] tasks [about WORDS]
    complete task WHICH
    update task WHICH: [title TITLE] [due WHEN] [priority high]
    delete task WHICH
    remind me of WHICH WHEN

`due` may be left out where the end of the line is a time: "add task water the plants tomorrow 9am". The times
themselves are read by the tools, in the user's zone.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from services.agent.models.base import OfferedTool

_ADD = re.compile(r"(?:add|create|new)\s+(?:a\s+)?(?:task|todo)(?:\s+to)?[:\s]\s*(?P<rest>.+)", re.IGNORECASE)
_LIST = re.compile(
    r"(?:list|show)\s+(?:me\s+)?(?:my\s+|the\s+)?(?P<status>open|completed|done|all)?\s*(?:my\s+)?(?:tasks|todos)"
    r"(?:\s+(?:about|with)\s+(?P<text>.+))?",
    re.IGNORECASE,
)
_COMPLETE = re.compile(
    r"(?:complete|finish|done\s+with)(?:\s+the)?(?:\s+(?:task|todo))?[:\s]\s*(?P<task>.+)", re.IGNORECASE
)
_DELETE = re.compile(r"(?:delete|remove)\s+(?:the\s+)?(?:task|todo)[:\s]\s*(?P<task>.+)", re.IGNORECASE)
_UPDATE = re.compile(
    r"(?:update|change)\s+(?:the\s+)?(?:task|todo)[:\s]\s*(?P<task>.+?)\s*(?::|\s(?=(?:title|due|priority)\s))\s*"
    r"(?P<rest>(?:title|due|priority)\s.+)",
    re.IGNORECASE,
)
_REMIND = re.compile(r"(?:remind\s+me\s+(?:of|about)|set\s+(?:a\s+)?reminder\s+for)\s+(?P<rest>.+)", re.IGNORECASE)

_DUE = re.compile(r"\s(?:due|by)\s+(?P<due>.+)$", re.IGNORECASE)
_EVERY = re.compile(
    r"\s(?:every\s+(?P<unit>day|week|month|year)|(?P<rule>daily|weekly|monthly|yearly))\b", re.IGNORECASE
)
_ALERT = re.compile(r"\sremind(?:\s+me)?\s+(?P<span>[\w ]+?)\s+before\b", re.IGNORECASE)
_PRIORITY = re.compile(r"\s(?:priority\s+(?P<one>\w+)|(?P<two>low|medium|high|urgent)\s+priority)\b", re.IGNORECASE)
_TAG = re.compile(r"\s#(?P<tag>\w[\w-]*)")
_BEFORE = re.compile(r"\s(?P<when>\d[\w ]*\s+before|when\s+due|at\s+due\s+time)$", re.IGNORECASE)
_FIELD = re.compile(
    r"\b(?P<name>title|due|priority)\s+(?P<value>.+?)(?=\s*,?\s+(?:title|due|priority)\s|$)", re.IGNORECASE
)

_RULES = {"day": "daily", "week": "weekly", "month": "monthly", "year": "yearly"}
_TIME_BEGINS = frozenset(
    "today tonight tomorrow next this in on at monday tuesday wednesday thursday friday saturday sunday".split()  # noqa: SIM905
)
_LONGEST_TIME_WORDS = 8
_TOOLS = ("add_task", "list_tasks", "complete_task", "update_task", "delete_task", "set_reminder")


@dataclass(frozen=True, slots=True)
class Wish:
    """A call that plain words ask for."""

    tool: str
    """As the model knows it."""

    arguments_json: str


def offered_tools(tools: Sequence[OfferedTool]) -> dict[str, str]:
    """Find the tools for tasks among those offered: their own names to the model's; none where a name is doubtful."""
    found: dict[str, str] = {}
    for name in _TOOLS:
        ending = [one.name for one in tools if one.name == name or one.name.endswith(f"__{name}")]
        if len(ending) == 1:
            found[name] = ending[0]
    return found


def read(line: str, tools: dict[str, str]) -> Wish | None:
    """Read a line as a command; None if it is none, or its tool is not offered. The first time it takes a moment."""
    words = " ".join(line.split()).rstrip(".!?")
    for pattern, tool, arguments in (
        (_ADD, "add_task", _add),
        (_LIST, "list_tasks", _list),
        (_UPDATE, "update_task", _update),
        (_COMPLETE, "complete_task", _which),
        (_DELETE, "delete_task", _which),
        (_REMIND, "set_reminder", _remind),
    ):
        match = pattern.fullmatch(words)
        if match is None or tool not in tools:
            continue
        asked = arguments(match)
        if asked is not None:
            return Wish(tools[tool], json.dumps(asked, ensure_ascii=False))
    return None


def _add(match: re.Match[str]) -> dict[str, object] | None:
    rest = f" {match['rest']}"
    asked: dict[str, object] = {}
    if tags := [one["tag"] for one in _TAG.finditer(rest)]:
        asked["tags"] = tags
        rest = _TAG.sub("", rest)
    if found := _PRIORITY.search(rest):
        asked["priority"] = (found["one"] or found["two"]).lower()
        rest = _without(rest, found)
    if found := _ALERT.search(rest):
        asked["remind_before"] = [found["span"]]
        rest = _without(rest, found)
    if found := _EVERY.search(rest):
        asked["repeat"] = (found["rule"] or _RULES[(found["unit"] or "").lower()]).lower()
        rest = _without(rest, found)
    if found := _DUE.search(rest):
        asked["due"] = found["due"].strip()
        rest = _without(rest, found)
    else:
        rest, due = _split_time(rest)
        if due:
            asked["due"] = due
    title = rest.strip(" ,")
    return {"title": title, **asked} if title else None


def _list(match: re.Match[str]) -> dict[str, object]:
    asked: dict[str, object] = {}
    if match["status"]:
        status = match["status"].lower()
        asked["status"] = "completed" if status == "done" else status
    if match["text"]:
        asked["text"] = match["text"]
    return asked


def _which(match: re.Match[str]) -> dict[str, object]:
    return {"task": match["task"].strip()}


def _update(match: re.Match[str]) -> dict[str, object] | None:
    fields: dict[str, object] = {
        one["name"].lower(): one["value"].strip(" ,") for one in _FIELD.finditer(match["rest"])
    }
    return {"task": match["task"].strip(), **fields} if fields else None


def _remind(match: re.Match[str]) -> dict[str, object] | None:
    rest = match["rest"]
    if found := _BEFORE.search(rest):
        which, when = rest[: found.start()], found["when"]
    else:
        which, when = _split_time(rest)
    which = which.strip(" ,")
    return {"task": which, "when": when} if which and when else None


def _without(text: str, match: re.Match[str]) -> str:
    return text[: match.start()] + text[match.end() :]


def _split_time(text: str) -> tuple[str, str]:
    """Split off the longest end of a text that is a time; nothing where none is."""
    words = text.split()
    for start in range(max(1, len(words) - _LONGEST_TIME_WORDS), len(words)):
        if words[start].lower() in _TIME_BEGINS and _is_time(" ".join(words[start:])):
            return " ".join(words[:start]), " ".join(words[start:])
    return text, ""


def _is_time(words: str) -> bool:
    # It takes a third of a second to import, and most processes never need it.
    import dateparser

    plain = re.sub(r"^(?:next|this|on)\s+", "", words, flags=re.IGNORECASE)
    return dateparser.parse(plain, languages=["en"]) is not None
