"""Documents as they lie in a file, and JSON values that know where they stand in it.

The standard library parses; only when something is wrong is the place looked for, by walking the text again along the
value's path. A good file therefore pays nothing for positions.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from json.decoder import JSONDecodeError
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

from cli.transcripts._errors import TranscriptError

_SPACE = re.compile(r"[ \t\n\r]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STRING_OR_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)', re.DOTALL)
_LINES_SUFFIXES = {".jsonl", ".ndjson", ".jsonlines"}

Step: TypeAlias = str | int
_T = TypeVar("_T")


class _ConstantError(ValueError):
    """NaN and its like, which Python reads and JSON has not."""


def _refuse_constant(_name: str) -> NoReturn:
    raise _ConstantError


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


@dataclass(frozen=True, eq=False)
class Document:
    """A file's name and bytes, with its JSON where it is JSON."""

    name: str
    data: bytes = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> "Document":
        """Reads the file. Raises OSError."""
        return cls(str(path), path.read_bytes())

    @cached_property
    def text(self) -> str:
        """The bytes as UTF-8, a byte order mark apart. Raises TranscriptError."""
        try:
            return self.data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            before = self.data[: error.start].decode("utf-8-sig", errors="replace")
            line, column = _line_and_column(before, len(before))
            problem = f"not UTF-8 (byte 0x{self.data[error.start]:02x})"
            raise TranscriptError(self.name, line, column, "", problem) from None

    @cached_property
    def root(self) -> "Node":
        """The one JSON value of the document. Raises TranscriptError."""
        return self._parse(0, len(self.text))

    @cached_property
    def lines(self) -> "list[Node]":
        """The JSON values of JSON Lines, one a line; empty lines are skipped. Raises TranscriptError."""
        nodes = []
        start = 0
        # Not splitlines(): JSON strings may hold U+2028 and its kind unescaped.
        for line in self.text.split("\n"):
            if line.strip():
                nodes.append(self._parse(start, start + len(line)))
            start += len(line) + 1
        return nodes

    @cached_property
    def is_lines(self) -> bool:
        """Whether this is JSON Lines: by the file's name, else because more than one value is there."""
        if Path(self.name).suffix.lower() in _LINES_SUFFIXES:
            return True
        try:
            self.root  # noqa: B018 - parsed for its error
        except TranscriptError:
            first = self.text.strip().partition("\n")[0]
            try:
                return isinstance(_DECODER.decode(first), dict)
            except (ValueError, RecursionError):
                return False
        return False

    def error(self, problem: str) -> TranscriptError:
        """That the document as a whole is wrong."""
        return TranscriptError(self.name, 1, 1, "", problem)

    def _parse(self, start: int, end: int) -> "Node":
        text = self.text[start:end]
        try:
            return Node(self, start, (), _DECODER.decode(text))
        except JSONDecodeError as error:
            offset, problem = error.pos, f"not JSON: {error.msg[0].lower()}{error.msg[1:]}"
        except _ConstantError:
            found = next(match for match in _STRING_OR_CONSTANT.finditer(text) if match.group(1))
            offset, problem = found.start(), f"not JSON: {found.group(1)} is no JSON value"
        except RecursionError:
            offset, problem = 0, "nested too deeply"
        except ValueError as error:  # an integer of thousands of digits
            offset, problem = 0, str(error)
        line, column = _line_and_column(self.text, start + offset)
        raise TranscriptError(self.name, line, column, "", problem)


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A JSON value and where it stands: `path` leads to it from the value that begins at `start`."""

    document: Document
    start: int
    path: tuple[Step, ...]
    value: Any = field(repr=False)

    def error(self, problem: str) -> TranscriptError:
        """That this value is wrong, with its line and column."""
        line, column = _line_and_column(self.document.text, _locate(self.document.text, self.start, self.path))
        return TranscriptError(self.document.name, line, column, _dotted(self.path), problem)

    def has(self, name: str) -> bool:
        """Whether this is an object with that member."""
        return isinstance(self.value, dict) and name in self.value

    def object(self) -> dict[str, Any]:
        """The value, which must be an object."""
        return self._expect(dict, "an object")

    def elements(self) -> Iterator["Node"]:
        """The elements of the value, which must be an array."""
        for index, value in enumerate(self._expect(list, "an array")):
            yield Node(self.document, self.start, (*self.path, index), value)

    def text(self) -> str:
        """The value, which must be a string that UTF-8 can hold."""
        value: str = self._expect(str, "a string")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error("holds half of a surrogate pair, which no UTF-8 text can") from None
        return value

    def field(self, name: str) -> "Node":
        """A member that must be there."""
        found = self.optional(name)
        if found is None:
            raise self.error(f'must have "{name}"')
        return found

    def optional(self, name: str) -> "Node | None":
        """A member of this object, if it is there; null is there."""
        members = self.object()
        return Node(self.document, self.start, (*self.path, name), members[name]) if name in members else None

    def _expect(self, kind: type[_T], called: str) -> _T:
        if not isinstance(self.value, kind):
            raise self.error(f"must be {called}, is {_called(self.value)}")
        return self.value


def _called(value: Any) -> str:
    for kind, called in ((dict, "an object"), (list, "an array"), (str, "a string"), (bool, "a boolean")):
        if isinstance(value, kind):
            return called
    return "null" if value is None else "a number"


def _dotted(path: tuple[Step, ...]) -> str:
    """The path as a person writes it, `messages[3].role`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _NAME.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f"[{json.dumps(step)}]"
    return text


def _line_and_column(text: str, offset: int) -> tuple[int, int]:
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)


def _locate(text: str, start: int, path: tuple[Step, ...]) -> int:
    """Where the value at `path` begins. The text is known to be JSON from `start` on, so nothing is checked."""
    offset = _skip_space(text, start)
    for step in path:
        offset = _member(text, offset, step) if isinstance(step, str) else _element(text, offset, step)
    return offset


def _member(text: str, offset: int, name: str) -> int:
    found = offset
    offset = _skip_space(text, offset + 1)
    while text[offset] != "}":
        key, offset = _DECODER.raw_decode(text, offset)
        value = _skip_space(text, _skip_space(text, offset) + 1)
        if key == name:
            found = value  # the last of several of one name is the one that was read
        offset = _after(text, value)
    return found


def _element(text: str, offset: int, index: int) -> int:
    offset = _skip_space(text, offset + 1)
    for _ in range(index):
        offset = _after(text, offset)
    return offset


def _after(text: str, value: int) -> int:
    """Past a value, and past the comma behind it."""
    offset = _skip_space(text, _DECODER.raw_decode(text, value)[1])
    return _skip_space(text, offset + 1) if text[offset] == "," else offset


def _skip_space(text: str, offset: int) -> int:
    match = _SPACE.match(text, offset)
    assert match is not None
    return match.end()
