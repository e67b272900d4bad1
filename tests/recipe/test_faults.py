"""Processes that are killed in the middle of executions: each goes on, and no step that answered runs twice."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from gaggle.recipe.v1 import execution_pb2
from tests.conditions import eventually
from tests.mesh_fixture import Mesh
from tests.recipe.running import ENDED, Cook
from tests.recipe.test_executions import with_server

pytestmark = [pytest.mark.mesh, pytest.mark.slow, pytest.mark.xdist_group("recipe-faults")]

_EXECUTIONS = 4
_STEPS = 5


@pytest.fixture(scope="module")
def own(private_mesh: Callable[..., Mesh]) -> Iterator[Mesh]:
    """Two replicas of the recipe service and what they call, whose processes may be killed."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GAGGLE_ALLOW_SHELL_CHECKS", "true")
        yield private_mesh(only=["conversation", "audit", "recipe", "extension", "agent"], replicas={"recipe": 2})


async def _asked(call: Callable[[], Any]) -> Any:
    """Call until it is answered: a process may be away for a moment."""
    answer: list[Any] = []

    async def answered() -> bool:
        try:
            answer.append(await call())
        except grpc.aio.AioRpcError as error:
            if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                raise
            return False
        return True

    await eventually(answered, within=60, what="the service answers")
    return answer[0]


@pytest.mark.parametrize(
    "victims",
    [
        ["recipe"],
        ["recipe.daprd"],
        ["recipe", "recipe.daprd", "recipe-2", "recipe-2.daprd"],
        ["agent", "agent.daprd"],
        ["scheduler"],
        ["placement"],
        ["postgres"],
    ],
    ids="+".join,
)
async def test_killed_in_the_middle(own: Mesh, user: str, tmp_path: Path, victims: list[str]) -> None:
    """After kill -9 of any process executions end as they would have, each effect and each answer there once."""
    tools = "".join(
        f"- name: t{n}\n  tool: {{extension: odd, tool: append, arguments: {{path: '{{{{ file }}}}', text: 't{n}'}}}}\n"
        f'- {{name: p{n}, prompt: "pause 0.2\\nsay p{n} after {{{{ steps.t{n}.result }}}}"}}\n'
        for n in range(_STEPS)
    )
    content = with_server(f"steps:\n{tools}prompt: say done\n", "file")
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(own.channel("recipe", 1 if "recipe-2" not in victims else 0))
        cook = Cook(channel, own.metadata(user))
        made = await _asked(lambda: cook.take(content, request_id="recipe"))
        files = [tmp_path / str(n) for n in range(_EXECUTIONS)]
        ids = [
            await _asked(lambda n=n: cook.run(made.id, {"file": str(files[n])}, request_id=f"run-{n}"))  # type: ignore[misc]
            for n in range(_EXECUTIONS)
        ]

        async def all_of(done: Callable[[Any], bool]) -> bool:
            try:
                found = [(await cook("GetExecution", execution_id=one)).execution for one in ids]
            except grpc.aio.AioRpcError:
                return False
            return all(done(one) for one in found)

        await eventually(lambda: all_of(lambda one: one.completed_steps >= 2), within=60, what="all are under way")
        await asyncio.sleep(random.uniform(0, 0.5))
        dead = {victim: own.kill(victim) for victim in victims}
        for victim, pid in dead.items():
            await own.back(victim, pid, within=60)
        await eventually(lambda: all_of(lambda one: one.status in ENDED), within=150, what="all have ended")
        for number, one in enumerate(ids):
            execution = (await cook("GetExecution", execution_id=one)).execution
            assert execution.status == execution_pb2.EXECUTION_STATUS_COMPLETED, execution
            assert execution.result == "done"
            # A call that was under way in a server that died with its process may be made again, by the same id.
            assert files[number].read_text().split() == [f"t{n}" for n in range(_STEPS)]
            steps = await cook.steps(one)
            assert all(step.status == execution_pb2.STEP_STATUS_COMPLETED for step in steps.values())
            said = [step.result for step in steps.values() if step.name.startswith("p") and step.name != "prompt"]
            assert said == [f"p{n} after t{n}" for n in range(_STEPS)]


async def test_checks_where_they_are_allowed(own: Mesh, user: str, tmp_path: Path) -> None:
    """Where the operator allows it, checks decide: the run is tried again until they pass, on_failure in between."""
    flag = tmp_path / "flag"
    content = f"""
title: Checked
description: D
prompt: say x
retry:
  max_retries: 3
  checks: [{{type: shell, command: "test -f {flag} && test -z \\"$GAGGLE_APP_ID\\""}}]
  on_failure: "touch {flag}"
"""
    async with own.channel("recipe") as channel:
        cook = Cook(channel, own.metadata(user))
        execution_id = await _asked(lambda: cook.start(content))
        execution = await cook.ended(execution_id)
        assert (execution.status, execution.attempt) == (execution_pb2.EXECUTION_STATUS_COMPLETED, 2), execution
        statuses = [execution_pb2.StepStatus.Name(one.status)[12:] for one in execution.steps]
        assert statuses == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED"]
