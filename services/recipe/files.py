"""Recipe files: YAML or JSON, read with the place of everything in them.

YAML is read as goose reads it, by YAML 1.2's core schema: `yes` and `2025-01-31` are strings, duplicate keys an error.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import yaml

MAX_BYTES = 256 * 1024
_MAX_DEPTH = 40
_MAX_NODES = 50_000
_MOST_SHOWN = 200

Path = tuple[str | int, ...]
"""Where in a document: keys and indexes from its root on."""


class Format(Enum):
    """How a file is written."""

    YAML = "yaml"
    JSON = "json"


class RecipeFileError(Exception):
    """A file that is no recipe: what is wrong, and where; line and column count from 1, 0 is nowhere."""

    def __init__(self, message: str, line: int = 0, column: int = 0) -> None:
        """`message` may show some of the file."""
        super().__init__(message if len(message) <= _MOST_SHOWN else message[:_MOST_SHOWN] + "...")
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """A file as it was read."""

    content: str
    format: Format
    document: dict[str, Any]
    """All of it."""

    places: Mapping[Path, tuple[int, int]]
    """Line and column of each value in it, and under (*path, "?") of a key."""

    @property
    def wrapped(self) -> bool:
        """Whether it is the desktop's wrapper with the recipe inside."""
        return isinstance(self.document.get("recipe"), dict)

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe itself."""
        inner = self.document.get("recipe")
        return inner if isinstance(inner, dict) else self.document

    def error(self, path: Path, message: str) -> RecipeFileError:
        """Make an error that names a path of the recipe and its place, or that of the nearest thing around it."""
        full = ("recipe", *path) if self.wrapped else path
        for end in range(len(full), -1, -1):
            if (place := self.places.get(full[:end])) is not None:
                return RecipeFileError(f"{spell(path)}: {message}" if path else message, *place)
        return RecipeFileError(message)

    def place(self, path: Path) -> tuple[int, int]:
        """Give the line and column of a path of the recipe; 0, 0 if there is none."""
        error = self.error(path, "")
        return error.line, error.column


def spell(path: Path) -> str:
    """Write a path as people do: `parameters[2].default`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "?":
            text += f".{part}" if text else part
    return text


def read(content: str, wanted: Format | None = None) -> RecipeFile:
    """Read a file; without `wanted` a brace at its beginning tells JSON. Raises RecipeFileError.

    Takes a second or so for the largest: not in an event loop.
    """
    content = content.removeprefix("\ufeff")
    kind = wanted or (Format.JSON if content.lstrip().startswith("{") else Format.YAML)
    if not content.strip():
        raise RecipeFileError("the file is empty", 1, 1)
    try:
        document, places = _read_json(content) if kind is Format.JSON else _read_yaml(content)
    except RecursionError:
        raise RecipeFileError(f"nested deeper than {_MAX_DEPTH} levels", 1, 1) from None
    if not isinstance(document, dict):
        raise RecipeFileError("a recipe is a mapping of fields", *places.get((), (1, 1)))
    inner = document.get("recipe")
    if inner is not None and not isinstance(inner, dict):
        raise RecipeFileError("recipe: must be a mapping", *places[("recipe",)])
    return RecipeFile(content, kind, document, places)


def write(document: Mapping[str, Any], kind: Format) -> str:
    """Write a document; what it says is what `read` gives back."""
    if kind is Format.JSON:
        return json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    return str(yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


# -- YAML


class _Loader(yaml.SafeLoader):
    """Plain scalars by the core schema."""

    # The library types it as an instance's.
    yaml_implicit_resolvers = {}  # noqa: RUF012


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), ["" if one == "\0" else one for one in _first])


class _Dumper(yaml.SafeDumper):
    """Blocks for text of several lines."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write everything out."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    # The library quotes what YAML 1.1 takes for something else; the core schema has more, 0E0 for one.
    if style is None and any(pattern.match(text) for _, pattern in _Loader.yaml_implicit_resolvers.get(text[:1], ())):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _read_yaml(content: str) -> tuple[Any, dict[Path, tuple[int, int]]]:
    loader = None
    try:
        loader = _Loader(content)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _placed(error) from None
    except yaml.reader.ReaderError as error:
        before = content[: error.position]
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        raise RecipeFileError("holds a character that YAML does not allow", line, column) from None
    finally:
        if loader is not None:
            loader.dispose()
    if node is None:
        raise RecipeFileError("the file is empty", 1, 1)
    return _Builder().build(node)


def _placed(error: yaml.MarkedYAMLError) -> RecipeFileError:
    """Point at what was begun and never ended, where that is the trouble, else at what could not be read."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return RecipeFileError(str(error.problem or error))
    text = str(error.problem or error.context or "can't be read")
    context = error.context_mark
    unclosed = context is not None and context.line < mark.line and "flow" in (error.context or "")
    unclosed |= context is not None and "scalar" in (error.context or "") and "unexpected end" in text
    if unclosed and context is not None:
        text = f"{error.context}: {text} at line {mark.line + 1}, column {mark.column + 1}"
        mark = context
    return RecipeFileError(text, mark.line + 1, mark.column + 1)


class _Builder:
    """Builds values of nodes, and notes where each is."""

    def __init__(self) -> None:
        self.places: dict[Path, tuple[int, int]] = {}
        self._nodes = 0

    def build(self, node: yaml.Node) -> tuple[Any, dict[Path, tuple[int, int]]]:
        return self._value(node, ()), self.places

    def _value(self, node: yaml.Node, path: Path) -> Any:
        place = (node.start_mark.line + 1, node.start_mark.column + 1)
        self._nodes += 1
        # Aliases are followed each time they are named: few lines could stand for billions.
        if self._nodes > _MAX_NODES:
            raise RecipeFileError(f"more than {_MAX_NODES} values", *place)
        if len(path) > _MAX_DEPTH:
            raise RecipeFileError(f"nested deeper than {_MAX_DEPTH} levels", *place)
        self.places[path] = place
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(one, (*path, index)) for index, one in enumerate(node.value)]
        return _scalar(node, place)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeFileError("a key must be a string", *place)
            key = str(key_node.value)
            if key in built:
                raise RecipeFileError(f"the key {key!r} is there twice", *place)
            built[key] = self._value(value_node, (*path, key))
            self.places[*path, key, "?"] = place
        return built


def _scalar(node: yaml.Node, place: tuple[int, int]) -> Any:
    text = str(node.value)
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        if len(text) > _MAX_DEPTH:
            raise RecipeFileError("too large a number", *place)
        return int(text, 0) if text.startswith(("0x", "0o")) else int(text)
    if kind == "float":
        number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(number):
            raise RecipeFileError("a number must be finite", *place)
        return number
    if kind == "str":
        return text
    raise RecipeFileError(f"the tag {node.tag!r} is not known", *place)


# -- JSON


def _read_json(content: str) -> tuple[Any, dict[Path, tuple[int, int]]]:
    try:
        document = json.loads(content, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise RecipeFileError(error.msg, error.lineno, error.colno) from None
    except ValueError as error:
        raise RecipeFileError(str(error), 1, 1) from None
    # JSON is YAML as well, but for tabs between its tokens; YAML's reader knows places.
    spaced = re.sub(r'"(?:[^"\\]|\\.)*"|\t', lambda found: " " if found[0] == "\t" else found[0], content)
    try:
        _, places = _read_yaml(spaced)
    except RecipeFileError as error:
        if "nested" in str(error) or "more than" in str(error):
            raise
        places = {(): (1, 1)}
    return document, places


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key) is not None)  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} is there twice")
    return built


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
