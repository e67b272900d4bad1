"""Executions on the real mesh, by the agent service's offline model: what they do, and what is told of it."""

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import struct_pb2

from gaggle.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, session_pb2
from gaggle.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from gaggle.recipe.v1 import execution_pb2
from tests.conditions import eventually
from tests.conversation.talking import refused
from tests.mcp_servers import servers
from tests.mesh_fixture import Mesh
from tests.recipe.corpus import needs_real, real
from tests.recipe.running import Cook

pytestmark = pytest.mark.mesh

COMPLETED = execution_pb2.EXECUTION_STATUS_COMPLETED
FAILED = execution_pb2.EXECUTION_STATUS_FAILED
CANCELLED = execution_pb2.EXECUTION_STATUS_CANCELLED


def recipe(body: str, *keys: str) -> str:
    """Write a recipe with string parameters of these keys."""
    parameters = "".join(
        f"- {{key: {key}, input_type: string, requirement: required, description: a value}}\n" for key in keys
    )
    return "title: Test\ndescription: D\n" + (f"parameters:\n{parameters}" if keys else "") + body


async def test_a_prompt_is_answered(cook: Cook) -> None:
    """A recipe's prompt is filled in, asked of the agent, and its answer is the execution's result."""
    execution_id = await cook.start(recipe("prompt: say Hello, {{ who }}!\n", "who"), {"who": "Ann"})
    execution = await cook.ended(execution_id)
    assert (execution.status, execution.result) == (COMPLETED, "Hello, Ann!"), execution
    assert (execution.total_steps, execution.completed_steps) == (1, 1)
    assert execution.conversation_id
    assert execution.start_time.ToDatetime() <= execution.end_time.ToDatetime()
    (step,) = (await cook.steps(execution_id)).values()
    assert (step.name, step.result, step.conversation_id) == ("prompt", "Hello, Ann!", execution.conversation_id)
    assert [one.number for one in step.attempts] == [1]
    assert step.attempts[0].end_time.ToDatetime() >= step.attempts[0].start_time.ToDatetime()


async def test_prompts_are_counted_in_one_session(cook: Cook, mesh: Mesh) -> None:
    """All prompts of an execution, sub-recipes' and parallel ones too, are counted in a session that ends with it."""
    body = """
steps:
- {name: first, prompt: say a}
- name: both
  parallel:
  - {name: left, prompt: say b}
  - {name: right, prompt: say c}
prompt: say d
"""
    execution = await cook.ended(await cook.start(recipe(body)))
    assert execution.status == COMPLETED, execution
    async with mesh.channel("agent") as channel:
        agent: Any = agent_service_pb2_grpc.AgentServiceStub(channel)
        request = agent_service_pb2.GetSessionRequest(session_id=execution.session_id)

        async def ended() -> Any:
            session = (await agent.GetSession(request, metadata=cook.metadata)).session
            return session if session.status == session_pb2.SESSION_STATUS_ENDED else None

        session = await eventually(ended, within=30, what="the session's end")
    assert (session.name, session.session_type, session.turn_count) == ("Test", "recipe", 4)
    assert session.accumulated_usage.model_calls == 4
    assert session.accumulated_usage.total_tokens > 0
    assert session.conversation_id == execution.conversation_id


async def test_steps_follow_one_another_and_see_what_was_answered(cook: Cook) -> None:
    """Steps run in order; each finds what those before answered; those in parallel have conversations of their own."""
    body = """
steps:
- {name: first, prompt: 'say {"n": 1}'}
- name: both
  parallel:
  - {name: left, prompt: 'say left of {{ steps.first.data.n }}'}
  - {name: right, prompt: 'say right of {{ steps.first.result }}'}
prompt: say {{ steps.left.result }}, {{ steps.right.result }}
"""
    execution_id = await cook.start(recipe(body))
    execution = await cook.ended(execution_id)
    assert execution.status == COMPLETED, execution
    assert execution.result == 'left of 1, right of {"n": 1}'
    steps = await cook.steps(execution_id)
    assert [(one.id, one.name, one.parent_id) for one in steps.values()] == [
        ("0", "first", ""), ("1", "both", ""), ("2", "left", "1"), ("3", "right", "1"), ("4", "prompt", "")
    ]  # fmt: skip
    conversations = [one.conversation_id for one in steps.values() if one.kind == execution_pb2.STEP_KIND_PROMPT]
    assert len(set(conversations)) == 3
    assert conversations[0] == conversations[-1] == execution.conversation_id


async def test_a_response_is_held_to_its_schema(cook: Cook) -> None:
    """An answer that meets the recipe's schema is the result as JSON; one that does not fails the execution."""
    body = "response:\n  json_schema: {type: object, required: [n], properties: {n: {type: integer}}}\n"
    good = await cook.ended(await cook.start(recipe(body + "prompt: 'say {\"n\": 3}'\n")))
    assert (good.status, json.loads(good.result)) == (COMPLETED, {"n": 3})
    bad = await cook.ended(await cook.start(recipe(body + 'prompt: \'say {"n": "x"}\'\n')))
    assert bad.status == FAILED
    assert bad.error.reason in {"MODEL_RESPONSE_INVALID", "RESPONSE_INVALID"}


def with_server(body: str, *keys: str) -> str:
    """Write a recipe that names the test server as an extension."""
    command, *arguments = servers.ODD
    extension = {"type": "stdio", "name": "odd", "description": "odd", "cmd": command, "args": arguments}
    return recipe(f"extensions: {json.dumps([extension])}\n{body}", *keys)


async def test_tools_are_called(cook: Cook, tmp_path: Path) -> None:
    """A recipe's extensions are registered and loaded, its tool steps called with arguments filled in, typed."""
    file = tmp_path / "effects"
    body = f"""
steps:
- name: note
  tool: {{extension: odd, tool: append, arguments: {{path: "{file}", text: "by {{{{ who }}}}"}}}}
- name: asked
  prompt: 'tool append {{"path": "{file}", "text": "again"}}'
- name: broken
  tool: {{extension: odd, tool: fail, arguments: {{why: "no luck"}}}}
- name: never
  prompt: say never
"""
    execution = await cook.ended(await cook.start(with_server(body, "who"), {"who": "Ann"}))
    assert (execution.status, execution.error.reason) == (FAILED, "TOOL_ERROR"), execution
    assert "no luck" in execution.error.message
    statuses = {one.name: execution_pb2.StepStatus.Name(one.status)[12:] for one in execution.steps}
    assert statuses == {
        "extensions": "COMPLETED", "note": "COMPLETED", "asked": "COMPLETED", "broken": "FAILED", "never": "SKIPPED"
    }  # fmt: skip
    assert file.read_text() == "by Ann\nagain\n"
    assert execution.error.step_id == execution.steps[3].id


async def test_sub_recipes(cook: Cook) -> None:
    """Sub-recipes run before the prompt, with values and the parent's parameters; it is told their answers."""
    part = await cook.take(recipe("prompt: say part of {{ who }} at {{ level }}\n", "who", "level"))
    body = """
sub_recipes:
- {name: one, path: ./one.yaml, values: {level: high}}
- {name: two, path: ./two.yaml, values: {level: low, who: Bob}}
prompt: "say whole of {{ who }}"
"""
    content = recipe(body, "who")
    for parallel in (False, True):
        whole = await cook.take(content, sub_recipe_ids={"one": part.id, "two": part.id})
        execution_id = await cook.run(whole.id, {"who": "Ann"}, options={"parallel_sub_recipes": parallel})
        execution = await cook.ended(execution_id)
        assert execution.status == COMPLETED, execution
        answers = await cook.answers(execution_id)
        assert (answers["one"], answers["two"]) == ("part of Ann at high", "part of Bob at low")
        assert answers["prompt"].startswith("whole of Ann")
        assert "What one answered:\npart of Ann at high" in answers["prompt"]
        assert execution.total_steps == (6 if parallel else 5)
        assert execution.completed_steps == execution.total_steps


async def test_a_sub_recipe_that_is_missing_is_refused_when_run(cook: Cook) -> None:
    """A recipe whose sub-recipe is not bound, gone, or itself is imported, and refused when it is run."""
    body = "sub_recipes:\n- {name: one, path: ./one.yaml}\nprompt: say x\n"
    whole = await cook.take(recipe(body))
    refusal = await refused(cook("StartExecution", recipe_id=whole.id))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "SUB_RECIPE_MISSING")
    assert refusal.facts == {"recipe_id": whole.id, "sub_recipe": "one"}
    await cook("UpdateRecipe", recipe_id=whole.id, sub_recipe_ids={"one": whole.id})
    refusal = await refused(cook("StartExecution", recipe_id=whole.id))
    assert (refusal.reason, "itself" in refusal.message) == ("SUB_RECIPE_MISSING", True)
    part = await cook.take(recipe("prompt: say {{ who }}\n", "who"))
    await cook("UpdateRecipe", recipe_id=whole.id, sub_recipe_ids={"one": part.id})
    refusal = await refused(cook("StartExecution", recipe_id=whole.id))
    assert (refusal.code, "'who'" in refusal.message) == ("FAILED_PRECONDITION", True)
    await cook("DeleteRecipe", recipe_id=part.id)
    assert (await refused(cook("StartExecution", recipe_id=whole.id))).reason == "SUB_RECIPE_MISSING"
    assert not (await cook("ListExecutions")).executions


@needs_real
async def test_the_real_pipeline(cook: Cook) -> None:
    """The real pipeline is refused for its missing part; with a stand-in for it, it runs with all its sub-recipes."""
    parts = {}
    for name in ("data-cleaner", "statistical-analyzer", "chart-generator"):
        parts[name.replace("-", "_")] = (await cook.take(real(f"subrecipes/{name}.yaml"))).id
    whole = await cook.take(real("data-analysis-pipeline.yaml"), sub_recipe_ids=parts)
    values = {"parameters": {"data_file": struct_pb2.Value(string_value="data.csv")}}
    refusal = await refused(cook("StartExecution", recipe_id=whole.id, **values))
    assert (refusal.reason, refusal.facts["sub_recipe"]) == ("SUB_RECIPE_MISSING", "data_validator")
    stand_in = await cook.take(recipe("prompt: say valid {{ data_file }}\n", "data_file"))
    await cook("UpdateRecipe", recipe_id=whole.id, sub_recipe_ids={"data_validator": stand_in.id})
    started = await cook("StartExecution", recipe_id=whole.id, **values)
    execution = await cook.ended(started.execution_id, within=90)
    # Its file server is on no list of this deployment's: nothing of it was run.
    assert (execution.status, execution.error.reason) == (FAILED, "MCP_TARGET_BLOCKED"), execution


@pytest.mark.parametrize(
    ("parameters", "fields"),
    [
        ({}, {"parameters['n']", "parameters['when']", "parameters['kind']"}),
        ({"n": "three", "when": "2025-01-31", "kind": "a"}, {"parameters['n']"}),
        ({"n": 3, "when": "31.1.2025", "kind": "a"}, {"parameters['when']"}),
        ({"n": 3, "when": "2025-01-31", "kind": "c"}, {"parameters['kind']"}),
        ({"n": 3, "when": "2025-01-31", "kind": "a", "other": 1}, {"parameters['other']"}),
        ({"n": 3, "when": "2025-01-31", "kind": "a", "flag": "maybe"}, {"parameters['flag']"}),
        ({"n": 3, "when": "2025-01-31", "kind": "a", "list": {}}, {"parameters['list']"}),
    ],
)
async def test_bad_parameters_are_refused(cook: Cook, parameters: dict[str, Any], fields: set[str]) -> None:
    """A parameter that is missing, unknown or of another type is INVALID_ARGUMENT, by name."""
    refusal = await refused(cook.start(_TYPED, parameters))
    assert (refusal.code, set(refusal.fields)) == ("INVALID_ARGUMENT", fields)


_TYPED = """
title: Typed
description: D
parameters:
- {key: n, input_type: number, requirement: required, description: d}
- {key: when, input_type: date, requirement: required, description: d}
- {key: kind, input_type: select, requirement: user_prompt, description: d, options: [a, b]}
- {key: flag, input_type: boolean, requirement: optional, description: d, default: false}
- {key: list, input_type: array, requirement: optional, description: d, default: [1, x]}
prompt: say {{ n }} {{ when }} {{ kind }} {{ flag }} {{ list | join(",") }}
"""


async def test_parameters_are_typed(cook: Cook) -> None:
    """Parameters are read as their types, strings too, and defaults are filled in."""
    execution_id = await cook.start(_TYPED, {"n": "7", "when": "2025-01-31", "kind": "b"})
    execution = await cook.ended(execution_id)
    assert execution.result == "7 2025-01-31 b false 1,x"
    assert execution.parameters["n"].number_value == 7
    assert execution.parameters["flag"].bool_value is False
    assert len(execution.parameters["list"].list_value.values) == 2


async def test_shell_checks_are_not_run_here(cook: Cook) -> None:
    """Where shell commands are not allowed, a recipe with checks is refused, or run without them if asked."""
    body = "prompt: say x\nretry: {max_retries: 2, checks: [{type: shell, command: 'touch /tmp/never'}]}\n"
    made = await cook.take(recipe(body))
    refusal = await refused(cook("StartExecution", recipe_id=made.id))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "CHECKS_NOT_ALLOWED")
    execution = await cook.ended(await cook.run(made.id, options={"skip_checks": True}))
    assert (execution.status, execution.total_steps) == (COMPLETED, 1)


async def test_a_failed_run_is_tried_again(cook: Cook, tmp_path: Path) -> None:
    """A recipe whose run fails is run again as often as its retry says; what each try did is kept."""
    file = tmp_path / "effects"
    body = f"""
retry: {{max_retries: 2}}
steps:
- name: note
  tool: {{extension: odd, tool: append, arguments: {{path: "{file}", text: "x"}}}}
- name: broken
  tool: {{extension: odd, tool: fail, arguments: {{why: "no luck"}}}}
- {{name: never, prompt: say never}}
"""
    execution = await cook.ended(await cook.start(with_server(body)))
    assert (execution.status, execution.attempt) == (FAILED, 3), execution
    assert file.read_text() == "x\nx\nx\n"
    assert [one.id for one in execution.steps if one.name == "broken"] == ["2", "try2/2", "try3/2"]
    assert {one.status for one in execution.steps if one.name == "never"} == {execution_pb2.STEP_STATUS_SKIPPED}


async def test_cancelled_means_stopped(cook: Cook) -> None:
    """A cancelled execution ends at once, its agent's turn too; cancelling again is OK, resuming is not."""
    execution_id = await cook.start(recipe("steps:\n- {name: long, prompt: pause 50}\nprompt: say x\n"))

    async def running() -> bool:
        execution = (await cook("GetExecution", execution_id=execution_id)).execution
        return bool(execution.steps[0].status == execution_pb2.STEP_STATUS_RUNNING)

    await eventually(running, within=20, what="the step runs")
    cancelled = await cook("CancelExecution", execution_id=execution_id)
    assert cancelled.status == CANCELLED
    execution = (await cook("GetExecution", execution_id=execution_id)).execution
    assert execution.steps[1].status == execution_pb2.STEP_STATUS_SKIPPED
    assert (await cook("CancelExecution", execution_id=execution_id)).etag == cancelled.etag
    refusal = await refused(cook("ResumeExecution", execution_id=execution_id))
    assert (refusal.code, refusal.facts) == ("FAILED_PRECONDITION", {"state": "CANCELLED"})


async def test_paused_means_that_nothing_begins(cook: Cook) -> None:
    """While an execution is paused no step begins; resumed, it goes on to its end."""
    steps = "".join(f"- {{name: s{n}, prompt: 'pause 1\\nsay {n}'}}\n" for n in range(3)).replace("'", '"')
    execution_id = await cook.start(recipe(f"steps:\n{steps}"))

    async def first_done() -> bool:
        execution = (await cook("GetExecution", execution_id=execution_id)).execution
        return bool(execution.completed_steps >= 1)

    await eventually(first_done, within=30, what="the first step is done")
    assert (await cook("PauseExecution", execution_id=execution_id)).status == execution_pb2.EXECUTION_STATUS_PAUSED

    async def settled() -> bool:
        steps = (await cook("GetExecution", execution_id=execution_id)).execution.steps
        return all(one.status != execution_pb2.STEP_STATUS_RUNNING for one in steps)

    await eventually(settled, within=20, what="what had begun is finished")
    before = (await cook("GetExecution", execution_id=execution_id)).execution
    assert before.status == execution_pb2.EXECUTION_STATUS_PAUSED
    assert before.completed_steps < 3
    assert [one.id for one in (await cook("ListExecutions", statuses=["EXECUTION_STATUS_PAUSED"])).executions] == [
        execution_id
    ]
    assert (await cook("ResumeExecution", execution_id=execution_id)).status == execution_pb2.EXECUTION_STATUS_RUNNING
    execution = await cook.ended(execution_id)
    assert (execution.status, execution.result) == (COMPLETED, "2")
    assert all(one.attempt_count == 1 for one in execution.steps)


async def test_an_approval_is_waited_for(mesh: Mesh, cook: Cook, tmp_path: Path) -> None:
    """A prompt whose tool needs a person waits without running it, and goes on once the person has approved."""
    file = tmp_path / "effects"
    body = f"""prompt: 'tool append {{"path": "{file}", "text": "approved"}}'\n"""
    made = await cook.take(with_server(body))
    options = {"approval": {"mode": "APPROVAL_MODE_APPROVE"}}
    execution_id = await cook.run(made.id, options=options)

    async def waiting() -> bool:
        execution = (await cook("GetExecution", execution_id=execution_id)).execution
        assert execution.status not in {FAILED, COMPLETED}, execution
        return bool(execution.status == execution_pb2.EXECUTION_STATUS_WAITING)

    await eventually(waiting, within=40, what="the execution waits")
    assert not file.exists()
    turn_id = (await cook.steps(execution_id))["1"].attempts[0].request_id
    async with mesh.channel("agent") as channel:
        agent: Any = agent_service_pb2_grpc.AgentServiceStub(channel)
        turn = (await agent.GetTurn(agent_service_pb2.GetTurnRequest(turn_id=turn_id), metadata=cook.metadata)).turn
        (call,) = turn.tool_calls
        await agent.ApproveToolCall(
            agent_service_pb2.ApproveToolCallRequest(turn_id=turn_id, call_id=call.id), metadata=cook.metadata
        )
    execution = await cook.ended(execution_id)
    assert execution.status == COMPLETED, execution
    assert file.read_text() == "approved\n"


async def test_watching_shows_each_change_and_resumes(cook: Cook) -> None:
    """A watcher sees an execution to its end; cut off, it goes on from the revision it knows."""
    execution_id = await cook.start(recipe("steps:\n- {name: a, prompt: say a}\n- {name: b, prompt: say b}\n"))
    seen = 0
    async with aclosing(cook.watch(execution_id)) as stream:  # type: ignore[type-var]
        async for execution in stream:
            seen = int(execution.etag)
            if execution.completed_steps:
                break
    last = None
    async with aclosing(cook.watch(execution_id, seen)) as stream:  # type: ignore[type-var]
        async for execution in stream:
            assert all(one.revision > seen for one in execution.steps)
            last = execution
    assert last is not None
    assert (last.status, last.result) == (COMPLETED, "b")


async def test_a_repeated_start_is_one_execution(cook: Cook, stranger: Cook) -> None:
    """The same request_id starts one execution; executions are listed by status and recipe; strangers see none."""
    made = await cook.take(recipe("prompt: say x\n"))
    ids = {await cook.run(made.id, request_id="once") for _ in range(3)}
    (execution_id,) = ids
    await cook.ended(execution_id)
    done = (await cook("ListExecutions", statuses=["EXECUTION_STATUS_COMPLETED"], recipe_id=made.id)).executions
    assert [one.id for one in done] == [execution_id]
    assert not done[0].steps
    assert not (await cook("ListExecutions", statuses=["EXECUTION_STATUS_FAILED"])).executions
    assert not (await stranger("ListExecutions")).executions
    for method in ("GetExecution", "ListSteps", "CancelExecution", "PauseExecution", "ResumeExecution"):
        theirs = await refused(stranger(method, execution_id=execution_id))
        assert (theirs.code, theirs.facts["type"]) == ("NOT_FOUND", "execution")
    assert (await refused(stranger.run(made.id))).code == "NOT_FOUND"


async def test_what_takes_too_long_fails(cook: Cook) -> None:
    """An execution that has not ended in its time fails with TIMEOUT, and begins no further step."""
    body = "steps:\n- {name: a, prompt: pause 2}\n- {name: b, prompt: say b}\n"
    made = await cook.take(recipe(body))
    execution = await cook.ended(await cook.run(made.id, options={"timeout": {"seconds": 1}}))
    assert (execution.status, execution.error.reason) == (FAILED, "TIMEOUT")
    assert execution.steps[1].status == execution_pb2.STEP_STATUS_SKIPPED


async def test_everything_is_told(mesh: Mesh, cook: Cook) -> None:
    """Start, each step and the end are events in the log, by consecutive revisions, without what was said."""
    execution_id = await cook.start(recipe("steps:\n- {name: a, prompt: say secret}\nprompt: say b\n"))
    await cook.ended(execution_id)
    async with mesh.channel("audit") as channel:
        audit: Any = audit_service_pb2_grpc.AuditServiceStub(channel)
        request = audit_service_pb2.ListEventsRequest(
            filter=audit_service_pb2.EventFilter(entity_type="execution", entity_id=execution_id)
        )

        async def told() -> list[Any]:
            response = await audit.ListEvents(request, metadata=cook.metadata, timeout=10)
            return sorted((one.event for one in response.entries), key=lambda one: one.revision)

        async def all_told() -> bool:
            return len(await told()) >= 6

        await eventually(all_told, within=30, what="the log has the events")
        events = await told()
    assert [one.event_type.removeprefix("goose.recipe.") for one in events] == [
        "started", "step.started", "step.completed", "step.started", "step.completed", "completed"
    ]  # fmt: skip
    assert [one.revision for one in events] == [1, 2, 3, 4, 5, 6]
    assert "secret" not in str(events)


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        ("StartExecution", {}, "recipe_id"),
        ("StartExecution", {"recipe_id": "x", "execution_id": "/"}, "execution_id"),
        ("StartExecution", {"recipe_id": "x", "options": {"timeout": {"seconds": 0}}}, "options.timeout"),
        ("GetExecution", {}, "execution_id"),
        ("ListExecutions", {"page_size": -1}, "page_size"),
        ("ListExecutions", {"statuses": [99]}, "statuses[0]"),
        ("ListExecutions", {"page_token": "AAAA"}, "page_token"),
        ("ListSteps", {"execution_id": "x", "page_size": -1}, "page_size"),
        ("CancelExecution", {"execution_id": "x", "request_id": " "}, "request_id"),
    ],
)
async def test_bad_requests_are_refused(cook: Cook, method: str, fields: dict[str, Any], field: str) -> None:
    """A missing or invalid field is INVALID_ARGUMENT, and named."""
    refusal = await refused(cook(method, **fields))
    assert refusal.code == "INVALID_ARGUMENT"
    assert field in refusal.fields


async def test_many_at_once(cook: Cook) -> None:
    """Executions of one user run at once, and each ends."""
    made = await cook.take(recipe("steps:\n- {name: a, prompt: say a}\nprompt: say b\n"))
    ids = await asyncio.gather(*(cook.run(made.id) for _ in range(8)))
    executions = await asyncio.gather(*(cook.ended(one) for one in ids))
    assert [one.status for one in executions] == [COMPLETED] * 8
