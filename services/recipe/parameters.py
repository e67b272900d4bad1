"""Parameters of a recipe: values read as their types, by key."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any


class ParameterFaultError(Exception):
    """What is wrong with a value, for whoever gave it."""


def resolve(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Give the values of a recipe's parameters, defaults filled in, and what is wrong with those given, by key."""
    values: dict[str, Any] = {}
    faults: dict[str, str] = {}
    declared = {one["key"]: one for one in recipe.get("parameters") or ()}
    for key in given:
        if key not in declared:
            faults[key] = "the recipe has no such parameter"
    for key, one in declared.items():
        value = given.get(key)
        if value is None:
            value = one.get("default")
        if value is None:
            faults[key] = "must be set: " + one["description"]
            continue
        try:
            values[key] = typed_value(one["input_type"], one.get("options") or (), value)
        except ParameterFaultError as fault:
            faults[key] = str(fault)
    return values, faults


def typed_value(kind: str, options: Sequence[str], value: Any) -> Any:
    """Read a value as a parameter's type; strings are taken for what they say. Raises ParameterFaultError."""
    if value is None:
        raise ParameterFaultError("must be set")
    readers: dict[str, Callable[[Any], Any]] = {
        "string": _as_text,
        "file": _as_text,
        "number": _as_number,
        "boolean": _as_boolean,
        "date": _as_date,
        "object": lambda one: _as_json(one, dict, "an object"),
        "array": lambda one: _as_json(one, list, "an array"),
    }
    if kind == "select":
        text = _as_text(value)
        if text not in options:
            raise ParameterFaultError(f"must be one of {', '.join(options)}")
        return text
    return readers[kind](value)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)
    if not isinstance(value, str):
        raise ParameterFaultError("must be a string")
    return value


def _as_number(value: Any) -> int | float:
    if isinstance(value, str):
        try:
            value = float(value) if not re.fullmatch(r"[-+]?\d{1,18}", value.strip()) else int(value)
        except ValueError:
            raise ParameterFaultError("must be a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ParameterFaultError("must be a number")
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _as_boolean(value: Any) -> bool:
    if isinstance(value, str) and value.strip().lower() in {"true", "false"}:
        return value.strip().lower() == "true"
    if not isinstance(value, bool):
        raise ParameterFaultError("must be true or false")
    return value


def _as_date(value: Any) -> str:
    try:
        return date.fromisoformat(value).isoformat()
    except (TypeError, ValueError):
        raise ParameterFaultError("must be a date like 2025-01-31") from None


def _as_json(value: Any, wanted: type, what: str) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ParameterFaultError(f"must be {what} in JSON") from None
    if not isinstance(value, wanted):
        raise ParameterFaultError(f"must be {what}")
    return value


def whole(value: Any) -> Any:
    """Give a JSON value with doubles that hold whole numbers as such: `google.protobuf.Value` has doubles alone."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list):
        return [whole(one) for one in value]
    if isinstance(value, dict):
        return {key: whole(one) for key, one in value.items()}
    return value
