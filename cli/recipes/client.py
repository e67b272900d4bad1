"""The recipe service, as one user at a terminal has it."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from cli.conversations.client import Client
from cli.conversations.errors import Failure, ServiceRefusedError, UnreachableError
from cli.errors import CommandError
from gaggle.recipe.v1 import execution_pb2, recipe_pb2
from gaggle.recipe.v1 import execution_service_pb2 as runs
from gaggle.recipe.v1 import recipe_service_pb2 as pb
from gaggle.recipe.v1.execution_service_pb2_grpc import ExecutionServiceStub
from gaggle.recipe.v1.recipe_service_pb2_grpc import RecipeServiceStub

SERVICE = "recipe"
ENDED = frozenset(
    {
        execution_pb2.EXECUTION_STATUS_COMPLETED,
        execution_pb2.EXECUTION_STATUS_FAILED,
        execution_pb2.EXECUTION_STATUS_CANCELLED,
    }
)
_WATCH_PAUSE_SECONDS = 0.2


class RecipeClient:
    """Imports, finds and runs. Every change carries an id, so every call may be repeated."""

    def __init__(self, client: Client, *, patience_seconds: float) -> None:
        """`patience_seconds`: how long a stream that broke is tried again."""
        self._client = client
        self._patience = patience_seconds
        self._recipes: Any = RecipeServiceStub(client.channel)
        self._executions: Any = ExecutionServiceStub(client.channel)

    async def take(
        self, content: str, *, name: str, category: str, tags: list[str], bindings: Mapping[str, str]
    ) -> tuple[recipe_pb2.Recipe, str]:
        """Import a file: as a new recipe, or as the next version of the one that has its name.

        Gives the recipe and "new", "changed" or "unchanged". Raises as Client.call.
        """
        request = pb.ImportRecipeRequest(
            request_id=_id(),
            content=content,
            name=name,
            category=category,
            tags=tags,
            sub_recipe_ids=bindings,
        )
        known = (await self.named(name)) if name else []
        if len(known) != 1:
            taken = await self._client.call(self._recipes.ImportRecipe, request, pb.ImportRecipeResponse)
            return taken.recipe, "new"
        update = pb.UpdateRecipeRequest(
            request_id=_id(), recipe_id=known[0].id, content=content, sub_recipe_ids=bindings
        )
        if category:
            update.category = category
        if tags:
            update.tags.tags.extend(tags)
        changed = await self._client.call(self._recipes.UpdateRecipe, update, pb.UpdateRecipeResponse)
        return await self.get(known[0].id), "unchanged" if changed.etag == known[0].etag else "changed"

    async def named(self, name: str) -> list[recipe_pb2.Recipe]:
        """Those of a name. Raises as Client.call."""
        found = await self._client.call(
            self._recipes.FindRecipes, pb.FindRecipesRequest(name=name), pb.FindRecipesResponse
        )
        return list(found.recipes)

    async def get(self, recipe_id: str, version: int | None = None) -> recipe_pb2.Recipe:
        """One, by id. Raises as Client.call."""
        request = pb.GetRecipeRequest(recipe_id=recipe_id, version=version)
        return (await self._client.call(self._recipes.GetRecipe, request, pb.GetRecipeResponse)).recipe

    async def find(self, wanted: str) -> recipe_pb2.Recipe:
        """One, by name or id. Raises CommandError if there is none, or more than one of the name."""
        found = await self.named(wanted)
        if len(found) == 1:
            return await self.get(found[0].id)
        if found:
            ids = ", ".join(one.id for one in found)
            raise CommandError(f"{len(found)} recipes are named {wanted!r}; say which by its id: {ids}")
        try:
            return await self.get(wanted)
        except ServiceRefusedError as error:
            if error.failure.code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}:
                raise CommandError(f"there is no recipe {wanted!r}") from error
            raise

    async def all(self, request: pb.ListRecipesRequest) -> AsyncIterator[recipe_pb2.Recipe]:
        """Those that pass the request's filters. Raises as Client.call."""
        while True:
            page = await self._client.call(self._recipes.ListRecipes, request, pb.ListRecipesResponse)
            for recipe in page.recipes:
                yield recipe
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def export(self, request: pb.ExportRecipeRequest) -> pb.ExportRecipeResponse:
        """Give one as a file. Raises as Client.call."""
        return await self._client.call(self._recipes.ExportRecipe, request, pb.ExportRecipeResponse)

    async def start(self, request: runs.StartExecutionRequest) -> str:
        """Run one; gives the execution's id. Raises as Client.call."""
        request.request_id = _id()
        answer = await self._client.call(self._executions.StartExecution, request, runs.StartExecutionResponse)
        return answer.execution_id

    async def execution(self, execution_id: str) -> execution_pb2.Execution:
        """One execution. Raises as Client.call."""
        request = runs.GetExecutionRequest(execution_id=execution_id)
        return (await self._client.call(self._executions.GetExecution, request, runs.GetExecutionResponse)).execution

    async def watch(self, execution_id: str) -> AsyncIterator[execution_pb2.Execution]:
        """How an execution stands, and each change, to its end, whatever dies on the way.

        Raises:
            ServiceRefusedError: the service said no.
            UnreachableError: nothing answered for as long as patience lasts.
        """
        seen, answered = 0, time.monotonic()
        target = self._client.target
        while True:
            stream = (("dapr-stream", "true"),) if target.app_id else ()
            request = runs.WatchExecutionRequest(execution_id=execution_id, after_revision=seen)
            call = self._executions.WatchExecution(request, metadata=(*target.metadata(), *stream))
            try:
                async for response in call:
                    answered = time.monotonic()
                    seen = max(seen, int(response.execution.etag))
                    yield response.execution
                    if response.execution.status in ENDED:
                        return
            except grpc.aio.AioRpcError as error:
                failure = Failure.of(error)
                if not failure.is_transient:
                    raise ServiceRefusedError(failure) from error
                if time.monotonic() - answered > self._patience:
                    raise UnreachableError(f"{target.address} does not answer: {failure}") from error
            finally:
                call.cancel()
            await asyncio.sleep(_WATCH_PAUSE_SECONDS)


def _id() -> str:
    return f"cli-{uuid.uuid4()}"
