"""What steps do: ask the agent service, call tools, load extensions, check answers, run an operator's shell commands.

Each action is known to the service called by an id made of the step: asked again, after whatever fault, it is the same
work, and what was answered is answered again.
"""

import asyncio
import contextlib
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

import jsonschema
from google.rpc import code_pb2
from jsonschema.validators import validator_for

from gaggle.agent.v1 import agent_service_pb2, session_pb2, turn_pb2
from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.v1 import conversation_service_pb2, message_pb2
from gaggle.extension.v1 import extension_pb2, extension_service_pb2
from services.recipe import templates
from services.recipe.checking import RUNNABLE_EXTENSIONS
from services.recipe.settings import RecipeSettings
from services.recipe.templates import TemplateFaultError
from services.runtime.errors import GaggleError
from services.runtime.invocation import Peer

_LOAD_SECONDS = 90.0
_SLACK_SECONDS = 30.0
_OUTPUT_BYTES = 8 * 1024
_PASSING = frozenset({code_pb2.UNAVAILABLE, code_pb2.DEADLINE_EXCEEDED, code_pb2.ABORTED})


class StepFaultError(Exception):
    """An action did not succeed. `retry`: the same may yet, with the same id."""

    def __init__(self, reason: str, message: str, *, retry: bool = False, after_seconds: float = 0.0) -> None:
        """`reason` in UPPER_SNAKE_CASE; `after_seconds` as the service asked for, 0 if it did not say."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry = retry
        self.after_seconds = after_seconds


class WaitingError(Exception):
    """A person has to do something first."""


class TokenIssuer(Protocol):
    """Gives this service's tokens."""

    def __call__(self, user_id: str) -> str:
        """Give a token for acting for a user."""
        ...


@dataclass(frozen=True, slots=True)
class Work:
    """One step to be done."""

    user_id: str
    execution_id: str
    request_id: str
    recipe: Mapping[str, Any]
    """The recipe that the step is of."""

    action: Mapping[str, Any]
    values: Mapping[str, Any]
    """What templates see: parameters, and `steps` with what earlier ones answered."""

    conversation_id: str
    title: str
    session: session_pb2.Session
    """What the execution's prompts are counted in: id, name, conversation."""

    model: str
    answers: Sequence[tuple[str, str]] = ()
    """Names and answers of the sub-recipes that a prompt is told of."""

    last_answer: str = ""
    """Of the step before."""

    approval: session_pb2.ApprovalPolicy = field(default_factory=session_pb2.ApprovalPolicy)
    metadata: Mapping[str, str] = field(default_factory=dict)
    """For the conversation."""


def fault_of(error: GaggleError) -> StepFaultError:
    """Say of a service's refusal what it means for a step."""
    reason = error_reason_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
    busy = error.reason in {
        error_reason_pb2.ERROR_REASON_TOO_MANY_REQUESTS,
        error_reason_pb2.ERROR_REASON_MODEL_RATE_LIMITED,
    }
    lost = error.reason in {
        error_reason_pb2.ERROR_REASON_CALL_CANCELLED,
        error_reason_pb2.ERROR_REASON_STALE_FENCE,
    }
    retry = busy or (error.code in _PASSING and not lost)
    return StepFaultError(reason, error.message, retry=retry, after_seconds=error.retry_after_seconds or 0.0)


class Actions:
    """Does what steps ask for."""

    def __init__(
        self, agent: Peer, extension: Peer, conversation: Peer, issue: TokenIssuer, settings: RecipeSettings
    ) -> None:
        """Peers are the services called; `issue` makes tokens for acting for a user."""
        self._agent = agent
        self._extension = extension
        self._conversation = conversation
        self._issue = issue
        self._settings = settings

    # -- prompts

    async def prompt(self, work: Work) -> str:
        """Have the agent answer a prompt; gives its text. Raises StepFaultError, WaitingError."""
        await self._converse(work)
        await self._open_session(work)
        token, seconds = self._issue(work.user_id), self._settings.step_timeout_seconds + _SLACK_SECONDS
        stream = self._agent.stream("Chat", self._chat(work), token, timeout_seconds=seconds)
        waited_at = -1
        while True:
            event = await _last_event(stream)
            if event.HasField("ended"):
                return _turn_text(event.ended)
            if event.position <= waited_at:
                raise WaitingError
            # The stream shows the turn from its beginning, and ends where it ever waited: see what came after.
            waited_at = event.position
            request = agent_service_pb2.WatchTurnRequest(turn_id=work.request_id, after_position=waited_at)
            stream = self._agent.stream("WatchTurn", request, token, timeout_seconds=seconds)

    async def _converse(self, work: Work) -> None:
        request = conversation_service_pb2.CreateConversationRequest(
            conversation_id=work.conversation_id, title=work.title, metadata=work.metadata
        )
        try:
            await self._conversation.ask("CreateConversation", request, self._issue(work.user_id))
        except GaggleError as error:
            if error.code != code_pb2.ALREADY_EXISTS:
                raise fault_of(error) from error

    async def _open_session(self, work: Work) -> None:
        if not work.session.id:
            return  # An execution of before there were sessions.
        request = agent_service_pb2.CreateSessionRequest(
            session_id=work.session.id,
            name=work.session.name,
            session_type="recipe",
            conversation_id=work.session.conversation_id,
            metadata={name: value for name, value in work.metadata.items() if name != "step_id"},
        )
        try:
            await self._agent.ask("CreateSession", request, self._issue(work.user_id))
        except GaggleError as error:
            if error.code != code_pb2.ALREADY_EXISTS:
                raise fault_of(error) from error

    async def end_session(self, user_id: str, session_id: str) -> None:
        """Let an execution's session count no more; one that no prompt has made is fine. Raises GaggleError."""
        request = agent_service_pb2.EndSessionRequest(session_id=session_id)
        try:
            await self._agent.ask("EndSession", request, self._issue(user_id))
        except GaggleError as error:
            if error.code != code_pb2.NOT_FOUND:
                raise

    def _chat(self, work: Work) -> agent_service_pb2.ChatRequest:
        recipe = work.recipe
        settings = recipe.get("settings") or {}
        text = rendered(work, work.action["prompt"])
        if work.answers and work.action.get("told"):
            text += "\n\n" + "\n\n".join(f"What {name} answered:\n{answer}" for name, answer in work.answers)
        prompted = bool((recipe.get("prompt") or "").strip() or recipe.get("steps"))
        # Without a prompt the instructions are what is asked.
        system = rendered(work, recipe.get("instructions") or "") if prompted else ""
        names = [one["name"] for one in recipe.get("extensions") or () if one["type"] in RUNNABLE_EXTENSIONS]
        options = agent_service_pb2.ChatOptions(
            system_prompt=system,
            max_steps=min(int(settings.get("max_turns") or 0), 200),
            approval=work.approval,
            timeout_seconds=self._settings.step_timeout_seconds,
            metadata=dict(work.metadata),
        )
        if settings.get("temperature") is not None:
            options.temperature = float(settings["temperature"])
        if work.action.get("schema"):
            options.response_schema_json = json.dumps(recipe["response"]["json_schema"])
        content = message_pb2.ContentPart(text=message_pb2.TextContent(text=text))
        return agent_service_pb2.ChatRequest(
            request_id=work.request_id,
            conversation_id=work.conversation_id,
            session_id=work.session.id,
            message=[content],
            model=work.model,
            extensions=names,
            options=options,
        )

    async def stop_prompt(self, user_id: str, turn_id: str) -> None:
        """Have the agent end a turn. Raises GaggleError."""
        request = agent_service_pb2.CancelTurnRequest(turn_id=turn_id)
        await self._agent.ask("CancelTurn", request, self._issue(user_id))

    # -- tools

    async def tool(self, work: Work) -> str:
        """Call a tool; gives what it answered, JSON where it is structured. Raises StepFaultError."""
        arguments = rendered_all(work, work.action.get("arguments") or {})
        request = extension_service_pb2.CallToolRequest(
            call_id=work.request_id,
            name=rendered(work, work.action["extension"]),
            tool_name=rendered(work, work.action["tool"]),
            arguments_json=json.dumps(arguments, ensure_ascii=False),
        )
        seconds = self._settings.step_timeout_seconds + _SLACK_SECONDS
        stream = self._extension.stream("CallTool", request, self._issue(work.user_id), timeout_seconds=seconds)
        try:
            async with aclosing(stream) as responses:  # type: ignore[type-var]
                async for response in responses:
                    if response.HasField("error"):
                        raise StepFaultError("TOOL_PROTOCOL_ERROR", response.error.message)
                    if response.HasField("result"):
                        return _tool_text(response.result)
        except GaggleError as error:
            raise fault_of(error) from error
        raise StepFaultError("STREAM_ENDED", "the tool's stream ended before its call did", retry=True)

    async def stop_tool(self, user_id: str, call_id: str, extension: str) -> None:
        """Have a call ended. Raises GaggleError."""
        request = extension_service_pb2.CancelToolCallRequest(call_id=call_id, name=extension)
        await self._extension.ask("CancelToolCall", request, self._issue(user_id))

    async def extensions(self, work: Work) -> str:
        """Register and load what the recipe names, where that is not done. Raises StepFaultError."""
        token = self._issue(work.user_id)
        loaded = []
        for one in work.recipe.get("extensions") or ():
            if one["type"] not in RUNNABLE_EXTENSIONS:
                continue
            try:
                await self._load(token, work, one)
            except GaggleError as error:
                fault = fault_of(error)
                fault.message = f"extension {one['name']!r}: {fault.message}"
                raise fault from error
            loaded.append(one["name"])
        return json.dumps({"loaded": loaded})

    async def _load(self, token: str, work: Work, one: Mapping[str, Any]) -> None:
        try:
            found = await self._extension.ask(
                "GetExtension", extension_service_pb2.GetExtensionRequest(name=one["name"]), token
            )
            state = found.extension.connection.state
        except GaggleError as error:
            if error.code != code_pb2.NOT_FOUND:
                raise
            request = extension_service_pb2.RegisterExtensionRequest(config=extension_config(work, one))
            try:
                await self._extension.ask("RegisterExtension", request, token)
            except GaggleError as refusal:
                # Another step of this recipe was faster.
                if refusal.code != code_pb2.ALREADY_EXISTS:
                    raise
            state = extension_pb2.CONNECTION_STATE_UNLOADED
        if state != extension_pb2.CONNECTION_STATE_LOADED:
            load = extension_service_pb2.LoadExtensionRequest(name=one["name"])
            await self._extension.ask("LoadExtension", load, token, timeout_seconds=_LOAD_SECONDS)

    # -- checks

    async def response(self, work: Work) -> str:
        """Hold the last answer to the recipe's schema; gives it as JSON. Raises StepFaultError."""
        schema = work.recipe["response"]["json_schema"]

        def held() -> str:
            try:
                value = json.loads(_unfenced(work.last_answer))
            except (ValueError, RecursionError):
                raise StepFaultError("RESPONSE_INVALID", "the answer is not JSON") from None
            validator = validator_for(schema, default=jsonschema.Draft202012Validator)(schema)
            fault = next(validator.iter_errors(value), None)
            if fault is not None:
                raise StepFaultError("RESPONSE_INVALID", f"{fault.json_path}: {fault.message}"[:1000])
            return json.dumps(value, ensure_ascii=False)

        return await asyncio.to_thread(held)

    async def check(self, work: Work) -> str:
        """Run a shell command of the recipe's retry, if that is allowed. Raises StepFaultError unless it gives 0."""
        retry = work.recipe.get("retry") or {}
        return await self.shell(work, work.action["command"], int(retry.get("timeout_seconds") or 300))

    async def shell(self, work: Work, command: str, timeout_seconds: int) -> str:
        """Run a command in a folder of its own, its tree killed at the end. Raises StepFaultError unless it gives 0."""
        if not self._settings.allow_shell_checks:
            raise StepFaultError("CHECKS_NOT_ALLOWED", "this deployment runs no shell commands of recipes")
        text = rendered(work, command)
        with tempfile.TemporaryDirectory(prefix="gaggle-check-") as folder:
            environment = {"PATH": os.defpath, "HOME": folder, "LANG": "C.UTF-8", "GAGGLE_EXECUTION": work.execution_id}
            process = await asyncio.create_subprocess_exec(
                "/bin/sh", "-c", text, cwd=folder, env=environment, start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            try:
                async with asyncio.timeout(timeout_seconds):
                    output = await _output(process)
                    code = await process.wait()
            except TimeoutError:
                raise StepFaultError("CHECKS_FAILED", f"was not done within {timeout_seconds} seconds") from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if code:
            raise StepFaultError("CHECKS_FAILED", f"gave {code}: {output}")
        return output


async def _last_event(stream: AsyncIterator[Any]) -> turn_pb2.TurnEvent:
    """Follow a turn until it ends or waits. Raises StepFaultError."""
    try:
        async with aclosing(stream) as responses:  # type: ignore[type-var]
            async for response in responses:
                event: turn_pb2.TurnEvent = response.event
                if event.HasField("ended") or event.HasField("waiting"):
                    return event
    except GaggleError as error:
        raise fault_of(error) from error
    raise StepFaultError("STREAM_ENDED", "the agent's stream ended before its turn did", retry=True)


async def _output(process: asyncio.subprocess.Process) -> str:
    """Read what a command says, its end if that is long."""
    assert process.stdout is not None
    kept = b""
    while piece := await process.stdout.read(65_536):
        kept = (kept + piece)[-_OUTPUT_BYTES:]
    return kept.decode(errors="replace")


def rendered(work: Work, text: str) -> str:
    """Fill in a text of the recipe. Raises StepFaultError."""
    try:
        return templates.render(text, work.values)
    except TemplateFaultError as fault:
        raise StepFaultError("TEMPLATE_INVALID", str(fault)) from fault


def rendered_all(work: Work, value: Any) -> Any:
    """Fill in every text of a value. Raises StepFaultError."""
    if isinstance(value, str):
        return rendered(work, value)
    if isinstance(value, list):
        return [rendered_all(work, one) for one in value]
    if isinstance(value, dict):
        return {key: rendered_all(work, one) for key, one in value.items()}
    return value


def extension_config(work: Work, one: Mapping[str, Any]) -> extension_pb2.ExtensionConfig:
    """Spell a recipe's extension for the registry, its texts filled in. Raises StepFaultError."""
    entry = rendered_all(work, dict(one))
    config = extension_pb2.ExtensionConfig(
        name=entry["name"],
        description=entry.get("description") or "",
        available_tools=entry.get("available_tools") or (),
    )
    if entry.get("bundled") is not None:
        config.bundled = entry["bundled"]
    target: Any = config.stdio if entry["type"] == "stdio" else config.streamable_http
    target.SetInParent()
    if entry["type"] == "stdio":
        target.cmd = entry["cmd"]
        target.args.extend(entry.get("args") or ())
        target.cwd = entry.get("cwd") or ""
    else:
        target.uri = entry["uri"]
        target.headers.update(entry.get("headers") or {})
        if entry.get("socket"):
            target.socket = entry["socket"]
    target.envs.update(entry.get("envs") or {})
    target.env_keys.extend(entry.get("env_keys") or ())
    if entry.get("timeout") is not None:
        target.timeout.seconds = entry["timeout"]
    return config


def _turn_text(ended: turn_pb2.TurnEnded) -> str:
    if ended.status != turn_pb2.TURN_STATUS_COMPLETED:
        name = turn_pb2.TurnStatus.Name(ended.status).removeprefix("TURN_STATUS_")
        raise StepFaultError(ended.error.reason or f"TURN_{name}", ended.error.message or f"the turn ended as {name}")
    return "\n".join(part.text.text for part in ended.message.content if part.HasField("text"))


def _tool_text(result: message_pb2.ToolResult) -> str:
    texts = "\n".join(part.text.text for part in result.content if part.HasField("text"))
    if result.is_error:
        raise StepFaultError("TOOL_ERROR", texts[:1000] or "the tool reported an error")
    # Servers that give structured content give it as text, too.
    return texts or result.structured_content_json


def _unfenced(text: str) -> str:
    """Models like to wrap JSON in a fence."""
    stripped = text.strip()
    if stripped.startswith("```") and stripped.endswith("```"):
        return stripped[3:-3].removeprefix("json").strip()
    return stripped
