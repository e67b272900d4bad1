"""The built-in model: deterministic, offline, and no language model.

It does what lines of the newest user message say, one after the other, and says plainly what it is:

    tool NAME {"a": 1}     calls a tool, by its full name or by its end, if only one tool ends so
    tool NAME a=1 b=two    the same; values are JSON where they are, else text
    say TEXT               answers with the text
    think TEXT             thinks it aloud
    pause SECONDS          waits, at most a minute
    fail                   breaks off, as a provider does that is away

Several `tool` lines in a row joined by a line `and` are one step: they are asked for together. Where it is offered
tools for tasks, it takes a few plain sentences for calls of them (see plain.py): "add task water the plants tomorrow
9am". Where a message has no such line, the answer says so, and lists what there is.
"""

import asyncio
import contextlib
import json
import re
import shlex
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.v1 import message_pb2
from services.agent.models import plain
from services.agent.models.base import (
    CalledTool,
    Finished,
    ModelError,
    OfferedTool,
    Piece,
    Prompt,
    PromptMessage,
    Text,
    ThinkingText,
)

_COMMAND = re.compile(r"^\s*(tool|say|think|pause|fail|and)\b[ \t]*(.*)$", re.IGNORECASE)
_MOST_PAUSE_SECONDS = 60.0
_LISTED_TOOLS = 50
_LISTED_BYTES = 2000
_PLAIN_HELP = (
    "For tasks plain words do: add task TITLE due WHEN; list tasks; complete task TITLE; update task TITLE: due WHEN; "
    "delete task TITLE; remind me of TITLE WHEN."
)


@dataclass(frozen=True, slots=True)
class _Command:
    word: str
    rest: str
    plain: bool = False
    """It was said in plain words, and so is its answer."""


class OfflineModel:
    """Follows plain commands. Needs no network, and gives the same answer to the same question."""

    name = "offline"
    provider = "gaggle"
    requested = "offline"
    description = "Built in, for use without a provider. Not a language model: it follows plain commands."
    tools = True
    offline = True

    def __init__(self, context_tokens: int = 32_000) -> None:
        """`context_tokens`: what it is given at most."""
        self.context_tokens = context_tokens

    def cost(self, usage: message_pb2.TokenUsage) -> float | None:  # noqa: ARG002
        """Nothing."""
        return 0.0

    async def answer(self, prompt: Prompt) -> AsyncIterator[Piece]:
        """Carry out the next commands of the newest user message."""
        asked, done = _question(prompt.messages)
        tasks = plain.offered_tools(prompt.tools)
        # Reading plain words loads what knows times, which takes a moment.
        commands = await asyncio.to_thread(_commands, asked, tasks) if tasks else _commands(asked, tasks)
        said = ""
        for piece in self._next(commands, done, prompt):
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            elif isinstance(piece, Finished):
                yield Finished(piece.calls, _usage(prompt, said, piece.calls), self.requested)
            else:
                said += piece.text
                yield piece

    @staticmethod
    def _next(commands: Sequence[_Command], done: Sequence[PromptMessage], prompt: Prompt) -> "Iterator[Piece | float]":
        """Give what is left to do; `done` are the tools' answers since the question, a float is a pause."""
        answered = len(done)
        index = 0
        while index < len(commands):
            command = commands[index]
            if command.word != "tool":
                index += 1
                # What lies before a tool that has answered was said in an earlier step.
                if answered == 0:
                    yield from _said(command)
                continue
            group, index = _group(commands, index)
            if answered >= len(group):
                answered -= len(group)
                continue
            yield Finished(tuple(_call(one, prompt.tools, len(done) + at) for at, one in enumerate(group)))
            return
        if not commands:
            yield from _pieces(_self_description(prompt.tools))
        elif done and not any(one.word == "say" for one in commands):
            plainly = all(one.plain for one in commands if one.word == "tool")
            yield from _pieces("\n".join(one.text if plainly else _result(one) for one in done))
        yield Finished()


def _question(messages: Sequence[PromptMessage]) -> tuple[str, list[PromptMessage]]:
    """Find the newest user message, and the tools' answers after it."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role == "user":
            return messages[index].text, [one for one in messages[index + 1 :] if one.role == "tool"]
    return "", []


def _commands(text: str, tasks: dict[str, str]) -> list[_Command]:
    found: list[_Command] = []
    for line in text.splitlines():
        match = _COMMAND.match(line)
        if match is not None:
            found.append(_Command(match[1].lower(), match[2]))
        elif tasks and (wish := plain.read(line, tasks)) is not None:
            found.append(_Command("tool", f"{wish.tool} {wish.arguments_json}", plain=True))
        elif found and found[-1].word == "say":
            # What follows `say` belongs to it, so that a text of several lines can be said.
            found[-1] = _Command("say", f"{found[-1].rest}\n{line}")
    return found


def _group(commands: Sequence[_Command], start: int) -> tuple[list[_Command], int]:
    """Take a tool, and those joined to it by `and`."""
    group = [commands[start]]
    index = start + 1
    while index + 1 < len(commands) and commands[index].word == "and" and commands[index + 1].word == "tool":
        group.append(commands[index + 1])
        index += 2
    return group, index


def _call(command: _Command, tools: Sequence[OfferedTool], number: int) -> CalledTool:
    name, _, rest = command.rest.partition(" ")
    return CalledTool(f"offline-{number + 1}", _full_name(name, tools), _arguments(rest.strip()))


def _full_name(name: str, tools: Sequence[OfferedTool]) -> str:
    names = [one.name for one in tools]
    if name in names:
        return name
    ending = [one for one in names if one.endswith(f"__{name}")]
    return ending[0] if len(ending) == 1 else name


def _arguments(text: str) -> str:
    """Read arguments: a JSON object as it is, else words of the form name=value."""
    if not text:
        return "{}"
    if text.startswith("{"):
        return text
    found: dict[str, object] = {}
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    for word in words:
        name, _, value = word.partition("=")
        found[name] = value
        with contextlib.suppress(ValueError):
            found[name] = json.loads(value)
    return json.dumps(found, ensure_ascii=False)


def _said(command: _Command) -> "list[Piece | float]":
    if command.word == "say":
        return [*_pieces(command.rest)]
    if command.word == "think":
        return [ThinkingText(command.rest)]
    if command.word == "pause":
        try:
            return [min(max(float(command.rest), 0.0), _MOST_PAUSE_SECONDS)]
        except ValueError:
            return []
    if command.word == "fail":
        raise ModelError(error_reason_pb2.ERROR_REASON_MODEL_UNAVAILABLE, "told to fail")
    return []


def _pieces(text: str) -> list[Piece]:
    """Split a text into words, as a provider streams it."""
    words = re.findall(r"\s*\S+|\s+$", text)
    return [Text(word) for word in words] or [Text("")]


def _result(message: PromptMessage) -> str:
    return f"{message.name or message.tool_call_id}: {message.text[:_LISTED_BYTES]}"


def _self_description(tools: Sequence[OfferedTool]) -> str:
    names = ", ".join(one.name for one in tools[:_LISTED_TOOLS]) or "none"
    return (
        "This is Gaggle's built-in offline model. It is not a language model and does not understand what you write; "
        "it follows lines that begin with a command: tool NAME {json}, say TEXT, think TEXT, pause SECONDS. "
        f"Tools that it can call now: {names}." + (f" {_PLAIN_HELP}" if plain.offered_tools(tools) else "")
    )


def _usage(prompt: Prompt, said: str, calls: Sequence[CalledTool]) -> message_pb2.TokenUsage:
    """Count as the conversation service does where nobody counted: a quarter of the bytes."""
    asked = sum(len(one.text.encode()) for one in prompt.messages)
    answered = len(said.encode()) + sum(len(one.name) + len(one.arguments_json.encode()) for one in calls)
    into, out = -(-asked // 4), -(-answered // 4)
    return message_pb2.TokenUsage(input_tokens=into, output_tokens=out, total_tokens=into + out)
