"""The difference between two JSON values, itself a JSON value.

It carries what a transcript's file had beside the fields of a message. RFC 7386 (merge patch) cannot tell a null from
a removal nor reach into arrays, RFC 6902 (patch) is a list of operations where a nested object reads better, hence:

    {"is": value}                          the value is another
    {"set": {...}, "drop": [...], "in": {key: difference}}      an object: members set, members missing, members changed
    {"at": {index: difference}}            an array of the same length: elements changed
"""

from typing import Any


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1, 1.0 and true are three values, the order of an object's members is none."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def difference(made: Any, wanted: Any) -> dict[str, Any] | None:
    """What turns `made` into `wanted`; None: they are the same."""
    if same(made, wanted):
        return None
    if isinstance(made, dict) and isinstance(wanted, dict):
        changed = {key: difference(made[key], value) for key, value in wanted.items() if key in made}
        parts = {
            "set": {key: value for key, value in wanted.items() if key not in made},
            "drop": [key for key in made if key not in wanted],
            "in": {key: inner for key, inner in changed.items() if inner is not None},
        }
        return {name: part for name, part in parts.items() if part}
    if isinstance(made, list) and isinstance(wanted, list) and len(made) == len(wanted):
        inner = [difference(*pair) for pair in zip(made, wanted, strict=True)]
        return {"at": {str(index): element for index, element in enumerate(inner) if element is not None}}
    return {"is": wanted}


def apply(made: Any, delta: dict[str, Any]) -> Any:
    """`wanted` again. Raises ValueError, KeyError, IndexError, TypeError or AttributeError if `delta` is not of it."""
    if "is" in delta:
        return delta["is"]
    if "at" in delta:
        result = list(made)
        for index, inner in delta["at"].items():
            result[int(index)] = apply(result[int(index)], inner)
        return result
    members = {key: value for key, value in made.items() if key not in delta.get("drop", ())}
    for key, inner in delta.get("in", {}).items():
        members[key] = apply(members[key], inner)
    return members | delta.get("set", {})
