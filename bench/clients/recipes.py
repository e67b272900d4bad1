"""Runs of a recipe of ten steps, each a call of a tool that does nothing, by the mesh's own contract."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc

from bench.clients.client import Spec
from bench.clients.tools import SERVER
from gaggle.recipe.v1 import (
    execution_pb2,
    execution_service_pb2,
    execution_service_pb2_grpc,
    recipe_service_pb2,
    recipe_service_pb2_grpc,
)

STEPS = 10
_UNDER_WAY = frozenset(
    {
        execution_pb2.EXECUTION_STATUS_PENDING,
        execution_pb2.EXECUTION_STATUS_RUNNING,
        execution_pb2.EXECUTION_STATUS_WAITING,
    }
)


def _recipe() -> str:
    extension = {"type": "stdio", "name": "bench", "description": "", "cmd": SERVER[0], "args": [SERVER[1]]}
    tool = {"extension": "bench", "tool": "echo", "arguments": {"text": "x" * 100}}
    steps = [{"name": f"s{number}", "tool": tool} for number in range(STEPS)]
    # The step that loads the extension counts as one of the ten.
    steps.pop()
    return json.dumps(
        {"title": "Bench", "description": "Ten steps", "instructions": "-", "extensions": [extension], "steps": steps}
    )


class Recipes:
    """One user's runs."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        """`metadata` goes with every call."""
        self._recipes: Any = recipe_service_pb2_grpc.RecipeServiceStub(channel)
        self._executions: Any = execution_service_pb2_grpc.ExecutionServiceStub(channel)
        self._metadata = metadata
        self._recipe_id = ""

    async def prepare(self, history: int) -> None:
        """Import the recipe, and run it once."""
        request = recipe_service_pb2.ImportRecipeRequest(content=_recipe())
        self._recipe_id = (await self._recipes.ImportRecipe(request, metadata=self._metadata)).recipe.id
        await self.read(history, 0)

    async def read(self, history: int, caller: int) -> None:  # noqa: ARG002 - a client's way
        """Run the recipe to its end."""
        start = execution_service_pb2.StartExecutionRequest(recipe_id=self._recipe_id)
        started = await self._executions.StartExecution(start, metadata=self._metadata)
        watch = execution_service_pb2.WatchExecutionRequest(execution_id=started.execution_id)
        call = self._executions.WatchExecution(watch, metadata=self._metadata)
        async for response in call:
            execution = response.execution
            if execution.status not in _UNDER_WAY:
                break
        call.cancel()
        assert execution.status == execution_pb2.EXECUTION_STATUS_COMPLETED, execution
        assert execution.completed_steps == STEPS, execution

    async def append(self, history: int, caller: int) -> None:
        """Nothing is appended."""

    async def reset(self, history: int) -> None:
        """Nothing was appended."""


@contextlib.asynccontextmanager
async def connect(spec: Spec) -> AsyncIterator[Recipes]:
    """Connect to the service's own port."""
    async with grpc.aio.insecure_channel(spec.recipe) as channel:
        yield Recipes(channel, (("authorization", f"Bearer {spec.token}"),))
