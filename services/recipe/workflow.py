"""Executions as Dapr Workflows.

A workflow walks the tree of an execution's plan and calls an activity for each step. Its history holds places and
verdicts alone; whatever a process's death leaves undone, the sidecar hands out again, and the activity knows from the
execution's head what is done.

The workflow library runs on threads of its own; activities hand their work to this process's event loop.
"""

import asyncio
import json
import logging
from collections.abc import Generator
from datetime import timedelta
from typing import Any

import grpc
import structlog
from dapr.ext.workflow import DaprWorkflowContext, WorkflowRuntime, when_all, when_any
from dapr.ext.workflow.logger import LoggerOptions

from gaggle.recipe.state.v1 import document_pb2
from gaggle.recipe.v1 import execution_pb2
from services.recipe.acting import Actions
from services.recipe.executions import ENDED, Executions, reference
from services.recipe.planning import Node, Run
from services.recipe.stepping import Key, Stepper, Verdict
from services.runtime.dapr import workflow_pb2
from services.runtime.errors import GaggleError, UnavailableError
from services.runtime.settings import ServiceSettings
from services.runtime.sidecar import Sidecar
from services.runtime.telemetry import Tracing, current_traceparent, part

EXECUTION = "execution"
BRANCH = "branch"
WAKE = "wake"
_ACTIVITY = "recipe-step"
_COMPONENT = "dapr"
_TRACE = "traceparent"
_TIMEOUT_SECONDS = 10.0
_READY_SECONDS = 60.0
_FIRST_LOOK_SECONDS = 5.0
_LAST_LOOK_SECONDS = 600.0
_WORK_ITEMS = 64

Walk = Generator[Any, Any, Verdict]
_log = structlog.get_logger()


# -- the workflow: no clock, no chance, no words


class _Walker:
    """Walks a tree in one workflow."""

    def __init__(self, ctx: DaprWorkflowContext, key: dict[str, str]) -> None:
        self._ctx = ctx
        self._key = key
        self._woken: Any = None

    def execution(self) -> Walk:
        """Walk the whole of it."""
        begun = yield from self._do("begin")
        if begun["verdict"] != "ok":
            return begun
        run, verdict = yield from self._tried(begun["run"])
        if verdict["verdict"] != "stop":
            yield from self._do("finish", run=run, verdict=verdict["verdict"])
        return verdict

    def nodes(self, nodes: list[Node]) -> Walk:
        """Walk one after the other, until one does not succeed."""
        verdict: Verdict = {"verdict": "ok"}
        for node in nodes:
            verdict = yield from self._node(node)
            if verdict["verdict"] != "ok":
                break
        return verdict

    def _node(self, node: Node) -> Walk:
        if "run" not in node and "branches" not in node:
            return (yield from self._do("step", id=node["id"]))
        branches = node.get("branches", [])
        entered = yield from self._do("enter", id=node["id"], branches=len(branches))
        if entered["verdict"] != "ok":
            return entered
        run: Run | None = None
        if "run" in node:
            run, verdict = yield from self._tried(node["run"])
        else:
            verdict = yield from self._together(node["id"], branches)
        if verdict["verdict"] == "stop":
            return verdict
        return (yield from self._do("leave", id=node["id"], run=run, verdict=verdict["verdict"]))

    def _tried(self, run: Run) -> Generator[Any, Any, tuple[Run, Verdict]]:
        """Walk a run of a recipe, and further ones while it fails and may be tried again."""
        attempt = 1
        while True:
            verdict = yield from self.nodes(run["nodes"])
            if verdict["verdict"] != "failed" or attempt > run["retries"]:
                return run, verdict
            attempt += 1
            again = yield from self._do("again", run=run, attempt=attempt)
            if again["verdict"] != "ok":
                return run, again
            run = again["run"]

    def _together(self, step_id: str, branches: list[list[Node]]) -> Walk:
        """Walk branches at once, each in a workflow of its own."""
        # Branches are named after the execution's own workflow, however deep they lie.
        instance = self._ctx.instance_id.split("_")[0]
        children: list[Any] = [
            self._ctx.call_child_workflow(
                BRANCH,
                input={**self._key, "nodes": nodes},
                instance_id=f"{instance}_{step_id.replace('/', '-')}_{number}",
            )
            for number, nodes in enumerate(branches)
        ]
        verdicts = yield when_all(children)
        found = {one["verdict"] for one in verdicts}
        return {"verdict": next(one for one in ("stop", "failed", "ok") if one in found)}

    def _do(self, what: str, **arguments: Any) -> Walk:
        """Have an activity done, as often as it wants to be."""
        looks = 0
        while True:
            verdict: Verdict = yield self._ctx.call_activity(_ACTIVITY, input={**self._key, "do": what, **arguments})
            if verdict["verdict"] != "again":
                return verdict
            seconds = verdict["seconds"]
            if not seconds:
                # For a person: look often at first, then seldom. Whoever decides has this woken.
                seconds = min(_FIRST_LOOK_SECONDS * 2**looks, _LAST_LOOK_SECONDS)
                looks += 1
            yield from self._rest(seconds)

    def _rest(self, seconds: float) -> Generator[Any, Any, None]:
        # One task waits for the event until it comes: one given up would swallow it.
        if self._woken is None or self._woken.is_complete:
            self._woken = self._ctx.wait_for_external_event(WAKE)
        yield when_any([self._woken, self._ctx.create_timer(timedelta(seconds=seconds))])


# -- the worker


class Workflows:
    """This process's worker, and the way to workflows wherever they run."""

    def __init__(
        self, sidecar: Sidecar, settings: ServiceSettings, executions: Executions, actions: Actions, tracing: Tracing
    ) -> None:
        """Made inside the event loop."""
        self._tracing = tracing
        self._sidecar = sidecar
        self._settings = settings
        self._executions = executions
        self._actions = actions
        self._stepper: Stepper | None = None
        self._runtime: WorkflowRuntime | None = None

    async def start(self, stepper: Stepper) -> None:
        """Begin to take work from the sidecar. Raises UnavailableError."""
        self._stepper = stepper
        loop = asyncio.get_running_loop()
        # The library's loggers go on to the process's own, which write JSON.
        handler = logging.NullHandler()
        runtime = WorkflowRuntime(
            host="127.0.0.1" if not self._settings.sidecar_address else self._settings.sidecar_address,
            port=str(self._settings.sidecar_port),
            logger_options=LoggerOptions(log_level="WARNING", log_handler=handler),
            maximum_concurrent_activity_work_items=_WORK_ITEMS,
            maximum_concurrent_orchestration_work_items=_WORK_ITEMS,
            worker_ready_timeout=_READY_SECONDS,
        )

        def execution(ctx: DaprWorkflowContext, data: dict[str, Any]) -> Walk:
            return _Walker(ctx, _key(data)).execution()

        def branch(ctx: DaprWorkflowContext, data: dict[str, Any]) -> Walk:
            return _Walker(ctx, _key(data)).nodes(data["nodes"])

        async def activity(_ctx: Any, data: dict[str, Any]) -> Verdict:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._act(data), loop))

        runtime.register_workflow(execution, name=EXECUTION)
        runtime.register_workflow(branch, name=BRANCH)
        runtime.register_activity(activity, name=_ACTIVITY)
        try:
            await asyncio.to_thread(runtime.start)
        except Exception as error:
            raise UnavailableError("workflow engine") from error
        self._runtime = runtime

    async def stop(self) -> None:
        """Take no more work; what was begun here goes on elsewhere, or here after the next start."""
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            await asyncio.to_thread(runtime.shutdown)

    async def _act(self, data: dict[str, Any]) -> Verdict:
        stepper, key = self._stepper, Key.of(data)
        assert stepper is not None
        work = {
            "begin": lambda: stepper.begin(key),
            "step": lambda: stepper.step(key, data["id"]),
            "enter": lambda: stepper.enter(key, data["id"], int(data["branches"])),
            "leave": lambda: stepper.leave(key, data["id"], data["run"], data["verdict"]),
            "again": lambda: stepper.again(key, data["run"], int(data["attempt"])),
            "finish": lambda: stepper.finish(key, data["run"], data["verdict"]),
        }[data["do"]]
        # Steps go on in the trace in which the execution was started, whichever process has them.
        step = {"gaggle.recipe.step": str(data["id"])} if "id" in data else {}
        traceparent = str(data.get(_TRACE, ""))
        with part(f"recipe {data['do']}", traceparent=traceparent, attributes=step, tracing=self._tracing):
            return await stepper.guarded(work)

    # -- starting, waking, stopping

    async def nudge(self, argument: bytes) -> None:
        """Have an execution's workflow do as its head says: begin, look again, or stop. Raises GaggleError."""
        work = document_pb2.Nudge.FromString(argument)
        head = await self._executions.entities.find(work.user_id, work.execution_id)
        if head is None or head.entity.HasField("delete_time"):
            return
        instance = reference(work.user_id, head.entity)
        if head.execution.status in ENDED:
            await self._stop_steps(work.user_id, head)
            if head.execution.session_id:
                await self._actions.end_session(work.user_id, head.execution.session_id)
            if head.execution.status == execution_pb2.EXECUTION_STATUS_COMPLETED:
                return  # By its workflow, which then is over.
        elif not head.execution.HasField("start_time"):
            await self._begin(instance, Key(work.user_id, work.execution_id))
        for one in (instance, *head.branches):
            await self._wake(one)

    async def _begin(self, instance: str, key: Key) -> None:
        request = workflow_pb2.StartWorkflowRequest(
            instance_id=instance,
            workflow_component=_COMPONENT,
            workflow_name=EXECUTION,
            input=json.dumps(key.data() | {_TRACE: current_traceparent()}).encode(),
        )
        try:
            await self._sidecar.stub.StartWorkflowBeta1(
                request, timeout=_TIMEOUT_SECONDS, metadata=self._sidecar.metadata()
            )
        except grpc.aio.AioRpcError as error:
            if "already exists" not in str(error.details()):
                raise UnavailableError("workflow engine") from error

    async def _wake(self, instance: str) -> None:
        request = workflow_pb2.RaiseEventWorkflowRequest(
            instance_id=instance, workflow_component=_COMPONENT, event_name=WAKE, event_data=b"{}"
        )
        try:
            await self._sidecar.stub.RaiseEventWorkflowBeta1(
                request, timeout=_TIMEOUT_SECONDS, metadata=self._sidecar.metadata()
            )
        except grpc.aio.AioRpcError as error:
            # One that has ended, or never was, needs no waking; one that missed it looks by itself in the end.
            _log.info("workflow_not_woken", instance=instance, error=str(error.details()))

    async def _stop_steps(self, user_id: str, head: document_pb2.ExecutionHead) -> None:
        """Have the services called end what is under way."""
        open_steps = [
            step.id
            for step in head.steps
            if step.status in {execution_pb2.STEP_STATUS_RUNNING, execution_pb2.STEP_STATUS_WAITING}
        ]
        if not open_steps:
            return
        plan = await self._executions.plan(user_id, head.entity.id)
        for planned in plan.steps:
            if planned.id not in open_steps:
                continue
            request_id = reference(user_id, head.entity, "step", planned.id)
            try:
                if planned.kind == execution_pb2.STEP_KIND_PROMPT:
                    await self._actions.stop_prompt(user_id, request_id)
                elif planned.kind == execution_pb2.STEP_KIND_TOOL:
                    extension = json.loads(planned.action_json)["extension"]
                    await self._actions.stop_tool(user_id, request_id, extension)
            except GaggleError as error:
                _log.info("step_not_stopped", step=planned.id, error=error.message)


def _key(data: dict[str, Any]) -> dict[str, str]:
    trace = {_TRACE: str(data[_TRACE])} if _TRACE in data else {}
    return Key.of(data).data() | trace
