"""Executions in the state store: a head with all steps, the plan, and a record of each step's attempts and answer.

The head is the truth. The workflow walks the plan and asks here, before each step, whether it is still to be done.
"""

import asyncio
import contextvars
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from google.protobuf import json_format, struct_pb2

from gaggle.recipe.state.v1 import document_pb2
from gaggle.recipe.v1 import event_pb2, execution_pb2, recipe_pb2
from gaggle.recipe.v1 import execution_service_pb2 as api
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from gaggle.runtime.state.v1 import entity_pb2
from services.recipe import parameters
from services.recipe.errors import ChecksNotAllowedError, SubRecipeMissingError
from services.recipe.planning import Planner, TooManyStepsError, pending
from services.recipe.repository import Repository
from services.recipe.settings import RecipeSettings
from services.runtime import paging, topics
from services.runtime.entities import Draft, Entities, advance
from services.runtime.errors import FailedPreconditionError, GaggleError, InvalidArgumentError
from services.runtime.ids import new_id
from services.runtime.keys import user_part
from services.runtime.requests import body_hash
from services.runtime.state import Put, Remove, StateStore
from services.runtime.telemetry import current_trace

NUDGE = "execution.nudge"
MAX_PLAN_BYTES = 2 * 1024 * 1024
MAX_RESULT_BYTES = 256 * 1024
MAX_ATTEMPTS_KEPT = 32
MAX_DURATION = timedelta(days=30)
WAITING_TTL_SECONDS = 31 * 24 * 3600
_PAGE = 20
_STEPS_PAGE = 50
_MOST_PAGE = 100
_MAX_RESPONSE_BYTES = 3 * 1024 * 1024
_RECORDS_AT_ONCE = 16
_CUT = "\n[cut: the rest was longer than may be kept]"

_log = structlog.get_logger()

Head = document_pb2.ExecutionHead
Status = execution_pb2.ExecutionStatus

ENDED = frozenset(
    {
        execution_pb2.EXECUTION_STATUS_COMPLETED,
        execution_pb2.EXECUTION_STATUS_FAILED,
        execution_pb2.EXECUTION_STATUS_CANCELLED,
    }
)


class Executions:
    """The executions of all users."""

    def __init__(
        self, state: StateStore, entities: Entities[Head], repository: Repository, settings: RecipeSettings
    ) -> None:
        """`entities` are those of kind "execution"."""
        self.state = state
        self.entities = entities
        self.nudge: Callable[[bytes], Awaitable[None]] | None = None
        """Has a workflow started, woken or stopped, given a serialized Nudge."""

        self._repository = repository
        self._settings = settings
        self._nudging: set[asyncio.Task[None]] = set()

    def _nudge_soon(self, user_id: str, execution_id: str) -> None:
        """Do at once what the outbox does otherwise, after the events: a broker that is away must not hold it up."""
        nudge = self.nudge
        if nudge is None:
            return
        work = document_pb2.Nudge(user_id=user_id, execution_id=execution_id).SerializeToString()

        async def do() -> None:
            try:
                await nudge(work)
            except GaggleError as error:
                _log.info("nudge_left_to_the_outbox", execution=execution_id, error=error.message)

        # In a context of its own: the caller's deadline has no say here, only its trace.
        context = contextvars.Context()
        context.run(current_trace.set, current_trace.get())
        task = asyncio.create_task(do(), context=context)
        self._nudging.add(task)
        task.add_done_callback(self._nudging.discard)

    # -- keys

    def plan_key(self, user_id: str, execution_id: str) -> str:
        """Key of an execution's plan."""
        return f"{self.entities.key(user_id, execution_id)}:plan"

    def step_key(self, user_id: str, execution_id: str, step_id: str) -> str:
        """Key of the record of a step."""
        return f"{self.entities.key(user_id, execution_id)}:s{step_id}"

    @staticmethod
    def waiting_key(user_id: str, turn_id: str) -> str:
        """Key of the execution that waits for a turn of the agent service."""
        return f"waiting:{user_part(user_id)}:{turn_id}"

    # -- starting

    async def start(self, user_id: str, request: api.StartExecutionRequest) -> api.StartExecutionResponse:
        """Accept a run. Raises what the contract says."""
        execution_id = request.execution_id or new_id()

        async def build(entity: entity_pb2.Entity) -> Draft[Head]:
            head, plan = await self._prepared(user_id, request)
            head.entity.CopyFrom(entity)
            head.execution.conversation_id = reference(user_id, entity, "conversation")
            head.execution.session_id = reference(user_id, entity, "session")
            limit = MAX_DURATION
            if request.options.HasField("timeout"):
                limit = request.options.timeout.ToTimedelta()
            head.deadline.FromDatetime(entity.create_time.ToDatetime(UTC) + limit)
            put = Put(self.plan_key(user_id, entity.id), plan.SerializeToString())
            return self.draft(user_id, head, {topics.RECIPE_STARTED: execution_event(head)}, [put], nudge=True)

        digest = body_hash("StartExecution", request)
        answer = await self.entities.create(user_id, execution_id, request.request_id, digest, build)
        given = document_pb2.ExecutionAnswer.FromString(answer)
        self._nudge_soon(user_id, given.execution_id)
        return api.StartExecutionResponse(
            execution_id=given.execution_id, etag=str(given.revision), create_time=given.create_time
        )

    async def _prepared(self, user_id: str, request: api.StartExecutionRequest) -> tuple[Head, document_pb2.Plan]:
        options = request.options
        plan = document_pb2.Plan()
        version = request.version if request.HasField("version") else None
        await self._add_recipe(user_id, plan, request.recipe_id, version, ())
        root = plan.recipes[0]
        document = json.loads(root.document_json)
        values, faults = parameters.resolve(document, plain(request.parameters))
        if faults:
            raise InvalidArgumentError({f"parameters[{key!r}]": what for key, what in faults.items()})
        root.parameters_json = json.dumps(values, ensure_ascii=False)
        self._check_sub_parameters(plan, 0, set(values))
        if not options.skip_checks and not self._settings.allow_shell_checks:
            for one in plan.recipes:
                retry = json.loads(one.document_json).get("retry") or {}
                if retry.get("checks") or retry.get("on_failure"):
                    raise ChecksNotAllowedError(one.recipe_id)
        try:
            self.planner(plan, options).run()
        except TooManyStepsError as error:
            raise FailedPreconditionError(str(error)) from error
        recipe = await self._repository.entities.get(user_id, request.recipe_id)
        head = Head(steps=[pending(step) for step in plan.steps])
        head.execution.CopyFrom(
            execution_pb2.Execution(
                recipe_id=request.recipe_id,
                recipe_name=recipe.recipe.name,
                recipe_version=version or recipe.recipe.version,
                status=execution_pb2.EXECUTION_STATUS_PENDING,
                options=options,
                attempt=1,
                warnings=[one for one in recipe.recipe.warnings if not one.sub_recipe],
            )
        )
        for key, value in values.items():
            json_format.ParseDict(value, head.execution.parameters[key])
        return head, plan

    def planner(self, plan: document_pb2.Plan, options: recipe_pb2.ExecutionOptions) -> Planner:
        """Give what adds steps to a plan."""
        return Planner(
            plan,
            parallel_sub_recipes=options.parallel_sub_recipes,
            with_checks=not options.skip_checks,
            max_steps=self._settings.max_steps,
        )

    async def _add_recipe(
        self, user_id: str, plan: document_pb2.Plan, recipe_id: str, version: int | None, above: tuple[str, ...]
    ) -> int:
        """Take a recipe and its sub-recipes into the plan; gives its place."""
        head = await self._repository.entities.get(user_id, recipe_id)
        document = (await self._repository.content(user_id, head, version)).file.recipe
        place = len(plan.recipes)
        planned = plan.recipes.add(
            recipe_id=recipe_id, name=head.recipe.name, document_json=json.dumps(document, ensure_ascii=False)
        )
        if plan.ByteSize() > MAX_PLAN_BYTES:
            raise FailedPreconditionError(f"recipe and sub-recipes together are over {MAX_PLAN_BYTES} bytes")
        for one in document.get("sub_recipes") or ():
            name = one["name"]
            bound = head.sub_recipe_ids.get(name, "")
            if not bound:
                raise SubRecipeMissingError(recipe_id, name, f"({one['path']}) is not bound to a recipe")
            if bound in (*above, recipe_id):
                raise SubRecipeMissingError(recipe_id, name, "is a recipe that it is part of itself")
            if len(above) + 1 >= self._settings.max_depth:
                raise SubRecipeMissingError(recipe_id, name, f"lies deeper than {self._settings.max_depth} recipes")
            if not await self._repository.entities.get_many(user_id, [bound]):
                raise SubRecipeMissingError(recipe_id, name, "is a recipe that is gone")
            planned.sub_recipes[name] = await self._add_recipe(user_id, plan, bound, None, (*above, recipe_id))
        return place

    def _check_sub_parameters(self, plan: document_pb2.Plan, place: int, available: set[str]) -> None:
        """See that every parameter of every sub-recipe will come from somewhere. Raises FailedPreconditionError."""
        document = json.loads(plan.recipes[place].document_json)
        for one in document.get("sub_recipes") or ():
            sub = json.loads(plan.recipes[plan.recipes[place].sub_recipes[one["name"]]].document_json)
            given = set(one.get("values") or ()) | available
            for step in _sub_steps(document, one["name"]):
                given |= set(step.get("values") or ())
            for declared in sub.get("parameters") or ():
                if declared.get("default") is None and declared["key"] not in given:
                    raise FailedPreconditionError(
                        f"the sub-recipe {one['name']!r} needs a value for its parameter {declared['key']!r}",
                        metadata={"sub_recipe": one["name"], "parameter": declared["key"]},
                    )
            inner = plan.recipes[place].sub_recipes[one["name"]]
            self._check_sub_parameters(plan, inner, {entry["key"] for entry in sub.get("parameters") or ()})

    # -- reading

    async def get(self, user_id: str, execution_id: str) -> execution_pb2.Execution:
        """Read an execution with its steps. Raises NotFoundError."""
        return describe(await self.entities.get(user_id, execution_id))

    async def page(self, user_id: str, request: api.ListExecutionsRequest) -> api.ListExecutionsResponse:
        """List a user's executions."""
        size = paging.page_size(request.page_size, default=_PAGE, most=_MOST_PAGE)
        wanted = set(request.statuses)

        def match(head: Head) -> bool:
            execution = head.execution
            return (not wanted or execution.status in wanted) and request.recipe_id in ("", execution.recipe_id)

        scope = (*map(str, sorted(wanted)), "\0", request.recipe_id)
        heads, token = await self.entities.page(user_id, size=size, token=request.page_token, scope=scope, match=match)
        found = [describe(head, steps=()) for head in heads]
        for one in found:
            one.result = ""
        return api.ListExecutionsResponse(executions=found, next_page_token=token)

    async def steps(self, user_id: str, request: api.ListStepsRequest) -> api.ListStepsResponse:
        """List the steps of an execution with attempts and answers."""
        size = paging.page_size(request.page_size, default=_STEPS_PAGE, most=_MOST_PAGE)
        head = await self.entities.get(user_id, request.execution_id)
        scope = ("steps", user_id, request.execution_id)
        place = int(paging.decode(request.page_token, *scope).get("n", 0))
        response = api.ListStepsResponse()
        total = 0
        while place < len(head.steps) and len(response.steps) < size:
            some = head.steps[place : place + min(_RECORDS_AT_ONCE, size - len(response.steps))]
            records = await self.records(user_id, request.execution_id, [one.id for one in some])
            for one in some:
                step = execution_pb2.ExecutionStep()
                step.CopyFrom(one)
                if one.id in records:
                    step.attempts.extend(records[one.id].step.attempts)
                    step.result = records[one.id].step.result
                total += step.ByteSize()
                if response.steps and total > _MAX_RESPONSE_BYTES:
                    response.next_page_token = paging.encode({"n": place}, *scope)
                    return response
                response.steps.append(step)
                place += 1
        if place < len(head.steps):
            response.next_page_token = paging.encode({"n": place}, *scope)
        return response

    async def plan(self, user_id: str, execution_id: str) -> document_pb2.Plan:
        """Read an execution's plan."""
        key = self.plan_key(user_id, execution_id)
        return document_pb2.Plan.FromString((await self.state.require([key]))[key].value)

    async def records(
        self, user_id: str, execution_id: str, step_ids: Sequence[str]
    ) -> dict[str, document_pb2.StepRecord]:
        """Read the records of steps; those that never began have none."""
        found: dict[str, document_pb2.StepRecord] = {}
        for start in range(0, len(step_ids), _RECORDS_AT_ONCE):
            keys = {
                self.step_key(user_id, execution_id, one): one for one in step_ids[start : start + _RECORDS_AT_ONCE]
            }
            items = await self.state.get_many(list(keys), confirm=keys)
            found |= {keys[key]: document_pb2.StepRecord.FromString(item.value) for key, item in items.items()}
        return found

    # -- what a person does to it

    async def cancel(self, user_id: str, request: api.CancelExecutionRequest) -> api.CancelExecutionResponse:
        """End it. Raises FailedPreconditionError if it has ended otherwise."""

        def apply(head: Head) -> Draft[Head] | bytes:
            if head.execution.status == execution_pb2.EXECUTION_STATUS_CANCELLED:
                return answer(head)
            refuse_ended(head)
            return self.ended(user_id, head, execution_pb2.EXECUTION_STATUS_CANCELLED, nudge=True)

        return api.CancelExecutionResponse(**await self._asked(user_id, "CancelExecution", request, apply))

    async def pause(self, user_id: str, request: api.PauseExecutionRequest) -> api.PauseExecutionResponse:
        """Let no further step begin. Raises FailedPreconditionError if it has ended."""

        def apply(head: Head) -> Draft[Head] | bytes:
            if head.execution.status == execution_pb2.EXECUTION_STATUS_PAUSED:
                return answer(head)
            refuse_ended(head)
            advance(head.entity)
            head.execution.status = execution_pb2.EXECUTION_STATUS_PAUSED
            return self.draft(user_id, head, {topics.RECIPE_PAUSED: execution_event(head)})

        return api.PauseExecutionResponse(**await self._asked(user_id, "PauseExecution", request, apply))

    async def resume(self, user_id: str, request: api.ResumeExecutionRequest) -> api.ResumeExecutionResponse:
        """Go on. Raises FailedPreconditionError if it has ended."""

        def apply(head: Head) -> Draft[Head] | bytes:
            refuse_ended(head)
            if head.execution.status != execution_pb2.EXECUTION_STATUS_PAUSED:
                return answer(head)
            advance(head.entity)
            head.execution.status = current_status(head)
            return self.draft(user_id, head, {topics.RECIPE_RESUMED: execution_event(head)}, nudge=True)

        return api.ResumeExecutionResponse(**await self._asked(user_id, "ResumeExecution", request, apply))

    async def _asked(
        self, user_id: str, method: str, request: Any, apply: Callable[[Head], Draft[Head] | bytes]
    ) -> dict[str, Any]:
        digest = body_hash(method, request)
        given = document_pb2.ExecutionAnswer.FromString(
            await self.entities.change(user_id, request.execution_id, request.request_id, digest, apply)
        )
        self._nudge_soon(user_id, request.execution_id)
        return {"etag": str(given.revision), "status": given.status}

    # -- drafts

    def draft(
        self,
        user_id: str,
        head: Head,
        events: Mapping[str, Mapping[str, Any]],
        operations: Sequence[Put | Remove] = (),
        *,
        nudge: bool = False,
    ) -> Draft[Head]:
        """Make a change of an execution; with `nudge` its workflow is then started, woken or stopped."""
        clean_ups = []
        if nudge:
            work = document_pb2.Nudge(user_id=user_id, execution_id=head.entity.id)
            clean_ups.append(runtime_pb2.CleanUp(kind=NUDGE, argument=work.SerializeToString()))
        return Draft(head, answer(head), events, list(operations), clean_ups)

    def ended(
        self,
        user_id: str,
        head: Head,
        status: "Status.ValueType",
        *,
        result: str = "",
        error: execution_pb2.ExecutionError | None = None,
        nudge: bool = False,
    ) -> Draft[Head]:
        """End an execution: what has not begun never will."""
        advance(head.entity)
        head.execution.status = status
        head.execution.result = result
        head.execution.end_time.CopyFrom(head.entity.update_time)
        if error is not None:
            head.execution.error.CopyFrom(error)
        for step in head.steps:
            if step.status == execution_pb2.STEP_STATUS_PENDING:
                step.status = execution_pb2.STEP_STATUS_SKIPPED
                step.revision = head.entity.revision
        topic = {
            execution_pb2.EXECUTION_STATUS_COMPLETED: topics.RECIPE_COMPLETED,
            execution_pb2.EXECUTION_STATUS_FAILED: topics.RECIPE_FAILED,
            execution_pb2.EXECUTION_STATUS_CANCELLED: topics.RECIPE_CANCELLED,
        }[status]
        return self.draft(user_id, head, {topic: execution_event(head)}, nudge=nudge)


def _sub_steps(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Give the steps that run a sub-recipe."""
    steps = [one for step in document.get("steps") or () for one in (step, *(step.get("parallel") or ()))]
    named = [one["sub_recipe"] for one in steps if one.get("sub_recipe")]
    return [one for one in named if one["name"] == name]


def reference(user_id: str, entity: entity_pb2.Entity, *parts: str) -> str:
    """Make an id for something of an execution that other services know: the same each time, and nobody else's."""
    text = "\0".join((user_id, entity.id, str(entity.incarnation), *parts))
    return "recipe-" + hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def answer(head: Head) -> bytes:
    """Write what a repeated request is given."""
    return document_pb2.ExecutionAnswer(
        execution_id=head.entity.id,
        revision=head.entity.revision,
        create_time=head.entity.create_time,
        status=head.execution.status,
    ).SerializeToString()


def refuse_ended(head: Head) -> None:
    """Raise FailedPreconditionError if an execution has ended."""
    if head.execution.status in ENDED:
        state = Status.Name(head.execution.status).removeprefix("EXECUTION_STATUS_")
        raise FailedPreconditionError(f"the execution has ended: {state}", metadata={"state": state})


def current_status(head: Head) -> "Status.ValueType":
    """Tell from its steps how an execution that goes on stands."""
    statuses = {step.status for step in head.steps}
    if execution_pb2.STEP_STATUS_RUNNING not in statuses and execution_pb2.STEP_STATUS_WAITING in statuses:
        return execution_pb2.EXECUTION_STATUS_WAITING
    if statuses <= {execution_pb2.STEP_STATUS_PENDING}:
        return execution_pb2.EXECUTION_STATUS_PENDING
    leaves = {step.status for step in head.steps if step.kind not in CONTAINERS}
    if execution_pb2.STEP_STATUS_RUNNING not in leaves and execution_pb2.STEP_STATUS_WAITING in leaves:
        return execution_pb2.EXECUTION_STATUS_WAITING
    return execution_pb2.EXECUTION_STATUS_RUNNING


CONTAINERS = frozenset({execution_pb2.STEP_KIND_SUB_RECIPE, execution_pb2.STEP_KIND_PARALLEL})


def describe(head: Head, *, steps: Sequence[execution_pb2.ExecutionStep] | None = None) -> execution_pb2.Execution:
    """Give an execution as callers see it."""
    execution = execution_pb2.Execution()
    execution.CopyFrom(head.execution)
    execution.id, execution.etag = head.entity.id, str(head.entity.revision)
    execution.create_time.CopyFrom(head.entity.create_time)
    execution.update_time.CopyFrom(head.entity.update_time)
    execution.total_steps = len(head.steps)
    execution.completed_steps = completed(head)
    execution.steps.extend(head.steps if steps is None else steps)
    return execution


def completed(head: Head) -> int:
    """Count the steps that have answered."""
    return sum(1 for step in head.steps if step.status == execution_pb2.STEP_STATUS_COMPLETED)


def find_step(head: Head, step_id: str) -> execution_pb2.ExecutionStep:
    """Give a step of an execution."""
    return next(step for step in head.steps if step.id == step_id)


def cut(text: str) -> str:
    """Keep an answer within its bound."""
    encoded = text.replace("\0", "\ufffd").encode()
    if len(encoded) <= MAX_RESULT_BYTES:
        return encoded.decode()
    return encoded[: MAX_RESULT_BYTES - len(_CUT)].decode(errors="ignore") + _CUT


def told_error(error: execution_pb2.ExecutionError) -> execution_pb2.ExecutionError | None:
    """Give an error as events tell it: without what people or models said."""
    if not error.reason:
        return None
    return execution_pb2.ExecutionError(reason=error.reason, step_id=error.step_id)


def execution_event(head: Head) -> dict[str, Any]:
    """Write the payload of an event of the execution as a whole."""
    execution = head.execution
    return json_format.MessageToDict(
        event_pb2.ExecutionEvent(
            recipe_id=execution.recipe_id,
            execution_id=head.entity.id,
            name=execution.recipe_name,
            recipe_version=execution.recipe_version,
            status=execution.status,
            total_steps=len(head.steps),
            completed_steps=completed(head),
            attempt=execution.attempt,
            start_time=execution.start_time if execution.HasField("start_time") else None,
            end_time=execution.end_time if execution.HasField("end_time") else None,
            error=told_error(execution.error),
            conversation_id=execution.conversation_id,
        )
    )


def step_event(
    head: Head, step: execution_pb2.ExecutionStep, error: execution_pb2.ExecutionError | None = None
) -> dict[str, Any]:
    """Write the payload of an event of one step."""
    return json_format.MessageToDict(
        event_pb2.StepEvent(
            recipe_id=head.execution.recipe_id,
            execution_id=head.entity.id,
            step_id=step.id,
            step_name=step.name,
            kind=step.kind,
            status=step.status,
            attempt=step.attempt_count,
            start_time=step.start_time if step.HasField("start_time") else None,
            end_time=step.end_time if step.HasField("end_time") else None,
            error=None if error is None else told_error(error),
            conversation_id=step.conversation_id,
            total_steps=len(head.steps),
            completed_steps=completed(head),
            execution_status=head.execution.status,
        )
    )


def overdue(head: Head) -> bool:
    """Tell whether an execution should have ended by now."""
    return bool(head.deadline.ToDatetime(UTC) <= datetime.now(UTC))


def plain(values: Mapping[str, struct_pb2.Value]) -> dict[str, Any]:
    """Give values as Python has them; whole numbers are whole."""
    return {key: parameters.whole(json_format.MessageToDict(one)) for key, one in values.items()}
