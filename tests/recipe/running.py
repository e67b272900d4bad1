"""A user's calls of the recipe service."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc.aio
from google.protobuf import json_format

from gaggle.recipe.v1 import (
    execution_pb2,
    execution_service_pb2,
    execution_service_pb2_grpc,
    recipe_service_pb2,
    recipe_service_pb2_grpc,
)

TIMEOUT_SECONDS = 20.0
ENDED = {
    execution_pb2.EXECUTION_STATUS_COMPLETED,
    execution_pb2.EXECUTION_STATUS_FAILED,
    execution_pb2.EXECUTION_STATUS_CANCELLED,
}
Metadata = tuple[tuple[str, str], ...]


class Cook:
    """One user's way to the service: `await cook("GetRecipe", recipe_id=...)`."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        """`metadata` goes with every call."""
        self.metadata = metadata
        self.recipes: Any = recipe_service_pb2_grpc.RecipeServiceStub(channel)
        self.executions: Any = execution_service_pb2_grpc.ExecutionServiceStub(channel)

    async def __call__(self, method: str, **fields: Any) -> Any:
        """Make a unary call; `fields` are the request's."""
        api: Any = recipe_service_pb2 if hasattr(recipe_service_pb2, f"{method}Request") else execution_service_pb2
        stub = self.recipes if api is recipe_service_pb2 else self.executions
        request = getattr(api, f"{method}Request")(**fields)
        return await getattr(stub, method)(request, metadata=self.metadata, timeout=TIMEOUT_SECONDS)

    async def take(self, content: str, **fields: Any) -> Any:
        """Import a file; gives the recipe."""
        return (await self("ImportRecipe", content=content, **fields)).recipe

    async def start(self, content: str, parameters: dict[str, Any] | None = None, **fields: Any) -> str:
        """Import a file and run it; gives the execution's id."""
        recipe = await self.take(content)
        return await self.run(recipe.id, parameters, **fields)

    async def run(self, recipe_id: str, parameters: dict[str, Any] | None = None, **fields: Any) -> str:
        """Run a recipe; gives the execution's id."""
        request = execution_service_pb2.StartExecutionRequest(recipe_id=recipe_id, **fields)
        for key, value in (parameters or {}).items():
            json_format.ParseDict(value, request.parameters[key])
        response = await self.executions.StartExecution(request, metadata=self.metadata, timeout=TIMEOUT_SECONDS)
        return str(response.execution_id)

    async def watch(self, execution_id: str, after_revision: int = 0, *, timeout: float = 60.0) -> AsyncIterator[Any]:  # noqa: ASYNC109 - the call's deadline
        """Watch an execution; close the iterator to leave."""
        request = execution_service_pb2.WatchExecutionRequest(execution_id=execution_id, after_revision=after_revision)
        stream = self.executions.WatchExecution(request, metadata=self.metadata, timeout=timeout)
        try:
            async for response in stream:
                yield response.execution
        finally:
            stream.cancel()

    async def ended(self, execution_id: str, *, within: float = 60.0) -> Any:
        """Wait until an execution has ended; gives it."""
        async with aclosing(self.watch(execution_id, timeout=within)) as stream:  # type: ignore[type-var]
            async for execution in stream:
                if execution.status in ENDED:
                    return (await self("GetExecution", execution_id=execution_id)).execution
        raise AssertionError("the stream ended before the execution did")

    async def answers(self, execution_id: str) -> dict[str, str]:
        """Give what each step that has answered answered, by name; the last of a name counts."""
        steps = (await self("ListSteps", execution_id=execution_id, page_size=100)).steps
        return {one.name: one.result for one in steps if one.status == execution_pb2.STEP_STATUS_COMPLETED}

    async def steps(self, execution_id: str) -> dict[str, Any]:
        """Give the steps by id, with their attempts."""
        return {one.id: one for one in (await self("ListSteps", execution_id=execution_id, page_size=100)).steps}
