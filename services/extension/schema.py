"""Checks JSON against a schema that somebody else wrote, within bounded time.

A server's schema is not trusted to be kind. References may not leave it, and are followed a limited number of times:
a few lines of them can ask for years of work. Regular expressions are left to the server, since Python's have no bound
on their time; so is what depends on them.
"""

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match
from jsonschema.validators import extend, validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

MAX_SCHEMA_BYTES = 256 * 1024
_MAX_REFERENCES = 10_000
_MAX_TEXT = 256
_SCHEMAS_BY_NAME = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
_DATA = frozenset({"const", "enum", "default", "examples", "required", "type"})
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


class _TooMuchError(Exception):
    """The schema asks for more work than it gets."""


class UnusableSchemaError(Exception):
    """The schema is none, or can't be used; the text says why."""


class Checker:
    """One schema, made ready."""

    def __init__(self, schema: Any, size: int) -> None:
        """`size` of the schema in bytes. Raises UnusableSchemaError."""
        if not isinstance(schema, dict) or size > MAX_SCHEMA_BYTES:
            raise UnusableSchemaError(f"the schema must be a JSON object of at most {MAX_SCHEMA_BYTES} bytes")
        try:
            bounded = _without_patterns(schema)
            # Without $schema it is the draft that MCP names.
            base: Any = validator_for(bounded, default=Draft202012Validator)
            base.check_schema(bounded)
            self._left = 0
            counted = {name: self._counted(base.VALIDATORS[name]) for name in _REFERENCES if name in base.VALIDATORS}
            bounded_class: Any = extend(base, counted)  # type: ignore[no-untyped-call]
            self._validator: Any = bounded_class(bounded, registry=Registry())
        except (SchemaError, RecursionError, ValueError, TypeError) as error:
            raise UnusableSchemaError(f"the schema is not valid: {str(error)[:_MAX_TEXT]}") from error

    def violation(self, value: Any) -> tuple[str, str] | None:
        """Give the path of what is wrong with a value, and what; None: nothing. Raises UnusableSchemaError."""
        self._left = _MAX_REFERENCES
        try:
            error = best_match(self._validator.iter_errors(value))
        except (_TooMuchError, RecursionError) as cause:
            raise UnusableSchemaError("the schema's references go too deep") from cause
        except Unresolvable as cause:
            raise UnusableSchemaError(f"a reference leads nowhere: {str(cause)[:_MAX_TEXT]}") from cause
        if error is None:
            return None
        path = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in error.absolute_path)
        return path[:_MAX_TEXT], error.message[:_MAX_TEXT]

    def _counted(self, keyword: Any) -> Any:
        def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
            self._left -= 1
            if self._left < 0:
                raise _TooMuchError
            yield from keyword(validator, value, instance, schema) or ()

        return check


def _without_patterns(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_patterns(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    left_out = {"pattern", "patternProperties"}
    if "patternProperties" in schema:
        left_out |= {"additionalProperties", "unevaluatedProperties"}
    return {
        name: (
            {key: _without_patterns(one) for key, one in value.items()}
            if name in _SCHEMAS_BY_NAME and isinstance(value, dict)
            else value
            if name in _DATA
            else _without_patterns(value)
        )
        for name, value in schema.items()
        if name not in left_out
    }
