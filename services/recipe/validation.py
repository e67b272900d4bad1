"""What a request must be before anything is read for it."""

from collections.abc import Collection, Mapping

from gaggle.recipe.v1 import execution_pb2, execution_service_pb2, recipe_pb2
from services.runtime.requests import valid_id
from services.runtime.validation import ID_RULE, Violations

MAX_NAME_BYTES = 256
MAX_CATEGORY_BYTES = 64
MAX_TAGS = 16
MAX_TAG_BYTES = 64
MAX_TEXT_BYTES = 256
MAX_SUB_RECIPES = 32
MAX_PARAMETERS_BYTES = 256 * 1024
MAX_TIMEOUT_SECONDS = 30 * 24 * 3600


def named(field: str, value: str, request_id: str = "") -> Violations:
    """Check what nearly every request has."""
    violations = Violations()
    violations.id(field, value, required=True)
    violations.id("request_id", request_id, required=False)
    return violations


def name(violations: Violations, text: str, *, required: bool) -> None:
    """Check a recipe's name."""
    size = len(text.encode())
    violations.check(ok=size <= MAX_NAME_BYTES, field="name", what=f"at most {MAX_NAME_BYTES} bytes")
    violations.check(ok=not required or bool(text.strip()), field="name", what="must be set")


def category(violations: Violations, text: str) -> None:
    """Check a category."""
    size = len(text.encode())
    violations.check(ok=size <= MAX_CATEGORY_BYTES, field="category", what=f"at most {MAX_CATEGORY_BYTES} bytes")


def tags(violations: Violations, given: Collection[str], field: str = "tags") -> None:
    """Check tags."""
    violations.check(ok=len(given) <= MAX_TAGS, field=field, what=f"at most {MAX_TAGS}")
    violations.check(ok=len(set(given)) == len(given), field=field, what="must not repeat")
    for index, tag in enumerate(given):
        ok = 0 < len(tag.encode()) <= MAX_TAG_BYTES
        violations.check(ok=ok, field=f"{field}[{index}]", what=f"must be 1 to {MAX_TAG_BYTES} bytes")


def bindings(violations: Violations, given: Mapping[str, str], *, removable: bool) -> None:
    """Check which recipes sub-recipes are bound to."""
    violations.check(
        ok=len(given) <= MAX_SUB_RECIPES, field="sub_recipe_ids", what=f"at most {MAX_SUB_RECIPES} entries"
    )
    for key, value in given.items():
        ok = valid_id(value) or (removable and not value)
        violations.check(ok=ok, field=f"sub_recipe_ids[{key!r}]", what=ID_RULE)


def recipe_format(violations: Violations, given: int) -> None:
    """Check a format."""
    violations.check(ok=given in recipe_pb2.RecipeFormat.values(), field="format", what="is not known")


def page(violations: Violations, size: int) -> None:
    """Check a page's size."""
    violations.check(ok=size >= 0, field="page_size", what="must not be negative")


def options(violations: Violations, given: recipe_pb2.ExecutionOptions) -> None:
    """Check how an execution is to go."""
    violations.check(ok=len(given.model.encode()) <= MAX_TEXT_BYTES, field="options.model", what="at most 256 bytes")
    if given.HasField("timeout"):
        seconds = given.timeout.seconds
        ok = 1 <= seconds <= MAX_TIMEOUT_SECONDS
        violations.check(ok=ok, field="options.timeout", what="from one second to 30 days")


def parameters(violations: Violations, request: execution_service_pb2.StartExecutionRequest) -> None:
    """Check the values of parameters, as far as that needs no recipe."""
    size = sum(len(key.encode()) + value.ByteSize() for key, value in request.parameters.items())
    violations.check(ok=size <= MAX_PARAMETERS_BYTES, field="parameters", what="at most 256 KiB in all")


def statuses(violations: Violations, given: Collection[int]) -> None:
    """Check a filter by status."""
    known = set(execution_pb2.ExecutionStatus.values()) - {execution_pb2.EXECUTION_STATUS_UNSPECIFIED}
    for index, one in enumerate(given):
        violations.check(ok=one in known, field=f"statuses[{index}]", what="is not known")
