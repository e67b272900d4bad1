"""The recipe service's methods: read the request, call the domain, shape the answer."""

from typing import Any

from gaggle.recipe.v1 import recipe_service_pb2 as api
from gaggle.recipe.v1 import recipe_service_pb2_grpc as api_grpc
from services.recipe import validation
from services.recipe.repository import Repository
from services.runtime.access import Access, user_or
from services.runtime.identity import current_caller
from services.runtime.validation import Violations

RECIPE_ACCESS: dict[str, Access] = {
    "GetRecipe": user_or("agent"),
    "ListRecipes": user_or("agent"),
    "FindRecipes": user_or("agent"),
}


class RecipeServicer(api_grpc.RecipeServiceServicer):
    """Serves gaggle.recipe.v1.RecipeService."""

    def __init__(self, repository: Repository) -> None:
        """`repository` keeps the recipes."""
        self._repository = repository

    async def CreateRecipe(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = _new(request)
        violations.check(ok=request.HasField("definition"), field="definition", what="must be set")
        violations.raise_if_any()
        return api.CreateRecipeResponse(recipe=await self._repository.create(_user(), request))

    async def GetRecipe(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.named("recipe_id", request.recipe_id).raise_if_any()
        version = request.version if request.HasField("version") else None
        return api.GetRecipeResponse(recipe=await self._repository.get(_user(), request.recipe_id, version))

    async def ListRecipes(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = Violations()
        validation.page(violations, request.page_size)
        validation.category(violations, request.category)
        validation.tags(violations, request.tags)
        size = len(request.text.encode())
        violations.check(ok=size <= validation.MAX_TEXT_BYTES, field="text", what="at most 256 bytes")
        violations.raise_if_any()
        return await self._repository.page(_user(), request)

    async def FindRecipes(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = Violations()
        validation.name(violations, request.name, required=True)
        violations.raise_if_any()
        return api.FindRecipesResponse(recipes=await self._repository.named(_user(), request.name))

    async def UpdateRecipe(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = validation.named("recipe_id", request.recipe_id, request.request_id)
        validation.name(violations, request.name, required=request.HasField("name"))
        validation.category(violations, request.category)
        validation.tags(violations, request.tags.tags, "tags.tags")
        validation.bindings(violations, request.sub_recipe_ids, removable=True)
        both = request.HasField("definition") and request.HasField("content")
        violations.check(ok=not both, field="content", what="not with definition")
        violations.raise_if_any()
        return await self._repository.update(_user(), request)

    async def DeleteRecipe(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.named("recipe_id", request.recipe_id, request.request_id).raise_if_any()
        await self._repository.delete(_user(), request)
        return api.DeleteRecipeResponse()

    async def ListRecipeVersions(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = validation.named("recipe_id", request.recipe_id)
        validation.page(violations, request.page_size)
        violations.raise_if_any()
        return await self._repository.versions(_user(), request)

    async def ImportRecipe(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = _new(request)
        violations.check(ok=bool(request.content), field="content", what="must be set")
        validation.recipe_format(violations, request.format)
        validation.bindings(violations, request.sub_recipe_ids, removable=False)
        violations.raise_if_any()
        return api.ImportRecipeResponse(recipe=await self._repository.take(_user(), request))

    async def ExportRecipe(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = validation.named("recipe_id", request.recipe_id)
        validation.recipe_format(violations, request.format)
        violations.raise_if_any()
        return await self._repository.export(_user(), request)


def _new(request: Any) -> Violations:
    violations = Violations()
    violations.id("recipe_id", request.recipe_id, required=False)
    violations.id("request_id", request.request_id, required=False)
    validation.name(violations, request.name, required=False)
    validation.category(violations, request.category)
    validation.tags(violations, request.tags)
    return violations


def _user() -> str:
    return current_caller().user_id
