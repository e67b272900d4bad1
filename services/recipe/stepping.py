"""What a workflow's activities do: take a step up, have it done, keep what it answered.

Each may run again after any fault: what is done is not done again, because the head says so, and what was under way
goes on under the same id.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from gaggle.agent.v1 import session_pb2
from gaggle.recipe.state.v1 import document_pb2
from gaggle.recipe.v1 import execution_pb2
from services.recipe import parameters, planning
from services.recipe.acting import Actions, StepFaultError, WaitingError, Work, rendered
from services.recipe.executions import (
    ENDED,
    MAX_ATTEMPTS_KEPT,
    WAITING_TTL_SECONDS,
    Executions,
    answer,
    current_status,
    cut,
    execution_event,
    find_step,
    overdue,
    reference,
    step_event,
)
from services.recipe.planning import TooManyStepsError
from services.recipe.settings import RecipeSettings
from services.runtime import topics
from services.runtime.entities import Draft, advance
from services.runtime.errors import GaggleError, NotFoundError
from services.runtime.state import Put

Head = document_pb2.ExecutionHead
Verdict = dict[str, Any]
"""{"verdict": "ok" | "failed" | "stop" | "again"}; again: "seconds" to let pass, or until woken."""

OK: Verdict = {"verdict": "ok"}
FAILED: Verdict = {"verdict": "failed"}
STOP: Verdict = {"verdict": "stop"}
_PAUSED: Verdict = {"verdict": "again", "seconds": 3600}
_PUT_OFF_SECONDS = 2
_MESSAGE_CHARACTERS = 2000
_ANSWERS = frozenset(
    {
        execution_pb2.STEP_KIND_PROMPT,
        execution_pb2.STEP_KIND_TOOL,
        execution_pb2.STEP_KIND_RESPONSE,
        execution_pb2.STEP_KIND_SUB_RECIPE,
    }
)
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Key:
    """Which execution."""

    user_id: str
    execution_id: str

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Key":
        """Read it out of a workflow's input."""
        return cls(str(data["user"]), str(data["execution"]))

    def data(self) -> dict[str, str]:
        """Give it as a workflow's input."""
        return {"user": self.user_id, "execution": self.execution_id}


@dataclass(frozen=True, slots=True)
class _Claim:
    """A step taken up."""

    head: Head
    plan: document_pb2.Plan
    planned: document_pb2.PlannedStep
    request_id: str


class Stepper:
    """Does the work of activities."""

    def __init__(self, executions: Executions, actions: Actions, settings: RecipeSettings) -> None:
        """Shared by the whole process."""
        self._executions = executions
        self._actions = actions
        self._settings = settings

    async def guarded(self, work: Callable[[], Awaitable[Verdict]]) -> Verdict:
        """Do the work; where a dependency is away, or something unforeseen happens, it is to be done again later."""
        try:
            return await work()
        except NotFoundError:
            return STOP  # Erased.
        except GaggleError as error:
            _log.warning("step_put_off", error=error.message)
        except Exception:  # noqa: BLE001 - a workflow must not fail by a fault of ours; what it was is in the log
            _log.exception("step_failed")
        return {"verdict": "again", "seconds": _PUT_OFF_SECONDS}

    # -- the execution as a whole

    async def begin(self, key: Key) -> Verdict:
        """Give the tree that the workflow walks."""
        head = await self._executions.entities.get(key.user_id, key.execution_id)
        if head.execution.status in ENDED:
            return STOP
        plan = await self._executions.plan(key.user_id, key.execution_id)
        first = document_pb2.Plan(recipes=plan.recipes)
        return OK | {"run": self._executions.planner(first, head.execution.options).run()}

    async def finish(self, key: Key, run: planning.Run, verdict: str) -> Verdict:
        """End the execution as its last run did."""
        result = await self._result(key, run) if verdict == "ok" else ""

        def apply(head: Head) -> Draft[Head] | bytes:
            if head.execution.status in ENDED:
                return answer(head)
            if verdict == "ok":
                status = execution_pb2.EXECUTION_STATUS_COMPLETED
                return self._executions.ended(key.user_id, head, status, result=cut(result), nudge=True)
            error = head.execution.error
            if not error.reason:
                error.reason = "STEP_FAILED"
            return self._executions.ended(key.user_id, head, execution_pb2.EXECUTION_STATUS_FAILED, nudge=True)

        await self._change(key, apply)
        return OK

    async def again(self, key: Key, run: planning.Run, attempt: int) -> Verdict:
        """Lay out a further attempt of a recipe whose run failed."""
        head = await self._executions.entities.get(key.user_id, key.execution_id)
        if head.execution.status in ENDED:
            return STOP
        owner = planning.owner_of(run["scope"])
        plan = await self._executions.plan(key.user_id, key.execution_id)
        scope = (f"{owner}/" if owner else "") + f"try{attempt}/"
        known = any(step.scope == scope for step in plan.steps)
        base = document_pb2.Plan(recipes=plan.recipes)
        if not known:
            await self._on_failure(key, head, plan, run)
            base.steps.extend(plan.steps)
        count = len(base.steps)
        try:
            laid = self._executions.planner(base, head.execution.options).run(run["recipe"], owner, attempt)
        except TooManyStepsError as error:
            _log.warning("execution_too_long", error=str(error))
            return FAILED
        if not known:
            put = Put(self._executions.plan_key(key.user_id, key.execution_id), base.SerializeToString())
            await self._change(key, lambda one: self._tried_again(key, one, run["scope"], attempt, base, count, put))
        return OK | {"run": laid}

    def _tried_again(
        self, key: Key, head: Head, scope: str, attempt: int, plan: document_pb2.Plan, count: int, put: Put
    ) -> Draft[Head] | bytes:
        """Make the change that adds an attempt's steps, those of the plan from `count` on."""
        if head.execution.status in ENDED:
            return answer(head)
        advance(head.entity)
        for step in head.steps:
            if step.status == execution_pb2.STEP_STATUS_PENDING and step.id.startswith(scope):
                step.status, step.revision = execution_pb2.STEP_STATUS_SKIPPED, head.entity.revision
        for planned in plan.steps[count:]:
            step = planning.pending(planned)
            step.revision = head.entity.revision
            head.steps.append(step)
        if not planning.owner_of(scope):
            head.execution.attempt = attempt
        head.execution.ClearField("error")
        return self._executions.draft(key.user_id, head, {topics.RECIPE_STARTED: execution_event(head)}, [put])

    async def _on_failure(self, key: Key, head: Head, plan: document_pb2.Plan, run: planning.Run) -> None:
        """Run the command that a recipe wants after a failed attempt; what it gives decides nothing."""
        recipe = json.loads(plan.recipes[run["recipe"]].document_json)
        retry = recipe.get("retry") or {}
        command = retry.get("on_failure")
        if not command:
            return
        planned = next(step for step in plan.steps if step.scope == run["scope"])
        work = await self._work(key, _Claim(head, plan, planned, ""))
        try:
            await self._actions.shell(work, command, int(retry.get("on_failure_timeout_seconds") or 600))
        except StepFaultError as fault:
            _log.info("on_failure_failed", execution=key.execution_id, error=fault.message)

    # -- one step

    async def step(self, key: Key, step_id: str) -> Verdict:
        """Do a step that stands for itself."""
        claim = await self._claim(key, step_id)
        if not isinstance(claim, _Claim):
            return claim
        try:
            text = await self._act(key, claim)
        except WaitingError:
            return await self._wait(key, step_id, claim.request_id)
        except StepFaultError as fault:
            return await self._failed(key, step_id, fault)
        return await self._answered(key, step_id, text)

    async def enter(self, key: Key, step_id: str, branches: int) -> Verdict:
        """Begin a step that stands for others: a sub-recipe gets its parameters, a group its branches."""
        claim = await self._claim(key, step_id, branches=branches)
        if not isinstance(claim, _Claim):
            return claim
        if claim.planned.kind != execution_pb2.STEP_KIND_SUB_RECIPE:
            return OK
        try:
            values = await self._sub_parameters(key, claim)
        except StepFaultError as fault:
            return await self._failed(key, step_id, fault)
        text = json.dumps(values, ensure_ascii=False)
        record = (await self._executions.records(key.user_id, key.execution_id, [step_id]))[step_id]
        if record.parameters_json != text:
            record.parameters_json = text
            put = Put(self._executions.step_key(key.user_id, key.execution_id, step_id), record.SerializeToString())
            await self._executions.state.commit([put])
        return OK

    async def leave(self, key: Key, step_id: str, run: planning.Run | None, verdict: str) -> Verdict:
        """End such a step as those below it did."""
        if verdict == "ok":
            return await self._answered(key, step_id, await self._result(key, run) if run else "")
        head = await self._executions.entities.get(key.user_id, key.execution_id)
        cause = head.execution.error
        fault = StepFaultError(cause.reason or "STEP_FAILED", cause.message or "a step below it failed")
        return await self._failed(key, step_id, fault, cause=cause)

    async def _claim(self, key: Key, step_id: str, *, branches: int = 0) -> "_Claim | Verdict":
        """Take a step up, unless it is done or must not be begun."""
        found: list[_Claim | Verdict] = []
        plan = await self._executions.plan(key.user_id, key.execution_id)
        planned = next(step for step in plan.steps if step.id == step_id)

        async def apply(head: Head) -> Draft[Head] | bytes:
            found.clear()
            step = find_step(head, step_id)
            verdict = _standing(head, step)
            if verdict is not None:
                found.append(verdict)
                return answer(head)
            if overdue(head):
                found.append(STOP)
                error = execution_pb2.ExecutionError(reason="TIMEOUT", message="it took too long", step_id=step_id)
                status = execution_pb2.EXECUTION_STATUS_FAILED
                return self._executions.ended(key.user_id, head, status, error=error, nudge=True)
            request_id = reference(key.user_id, head.entity, "step", step_id)
            found.append(_Claim(head, plan, planned, request_id))
            if step.attempt_count:
                return answer(head)  # Under way, or tried in vain: it goes on under the same id.
            advance(head.entity)
            step.status = execution_pb2.STEP_STATUS_RUNNING
            step.attempt_count = 1
            step.start_time.CopyFrom(head.entity.update_time)
            step.revision = head.entity.revision
            if step.kind == execution_pb2.STEP_KIND_PROMPT:
                step.conversation_id = self._conversation(key, head, planned)
            head.execution.status = execution_pb2.EXECUTION_STATUS_RUNNING
            if not head.execution.HasField("start_time"):
                head.execution.start_time.CopyFrom(head.entity.update_time)
            instance = reference(key.user_id, head.entity)
            head.branches.extend(planning.branch_id(instance, step_id, number) for number in range(branches))
            record = document_pb2.StepRecord(step=step)
            record.step.attempts.add(number=1, start_time=head.entity.update_time, request_id=request_id)
            return self._told(key, head, step, record, topics.RECIPE_STEP_STARTED)

        await self._change(key, apply)
        return found[0]

    def _told(
        self,
        key: Key,
        head: Head,
        step: execution_pb2.ExecutionStep,
        record: document_pb2.StepRecord,
        topic: str,
        error: execution_pb2.ExecutionError | None = None,
        *puts: Put,
    ) -> Draft[Head]:
        """Make the change of a step, with its record."""
        attempts, result = list(record.step.attempts), record.step.result
        record.step.CopyFrom(step)
        record.step.attempts.extend(attempts[-MAX_ATTEMPTS_KEPT:])
        record.step.result = result
        put = Put(self._executions.step_key(key.user_id, key.execution_id, step.id), record.SerializeToString())
        return self._executions.draft(key.user_id, head, {topic: step_event(head, step, error)}, [put, *puts])

    async def _answered(self, key: Key, step_id: str, text: str) -> Verdict:
        """Keep what a step answered."""
        verdict = OK

        async def apply(head: Head) -> Draft[Head] | bytes:
            nonlocal verdict
            step = find_step(head, step_id)
            standing = _standing(head, step, paused_too=True)
            if standing is not None:
                verdict = standing
                return answer(head)
            verdict = OK
            record = (await self._executions.records(key.user_id, key.execution_id, [step_id]))[step_id]
            advance(head.entity)
            step.status = execution_pb2.STEP_STATUS_COMPLETED
            step.end_time.CopyFrom(head.entity.update_time)
            step.revision = head.entity.revision
            record.step.attempts[-1].end_time.CopyFrom(head.entity.update_time)
            record.step.result = cut(text)
            if head.execution.status != execution_pb2.EXECUTION_STATUS_PAUSED:
                head.execution.status = _going(head)
            return self._told(key, head, step, record, topics.RECIPE_STEP_COMPLETED)

        await self._change(key, apply)
        return verdict

    async def _failed(
        self, key: Key, step_id: str, fault: StepFaultError, *, cause: execution_pb2.ExecutionError | None = None
    ) -> Verdict:
        """Note a failed attempt: the next begins, or the step has failed."""
        verdict: Verdict = FAILED

        async def apply(head: Head) -> Draft[Head] | bytes:
            nonlocal verdict
            step = find_step(head, step_id)
            standing = _standing(head, step, paused_too=True)
            if standing is not None:
                verdict = standing
                return answer(head)
            record = (await self._executions.records(key.user_id, key.execution_id, [step_id]))[step_id]
            advance(head.entity)
            message = fault.message[:_MESSAGE_CHARACTERS]
            error = execution_pb2.ExecutionError(reason=fault.reason, message=message, step_id=step_id)
            step.revision = head.entity.revision
            last = record.step.attempts[-1]
            last.end_time.CopyFrom(head.entity.update_time)
            last.error.CopyFrom(error)
            if fault.retry and step.attempt_count < self._settings.step_attempts:
                step.attempt_count += 1
                step.status = execution_pb2.STEP_STATUS_RUNNING
                record.step.attempts.add(
                    number=step.attempt_count, start_time=head.entity.update_time, request_id=last.request_id
                )
                seconds = max(fault.after_seconds, min(2.0 ** (step.attempt_count - 2), 60.0))
                verdict = {"verdict": "again", "seconds": seconds}
                return self._told(key, head, step, record, topics.RECIPE_STEP_STARTED, error)
            verdict = FAILED
            step.status = execution_pb2.STEP_STATUS_FAILED
            step.end_time.CopyFrom(head.entity.update_time)
            head.execution.error.CopyFrom(cause if cause is not None and cause.reason else error)
            if head.execution.status != execution_pb2.EXECUTION_STATUS_PAUSED:
                head.execution.status = _going(head)
            return self._told(key, head, step, record, topics.RECIPE_STEP_COMPLETED, error)

        await self._change(key, apply)
        return verdict

    async def _wait(self, key: Key, step_id: str, turn_id: str) -> Verdict:
        """Note that a step waits for a person. The workflow looks again by and by, and when it is woken."""

        async def apply(head: Head) -> Draft[Head] | bytes:
            step = find_step(head, step_id)
            standing = _standing(head, step, paused_too=True)
            if standing is not None or step.status == execution_pb2.STEP_STATUS_WAITING:
                return answer(head)
            record = (await self._executions.records(key.user_id, key.execution_id, [step_id]))[step_id]
            advance(head.entity)
            step.status, step.revision = execution_pb2.STEP_STATUS_WAITING, head.entity.revision
            if head.execution.status != execution_pb2.EXECUTION_STATUS_PAUSED:
                head.execution.status = _going(head)
            waiting = document_pb2.Waiting(execution_id=key.execution_id)
            put = Put(
                self._executions.waiting_key(key.user_id, turn_id),
                waiting.SerializeToString(),
                ttl_seconds=WAITING_TTL_SECONDS,
            )
            return self._told(key, head, step, record, topics.RECIPE_STEP_WAITING, None, put)

        await self._change(key, apply)
        return {"verdict": "again", "seconds": 0}

    async def _change(self, key: Key, apply: Callable[[Head], Any]) -> None:
        await self._executions.entities.change(key.user_id, key.execution_id, "", b"", apply)

    # -- what a step works with

    async def _act(self, key: Key, claim: _Claim) -> str:
        work = await self._work(key, claim)
        act = {
            execution_pb2.STEP_KIND_PROMPT: self._actions.prompt,
            execution_pb2.STEP_KIND_TOOL: self._actions.tool,
            execution_pb2.STEP_KIND_EXTENSIONS: self._actions.extensions,
            execution_pb2.STEP_KIND_RESPONSE: self._actions.response,
            execution_pb2.STEP_KIND_CHECK: self._actions.check,
        }[claim.planned.kind]
        return await act(work)

    async def _work(self, key: Key, claim: _Claim) -> Work:
        planned, head = claim.planned, claim.head
        recipe = json.loads(claim.plan.recipes[planned.recipe].document_json)
        given = await self._parameters(key, claim.plan, planned.scope)
        answers = await self._answers(key, claim.plan, head, planned)
        steps = {step.name: _told_answer(text) for step, text in answers}
        execution = head.execution
        settings = recipe.get("settings") or {}
        spoken = [text for step, text in answers if step.kind in _ANSWERS]
        return Work(
            user_id=key.user_id,
            execution_id=key.execution_id,
            request_id=claim.request_id,
            recipe=recipe,
            action=json.loads(planned.action_json),
            values={**_texts(given), "steps": steps, "recipe_dir": "."},
            conversation_id=self._conversation(key, head, planned),
            title=recipe["title"],
            session=session_pb2.Session(
                id=execution.session_id, name=execution.recipe_name, conversation_id=execution.conversation_id
            ),
            model=execution.options.model or settings.get("goose_model") or "",
            answers=[(step.name, text) for step, text in answers if step.kind == execution_pb2.STEP_KIND_SUB_RECIPE],
            last_answer=spoken[-1] if spoken else "",
            approval=execution.options.approval,
            metadata={"recipe_id": execution.recipe_id, "execution_id": key.execution_id, "step_id": planned.id},
        )

    def _conversation(self, key: Key, head: Head, planned: document_pb2.PlannedStep) -> str:
        """Name the conversation of a prompt: each run of a recipe has one, a prompt beside others its own."""
        action = json.loads(planned.action_json)
        if not planned.scope and not action.get("alone"):
            return str(head.execution.conversation_id)
        return reference(key.user_id, head.entity, "conversation", planned.id if action.get("alone") else planned.scope)

    async def _parameters(self, key: Key, plan: document_pb2.Plan, scope: str) -> dict[str, Any]:
        owner = planning.owner_of(scope)
        if not owner:
            text = plan.recipes[0].parameters_json
        else:
            text = (await self._executions.records(key.user_id, key.execution_id, [owner]))[owner].parameters_json
        return dict(json.loads(text))

    async def _answers(
        self, key: Key, plan: document_pb2.Plan, head: Head, planned: document_pb2.PlannedStep
    ) -> list[tuple[document_pb2.PlannedStep, str]]:
        """Give what earlier steps of the same run answered, in the order of the plan."""
        done = {step.id for step in head.steps if step.status == execution_pb2.STEP_STATUS_COMPLETED}
        earlier = [step for step in plan.steps if step.scope == planned.scope and step.id in done]
        records = await self._executions.records(key.user_id, key.execution_id, [step.id for step in earlier])
        return [(step, records[step.id].step.result) for step in earlier if step.id in records]

    async def _sub_parameters(self, key: Key, claim: _Claim) -> dict[str, Any]:
        """Give a sub-recipe its parameters: the step's values, its own, the parent's of the same key, defaults."""
        work = await self._work(key, claim)
        named = next(one for one in work.recipe["sub_recipes"] if one["name"] == work.action["name"])
        place = claim.plan.recipes[claim.planned.recipe].sub_recipes[named["name"]]
        sub = json.loads(claim.plan.recipes[place].document_json)
        keys = {one["key"] for one in sub.get("parameters") or ()}
        given = await self._parameters(key, claim.plan, claim.planned.scope)
        given |= {name: _filled(work, value) for name, value in (named.get("values") or {}).items()}
        given |= {name: _filled(work, value) for name, value in (work.action.get("values") or {}).items()}
        values, faults = parameters.resolve(sub, {name: value for name, value in given.items() if name in keys})
        if faults:
            text = "; ".join(f"{name}: {what}" for name, what in faults.items())
            raise StepFaultError("PARAMETER_INVALID", f"the sub-recipe {named['name']!r}: {text}")
        return values

    async def _result(self, key: Key, run: planning.Run) -> str:
        """Give what a run of a recipe answered: what its last step did."""
        plan = await self._executions.plan(key.user_id, key.execution_id)
        answering = [step for step in plan.steps if step.scope == run["scope"] and step.kind in _ANSWERS]
        if not answering:
            return ""
        records = await self._executions.records(key.user_id, key.execution_id, [answering[-1].id])
        return "".join(one.step.result for one in records.values())


def _standing(head: Head, step: execution_pb2.ExecutionStep, *, paused_too: bool = False) -> Verdict | None:
    """Say what already stands of a step; None: it is to be done. `paused_too`: what was begun may be ended."""
    if head.execution.status in ENDED:
        return STOP
    if step.status == execution_pb2.STEP_STATUS_COMPLETED:
        # A container counts as entered, and so do those below it, until the workflow leaves it.
        return OK
    if step.status == execution_pb2.STEP_STATUS_FAILED:
        return FAILED
    if step.status == execution_pb2.STEP_STATUS_SKIPPED:
        return STOP
    if head.execution.status == execution_pb2.EXECUTION_STATUS_PAUSED and not paused_too and not step.attempt_count:
        return _PAUSED
    return None


def _going(head: Head) -> "execution_pb2.ExecutionStatus.ValueType":
    """Tell whether an execution under way runs or waits."""
    status = current_status(head)
    return execution_pb2.EXECUTION_STATUS_RUNNING if status == execution_pb2.EXECUTION_STATUS_PENDING else status


def _texts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give parameters as templates see them: as goose has them, true and false are words and numbers digits."""
    return {
        key: parameters.typed_value("string", (), value) if not isinstance(value, dict | list) else value
        for key, value in values.items()
    }


def _filled(work: Work, value: Any) -> Any:
    return rendered(work, value) if isinstance(value, str) else value


def _told_answer(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    return {"result": text, "data": data}
