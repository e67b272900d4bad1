"""Refusals of this service's own."""

from gaggle.common.v1 import error_reason_pb2
from services.recipe.files import RecipeFileError
from services.runtime.errors import FailedPreconditionError, InvalidArgumentError


class RecipeInvalidError(InvalidArgumentError):
    """A file is no recipe."""

    def __init__(self, field: str, fault: RecipeFileError) -> None:
        """`field` of the request brought it; line and column are told where the file has them."""
        place = f"line {fault.line}, column {fault.column}: " if fault.line else ""
        super().__init__({field: f"{place}{fault}"}, reason=error_reason_pb2.ERROR_REASON_RECIPE_INVALID)
        if fault.line:
            self.metadata = {"line": str(fault.line), "column": str(fault.column)}


class SubRecipeMissingError(FailedPreconditionError):
    """A sub-recipe is not bound, or its recipe is gone."""

    def __init__(self, recipe_id: str, sub_recipe: str, why: str) -> None:
        """`why` completes "the sub-recipe ...": "is not bound to a recipe"."""
        super().__init__(
            f"the sub-recipe {sub_recipe!r} {why}",
            reason=error_reason_pb2.ERROR_REASON_SUB_RECIPE_MISSING,
            metadata={"recipe_id": recipe_id, "sub_recipe": sub_recipe},
        )


class ChecksNotAllowedError(FailedPreconditionError):
    """A recipe wants to run shell commands here."""

    def __init__(self, recipe_id: str) -> None:
        """`recipe_id` of the recipe whose retry has them."""
        super().__init__(
            "this deployment runs no shell commands of recipes; start it with skip_checks, or have them allowed",
            reason=error_reason_pb2.ERROR_REASON_CHECKS_NOT_ALLOWED,
            metadata={"recipe_id": recipe_id},
        )
