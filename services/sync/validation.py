"""What a request to watch is checked for."""

from collections.abc import Sequence

from services.runtime.validation import Violations

MAX_ENTITY_TYPES = 16
MAX_POSITION = 2**63 - 1


def check_watch(after_position: int | None, entity_types: Sequence[str]) -> None:
    """Raise InvalidArgumentError with all that is wrong."""
    violations = Violations()
    few = len(entity_types) <= MAX_ENTITY_TYPES
    violations.check(ok=few, field="entity_types", what=f"at most {MAX_ENTITY_TYPES}")
    for number, one in enumerate(entity_types[:MAX_ENTITY_TYPES]):
        violations.id(f"entity_types[{number}]", one, required=True)
    fits = after_position is None or after_position <= MAX_POSITION
    violations.check(ok=fits, field="after_position", what="is no position that was ever told")
    violations.raise_if_any()
