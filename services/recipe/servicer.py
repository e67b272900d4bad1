"""The recipe service's methods: read the request, call the domain, shape the answer."""

from collections.abc import AsyncIterator
from typing import Any

from gaggle.recipe.v1 import execution_service_pb2 as execution_api
from gaggle.recipe.v1 import execution_service_pb2_grpc as execution_grpc
from gaggle.recipe.v1 import recipe_service_pb2 as api
from gaggle.recipe.v1 import recipe_service_pb2_grpc as api_grpc
from services.recipe import validation
from services.recipe.executions import Executions
from services.recipe.repository import Repository
from services.recipe.watching import Watcher
from services.runtime.access import Access, user_or
from services.runtime.identity import current_caller
from services.runtime.validation import Violations

RECIPE_ACCESS: dict[str, Access] = {
    "GetRecipe": user_or("agent"),
    "ListRecipes": user_or("agent"),
    "FindRecipes": user_or("agent"),
}


EXECUTION_ACCESS: dict[str, Access] = {}


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


class ExecutionServicer(execution_grpc.ExecutionServiceServicer):
    """Serves gaggle.recipe.v1.ExecutionService."""

    def __init__(self, executions: Executions, watcher: Watcher) -> None:
        """`executions` keeps them, `watcher` streams how they stand."""
        self._executions = executions
        self._watcher = watcher

    async def StartExecution(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = validation.named("recipe_id", request.recipe_id, request.request_id)
        violations.id("execution_id", request.execution_id, required=False)
        validation.options(violations, request.options)
        validation.parameters(violations, request)
        violations.raise_if_any()
        return await self._executions.start(_user(), request)

    async def GetExecution(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.named("execution_id", request.execution_id).raise_if_any()
        return execution_api.GetExecutionResponse(execution=await self._executions.get(_user(), request.execution_id))

    async def ListExecutions(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = Violations()
        validation.page(violations, request.page_size)
        validation.statuses(violations, request.statuses)
        violations.id("recipe_id", request.recipe_id, required=False)
        violations.raise_if_any()
        return await self._executions.page(_user(), request)

    async def ListSteps(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = validation.named("execution_id", request.execution_id)
        validation.page(violations, request.page_size)
        violations.raise_if_any()
        return await self._executions.steps(_user(), request)

    async def CancelExecution(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.named("execution_id", request.execution_id, request.request_id).raise_if_any()
        return await self._executions.cancel(_user(), request)

    async def PauseExecution(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.named("execution_id", request.execution_id, request.request_id).raise_if_any()
        return await self._executions.pause(_user(), request)

    async def ResumeExecution(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.named("execution_id", request.execution_id, request.request_id).raise_if_any()
        return await self._executions.resume(_user(), request)

    async def WatchExecution(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002
        """See the contract."""
        validation.named("execution_id", request.execution_id).raise_if_any()
        async for response in self._watcher.watch(_user(), request):
            yield response


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
