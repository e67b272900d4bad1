"""A user's calls of the recipe service."""

from typing import Any

import grpc.aio

from gaggle.recipe.v1 import (
    execution_service_pb2,
    execution_service_pb2_grpc,
    recipe_service_pb2,
    recipe_service_pb2_grpc,
)

TIMEOUT_SECONDS = 20.0
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
