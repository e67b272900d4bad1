"""What an execution does, laid out before it begins: steps by place, and the tree that a workflow walks.

Knows neither gRPC nor Dapr. The tree holds places alone, so that a workflow's history has nobody's words in it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gaggle.recipe.state.v1 import document_pb2
from gaggle.recipe.v1 import execution_pb2
from services.recipe.checking import RUNNABLE_EXTENSIONS

Node = dict[str, Any]
"""A leaf {"id"}, a recipe {"id", "run"}, or a parallel group {"id", "branches"}."""

Run = dict[str, Any]
"""One run of a recipe: {"scope", "recipe", "retries", "nodes"}."""


class TooManyStepsError(Exception):
    """The plan outgrows what an execution may have."""


class Planner:
    """Adds steps to a plan."""

    def __init__(
        self, plan: document_pb2.Plan, *, parallel_sub_recipes: bool, with_checks: bool, max_steps: int
    ) -> None:
        """`plan` has its recipes; `with_checks`: recipes' retries count."""
        self._plan = plan
        self._parallel = parallel_sub_recipes
        self._checks = with_checks
        self._max_steps = max_steps

    def run(self, recipe: int = 0, owner: str = "", attempt: int = 1) -> Run:
        """Lay out one run of a recipe below the step `owner`. Raises TooManyStepsError."""
        document = json.loads(self._plan.recipes[recipe].document_json)
        scope = (f"{owner}/" if owner else "") + (f"try{attempt}/" if attempt > 1 else "")
        layout = _Layout(self, recipe, document, scope, owner)
        nodes = layout.nodes()
        retry = (document.get("retry") or {}) if self._checks else {}
        if retry:
            nodes += layout.checks(retry)
        return {"scope": scope, "recipe": recipe, "retries": int(retry.get("max_retries", 0)), "nodes": nodes}

    def add(self, step: document_pb2.PlannedStep) -> None:
        """Take a step into the plan."""
        if len(self._plan.steps) >= self._max_steps:
            raise TooManyStepsError(f"the recipe has more than {self._max_steps} steps")
        self._plan.steps.append(step)

    def sub_recipe(self, recipe: int, name: str, step_id: str) -> Run:
        """Lay out a sub-recipe's run."""
        return self.run(self._plan.recipes[recipe].sub_recipes[name], step_id)

    @property
    def parallel_sub_recipes(self) -> bool:
        """Whether sub-recipes of a recipe without steps run all at once."""
        return self._parallel


class _Layout:
    """The layout of one run of one recipe."""

    def __init__(self, planner: Planner, recipe: int, document: Mapping[str, Any], scope: str, owner: str) -> None:
        self._planner = planner
        self._recipe = recipe
        self._document = document
        self._scope = scope
        self._owner = owner
        self._next = 0

    def nodes(self) -> list[Node]:
        document = self._document
        found: list[Node] = []
        if any(one["type"] in RUNNABLE_EXTENSIONS for one in document.get("extensions") or ()):
            found.append(self._leaf("extensions", execution_pb2.STEP_KIND_EXTENSIONS, {}))
        steps = document.get("steps") or self._default_steps()
        found.extend(self._step(step) for step in steps)
        schema = (document.get("response") or {}).get("json_schema")
        prompt = document.get("prompt") or ("" if document.get("steps") else document.get("instructions"))
        if (prompt or "").strip():
            action = {"prompt": prompt, "schema": schema is not None, "told": not document.get("steps")}
            found.append(self._leaf("prompt", execution_pb2.STEP_KIND_PROMPT, action))
        if schema is not None:
            found.append(self._leaf("response", execution_pb2.STEP_KIND_RESPONSE, {}))
        return found

    def checks(self, retry: Mapping[str, Any]) -> list[Node]:
        return [
            self._leaf(f"check {number}", execution_pb2.STEP_KIND_CHECK, {"command": one["command"]})
            for number, one in enumerate(retry.get("checks") or (), start=1)
        ]

    def _default_steps(self) -> list[dict[str, Any]]:
        subs = [
            {"name": one["name"], "sub_recipe": {"name": one["name"]}}
            for one in self._document.get("sub_recipes") or ()
        ]
        if self._planner.parallel_sub_recipes and len(subs) > 1:
            return [{"name": "sub_recipes", "parallel": subs}]
        return subs

    def _step(self, step: Mapping[str, Any], parent: str = "") -> Node:
        if (named := step.get("sub_recipe")) is not None:
            node = self._leaf(step["name"], execution_pb2.STEP_KIND_SUB_RECIPE, named, parent)
            return node | {"run": self._planner.sub_recipe(self._recipe, named["name"], node["id"])}
        if (tool := step.get("tool")) is not None:
            return self._leaf(step["name"], execution_pb2.STEP_KIND_TOOL, tool, parent)
        if step.get("prompt") is not None:
            action = {"prompt": step["prompt"], "alone": bool(parent)}
            return self._leaf(step["name"], execution_pb2.STEP_KIND_PROMPT, action, parent)
        node = self._leaf(step["name"], execution_pb2.STEP_KIND_PARALLEL, {}, parent)
        return node | {"branches": self._branches(step["parallel"], node["id"])}

    def _branches(self, steps: Sequence[Mapping[str, Any]], parent: str) -> list[list[Node]]:
        """One branch a step, save that runs of a sub-recipe that wants it so follow one another."""
        in_order = {
            one["name"] for one in self._document.get("sub_recipes") or () if one.get("sequential_when_repeated")
        }
        branches: list[list[Node]] = []
        chains: dict[str, list[Node]] = {}
        for step in steps:
            name = (step.get("sub_recipe") or {}).get("name", "")
            if name in chains:
                chains[name].append(self._step(step, parent))
                continue
            branches.append([self._step(step, parent)])
            if name in in_order:
                chains[name] = branches[-1]
        return branches

    def _leaf(
        self, name: str, kind: "execution_pb2.StepKind.ValueType", action: Mapping[str, Any], parent: str = ""
    ) -> Node:
        step = document_pb2.PlannedStep(
            id=f"{self._scope}{self._next}",
            scope=self._scope,
            parent_id=parent or self._owner,
            recipe=self._recipe,
            name=name,
            kind=kind,
            action_json=json.dumps(action, ensure_ascii=False),
        )
        self._next += 1
        self._planner.add(step)
        return {"id": step.id}


def branch_id(instance: str, step_id: str, number: int) -> str:
    """Name the workflow of a branch."""
    return f"{instance}_{step_id.replace('/', '-')}_{number}"


def owner_of(scope: str) -> str:
    """Give the step that a scope lies below; empty: the execution itself."""
    parts = scope.rstrip("/").split("/")
    if parts and parts[-1].startswith("try"):
        parts.pop()
    return "/".join(parts)


def pending(step: document_pb2.PlannedStep) -> execution_pb2.ExecutionStep:
    """Make the step that callers see."""
    return execution_pb2.ExecutionStep(
        id=step.id, name=step.name, kind=step.kind, parent_id=step.parent_id, status=execution_pb2.STEP_STATUS_PENDING
    )
