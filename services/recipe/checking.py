"""What a recipe must be, by goose's rules for its files and ours for the steps; each fault with its place."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema
from jsonschema.validators import validator_for

from services.recipe import templates
from services.recipe.files import Path, RecipeFile, RecipeFileError, spell
from services.recipe.parameters import ParameterFaultError, typed_value
from services.recipe.templates import TemplateFaultError

INPUT_TYPES = ("string", "number", "boolean", "date", "file", "select", "object", "array")
REQUIREMENTS = ("required", "optional", "user_prompt")
EXTENSION_TYPES = ("stdio", "builtin", "platform", "streamable_http", "frontend", "inline_python")
RUNNABLE_EXTENSIONS = frozenset({"stdio", "streamable_http"})
"""Types that a server outside goose can run."""

STEP_ACTIONS = ("prompt", "tool", "sub_recipe", "parallel")
RESERVED_STEPS = frozenset({"extensions", "prompt", "response"})
MAX_STEPS = 64
MAX_PARALLEL = 32
MAX_PARAMETERS = 64
MAX_SUB_RECIPES = 32
MAX_CHECKS = 16
MAX_RETRIES = 20
MAX_TITLE_BYTES = 1024
MAX_DESCRIPTION_BYTES = 16 * 1024
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class Notice:
    """What is noticed and kept all the same."""

    message: str
    line: int = 0
    column: int = 0
    sub_recipe: str = ""


def check(file: RecipeFile) -> list[Notice]:
    """Hold a file to the rules. Raises RecipeFileError at the first fault; gives what does not hinder storing it."""
    checker = _Checker(file)
    checker.run()
    return checker.warnings


def sub_recipe_names(recipe: Mapping[str, Any]) -> list[str]:
    """Name the sub-recipes of a recipe that was checked, in their order."""
    return [one["name"] for one in recipe.get("sub_recipes") or ()]


class _Checker:
    def __init__(self, file: RecipeFile) -> None:
        self._file = file
        self._recipe = file.recipe
        self.warnings: list[Notice] = []

    def run(self) -> None:
        self._text((), "version", required=False)
        title = self._text((), "title")
        description = self._text((), "description")
        self._limit(("title",), title, MAX_TITLE_BYTES)
        self._limit(("description",), description, MAX_DESCRIPTION_BYTES)
        self._text((), "instructions", required=False)
        self._text((), "prompt", required=False)
        self._texts(("activities",))
        self._mapping("author", {"contact": str, "metadata": str})
        self._mapping(
            "settings", {"goose_provider": str, "goose_model": str, "temperature": (int, float), "max_turns": int}
        )
        self._extensions()
        self._parameters()
        self._sub_recipes()
        self._response()
        self._retry()
        self._steps()
        if not any(
            (self._recipe.get(key) or "").strip() for key in ("instructions", "prompt")
        ) and not self._recipe.get("steps"):
            raise self._file.error((), "a recipe must have at least one of `instructions`, `prompt` and `steps`")
        self._variables()

    # -- parts

    def _extensions(self) -> None:
        for path, one in self._entries("extensions"):
            kind = self._text(path, "type")
            if kind == "sse":
                raise self._file.error((*path, "type"), "sse is no longer spoken; use streamable_http")
            self._one_of((*path, "type"), kind, EXTENSION_TYPES)
            self._text(path, "name")
            for key in ("description", "display_name", "cwd", "socket", "instructions"):
                self._text(path, key, required=False)
            self._typed(path, one, "timeout", int)
            self._typed(path, one, "bundled", bool)
            needed = {"stdio": "cmd", "streamable_http": "uri", "inline_python": "code"}.get(kind)
            if needed:
                self._text(path, needed)
            for key in ("args", "env_keys", "available_tools", "dependencies"):
                self._texts((*path, key), one.get(key))
            for key in ("envs", "headers"):
                self._strings((*path, key), one.get(key))
            if kind not in RUNNABLE_EXTENSIONS:
                place = self._file.place((*path, "type"))
                self.warnings.append(
                    Notice(f"the extension {one['name']!r} is of type {kind}, which runs inside goose alone", *place)
                )

    def _parameters(self) -> None:
        seen: set[str] = set()
        for path, one in self._entries("parameters", MAX_PARAMETERS):
            key = self._text(path, "key")
            if not _KEY.fullmatch(key):
                raise self._file.error((*path, "key"), "must match [A-Za-z_][A-Za-z0-9_]{0,63}")
            if key in seen:
                raise self._file.error((*path, "key"), f"the parameter {key!r} is declared twice")
            if key in templates.BUILT_IN:
                raise self._file.error((*path, "key"), f"{key!r} is built in")
            seen.add(key)
            kind = self._text(path, "input_type")
            self._one_of((*path, "input_type"), kind, INPUT_TYPES)
            requirement = self._text(path, "requirement")
            self._one_of((*path, "requirement"), requirement, REQUIREMENTS)
            self._text(path, "description")
            options = one.get("options")
            self._texts((*path, "options"), options)
            default = one.get("default")
            if kind == "file" and default is not None:
                what = "a file may have no default, which could take in a person's files"
                raise self._file.error((*path, "default"), what)
            if requirement == "optional" and default is None:
                raise self._file.error(path, f"the optional parameter {key!r} needs a default")
            if kind == "select" and not options:
                raise self._file.error(path, f"the parameter {key!r} is a select and needs options")
            if default is not None:
                try:
                    typed_value(kind, options or (), default)
                except ParameterFaultError as error:
                    raise self._file.error((*path, "default"), str(error)) from None

    def _sub_recipes(self) -> None:
        seen: set[str] = set()
        for path, one in self._entries("sub_recipes", MAX_SUB_RECIPES):
            name = self._text(path, "name")
            if name in seen:
                raise self._file.error((*path, "name"), f"the sub-recipe {name!r} is there twice")
            seen.add(name)
            self._text(path, "path")
            self._text(path, "description", required=False)
            self._typed(path, one, "sequential_when_repeated", bool)
            self._scalars((*path, "values"), one.get("values"))

    def _response(self) -> None:
        response = self._part("response")
        schema = response.get("json_schema")
        if schema is None:
            return
        if not isinstance(schema, dict):
            raise self._file.error(("response", "json_schema"), "must be a mapping")
        if _refers_outside(schema):
            raise self._file.error(("response", "json_schema"), "a $ref must stay within the schema")
        try:
            validator_for(schema, default=jsonschema.Draft202012Validator).check_schema(schema)
        except jsonschema.SchemaError as error:
            path = ("response", "json_schema", *error.absolute_path)
            raise self._file.error(path, f"is no JSON schema: {error.message}") from None

    def _retry(self) -> None:
        retry = self._part("retry")
        if not retry:
            return
        most = retry.get("max_retries")
        if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= MAX_RETRIES:
            raise self._file.error(("retry", "max_retries"), f"must be a whole number from 1 to {MAX_RETRIES}")
        for key in ("timeout_seconds", "on_failure_timeout_seconds"):
            self._typed(("retry",), retry, key, int)
            if retry.get(key) is not None and not 1 <= retry[key] <= 86_400:  # noqa: PLR2004 - a day
                raise self._file.error(("retry", key), "must be from 1 to 86400")
        self._text(("retry",), "on_failure", required=False)
        for path, _ in self._entries("checks", MAX_CHECKS, within=("retry",)):
            self._one_of((*path, "type"), self._text(path, "type"), ("shell",))
            self._text(path, "command")

    def _steps(self) -> None:
        seen: set[str] = set()
        for path, step in self._entries("steps", MAX_STEPS):
            self._step(path, step, seen)

    def _step(self, path: Path, step: dict[str, Any], seen: set[str], *, nested: bool = False) -> None:
        name = self._text(path, "name")
        if not _KEY.fullmatch(name):
            raise self._file.error((*path, "name"), "must match [A-Za-z_][A-Za-z0-9_]{0,63}")
        if name in RESERVED_STEPS:
            raise self._file.error((*path, "name"), f"{name!r} is the name of a step that there is anyway")
        if name in seen:
            raise self._file.error((*path, "name"), f"the step {name!r} is there twice")
        seen.add(name)
        actions = [key for key in STEP_ACTIONS if step.get(key) is not None]
        if len(actions) != 1 or (nested and actions == ["parallel"]):
            allowed = STEP_ACTIONS[:3] if nested else STEP_ACTIONS
            raise self._file.error(path, f"the step {name!r} must have exactly one of {', '.join(allowed)}")
        if actions == ["parallel"]:
            self._parallel(path, seen)
        else:
            self._action(path, actions[0])

    def _action(self, path: Path, action: str) -> None:
        if action == "prompt":
            self._text(path, "prompt")
            return
        part = self._within(path, action)
        path = (*path, action)
        if action == "tool":
            self._text(path, "extension")
            self._text(path, "tool")
            if not isinstance(part.get("arguments") or {}, dict):
                raise self._file.error((*path, "arguments"), "must be a mapping")
        else:
            if self._text(path, "name") not in sub_recipe_names(self._recipe):
                raise self._file.error((*path, "name"), f"{part['name']!r} is not in sub_recipes")
            self._scalars((*path, "values"), part.get("values"))

    def _parallel(self, path: Path, seen: set[str]) -> None:
        entries = list(self._entries("parallel", MAX_PARALLEL, within=path))
        if len(entries) < 2:  # noqa: PLR2004 - one is not parallel to anything
            raise self._file.error((*path, "parallel"), "must have at least two steps")
        for inner_path, inner in entries:
            self._step(inner_path, inner, seen, nested=True)

    def _variables(self) -> None:
        """Every name that a template uses must be declared; a parameter that none uses is only odd."""
        declared = {one["key"]: index for index, one in enumerate(self._recipe.get("parameters") or ())}
        used: set[str] = set()
        for path, text in _strings_of(self._recipe, ()):
            try:
                used |= templates.variables(text)
            except TemplateFaultError as error:
                raise self._fault(path, error) from None
        for name in sorted(used - set(declared)):
            found = re.search(rf"\{{[{{%][^}}]*?\b({re.escape(name)})\b", self._file.content)
            before = self._file.content[: found.start(1)] if found else ""
            place = (before.count("\n") + 1, len(before) - before.rfind("\n")) if found else (0, 0)
            raise RecipeFileError(f"a template uses {name!r}, which is not among the parameters", *place)
        for name in sorted(set(declared) - used, key=lambda one: declared[one]):
            place = self._file.place(("parameters", declared[name], "key"))
            self.warnings.append(Notice(f"the parameter {name!r} is used by no template", *place))

    def _fault(self, path: Path, error: TemplateFaultError) -> RecipeFileError:
        """Give a fault in one of the texts its place in the file."""
        try:
            templates.variables(self._file.content)
        except TemplateFaultError as whole:
            if str(whole) == str(error):
                return RecipeFileError(f"{spell(path)}: the template: {error}", whole.line, whole.column)
        return self._file.error(path, f"the template: {error}")

    # -- kinds of values

    def _at(self, path: Path) -> Any:
        value: Any = self._recipe
        for part in path:
            value = value[part]
        return value

    def _text(self, path: Path, key: str, *, required: bool = True) -> str:
        value = self._at(path).get(key)
        if value is None:
            if not required:
                return ""
            raise self._file.error(path, f"the field `{key}` is missing")
        if not isinstance(value, str):
            raise self._file.error((*path, key), f"must be a string, not {_kind(value)}")
        if required and not value.strip():
            raise self._file.error((*path, key), "must not be empty")
        return value

    def _limit(self, path: Path, text: str, limit: int) -> None:
        if len(text.encode()) > limit:
            raise self._file.error(path, f"is longer than {limit} bytes")

    def _typed(self, path: Path, entry: Mapping[str, Any], key: str, wanted: Any) -> None:
        value = entry.get(key)
        if value is not None and not _is(value, wanted):
            kinds = wanted if isinstance(wanted, tuple) else (wanted,)
            names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
            raise self._file.error((*path, key), f"must be {names[kinds[-1]]}, not {_kind(value)}")

    def _one_of(self, path: Path, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise self._file.error(path, f"{value!r} is not one of {', '.join(allowed)}")

    def _part(self, key: str) -> dict[str, Any]:
        value = self._recipe.get(key)
        if value is None:
            return {}
        return self._within((), key)

    def _within(self, path: Path, key: str) -> dict[str, Any]:
        value = self._at(path).get(key)
        if not isinstance(value, dict):
            raise self._file.error((*path, key), f"must be a mapping, not {_kind(value)}")
        return value

    def _mapping(self, key: str, fields: Mapping[str, Any]) -> None:
        part = self._part(key)
        for name, wanted in fields.items():
            self._typed((key,), part, name, wanted)

    def _entries(self, key: str, most: int = 256, within: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
        value = self._at(within).get(key)
        path = (*within, key)
        if value is None:
            return
        if not isinstance(value, list):
            raise self._file.error(path, f"must be a list, not {_kind(value)}")
        if len(value) > most:
            raise self._file.error(path, f"at most {most} entries")
        for index, one in enumerate(value):
            if not isinstance(one, dict):
                raise self._file.error((*path, index), f"must be a mapping, not {_kind(one)}")
            yield (*path, index), one

    def _texts(self, path: Path, value: Any = None) -> None:
        value = self._recipe.get(str(path[0])) if len(path) == 1 else value
        if value is None:
            return
        if not isinstance(value, list):
            raise self._file.error(path, f"must be a list, not {_kind(value)}")
        for index, one in enumerate(value):
            if not isinstance(one, str):
                raise self._file.error((*path, index), f"must be a string, not {_kind(one)}")

    def _strings(self, path: Path, value: Any) -> None:
        self._each_value(path, value, lambda one: isinstance(one, str), "must be a string")

    def _scalars(self, path: Path, value: Any) -> None:
        self._each_value(path, value, lambda one: isinstance(one, str | int | float | bool), "must be a plain value")

    def _each_value(self, path: Path, value: Any, allowed: Callable[[Any], bool], what: str) -> None:
        if value is None:
            return
        if not isinstance(value, dict):
            raise self._file.error(path, f"must be a mapping, not {_kind(value)}")
        for key, one in value.items():
            if not allowed(one):
                raise self._file.error((*path, key), f"{what}, not {_kind(one)}")


def _strings_of(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _strings_of(one, (*path, key))
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from _strings_of(one, (*path, index))


def _is(value: Any, wanted: Any) -> bool:
    kinds = wanted if isinstance(wanted, tuple) else (wanted,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    return {int: "a number", float: "a number", str: "a string", list: "a list", dict: "a mapping"}[type(value)]


def _refers_outside(schema: Any) -> bool:
    if isinstance(schema, dict):
        reference = schema.get("$ref", schema.get("$dynamicRef"))
        if isinstance(reference, str) and not reference.startswith("#"):
            return True
        return any(_refers_outside(one) for one in schema.values())
    return isinstance(schema, list) and any(_refers_outside(one) for one in schema)
