"""The offline model: the same answer to the same question, and no more than it was told."""

import json
from typing import Any

import pytest

from services.agent.models.base import Finished, ModelError, OfferedTool, Prompt, PromptMessage, Text, ThinkingText
from services.agent.models.offline import OfflineModel

_TOOLS = (OfferedTool("time__now", "", "{}"), OfferedTool("a__same", "", "{}"), OfferedTool("b__same", "", "{}"))


async def _ask(text: str, *answers: str) -> tuple[str, str, Finished]:
    messages = [PromptMessage("user", text)]
    messages += [PromptMessage("tool", one, tool_call_id=str(at), name="t") for at, one in enumerate(answers)]
    pieces = [piece async for piece in OfflineModel().answer(Prompt(messages, _TOOLS))]
    said = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    thought = "".join(piece.text for piece in pieces if isinstance(piece, ThinkingText))
    assert isinstance(pieces[-1], Finished)
    return said, thought, pieces[-1]


async def test_commands_in_their_order() -> None:
    """What lies before a tool is said once; what lies after it, once it has answered."""
    text = "say first\ntool now zone=utc n=2\nthink well\nsay last\nof all"
    said, _, finished = await _ask(text)
    assert said == "first"
    assert [(one.name, one.arguments_json) for one in finished.calls] == [("time__now", '{"zone": "utc", "n": 2}')]
    said, thought, finished = await _ask(text, "noon")
    assert (said, thought, finished.calls) == ("last\nof all", "well", ())


async def test_tools_together_and_one_after_another() -> None:
    """`and` joins tools to one step; without it each is a step of its own."""
    _, _, finished = await _ask('tool a {"x": 1}\nand\ntool b\ntool c')
    assert [one.name for one in finished.calls] == ["a", "b"]
    _, _, finished = await _ask('tool a {"x": 1}\nand\ntool b\ntool c', "1", "2")
    assert [one.name for one in finished.calls] == ["c"]
    said, _, finished = await _ask("tool a\ntool c", "one", "two")
    assert (said, finished.calls) == ("t: one\nt: two", ())


async def test_names_by_their_end() -> None:
    """A tool may be named by its end where that is no question."""
    _, _, finished = await _ask("tool same")
    assert finished.calls[0].name == "same"


async def test_it_says_what_it_is() -> None:
    """Without a command it says that it is no language model, and what it can call."""
    said, _, finished = await _ask("Tell me about love")
    assert "not a language model" in said
    assert "time__now" in said
    assert finished.usage.output_tokens > 0
    assert await _ask("Tell me about love") == (said, "", finished)


async def test_failing() -> None:
    """`fail` breaks off after what was said before."""
    answer = OfflineModel().answer(Prompt([PromptMessage("user", "say half\nfail")]))
    assert await anext(answer) == Text("half")
    with pytest.raises(ModelError):
        await anext(answer)


_TASKS = tuple(
    OfferedTool(f"tasks__{name}", "", "{}")
    for name in ("add_task", "list_tasks", "complete_task", "update_task", "delete_task", "set_reminder")
)


async def _calls(text: str, tools: tuple[OfferedTool, ...] = _TASKS) -> list[tuple[str, dict[str, Any]]]:
    answer = [piece async for piece in OfflineModel().answer(Prompt([PromptMessage("user", text)], tools))]
    assert isinstance(answer[-1], Finished)
    return [(one.name.removeprefix("tasks__"), json.loads(one.arguments_json)) for one in answer[-1].calls]


@pytest.mark.parametrize(
    ("text", "tool", "arguments"),
    [
        ("Add task buy milk", "add_task", {"title": "buy milk"}),
        ("add task buy milk due tomorrow 9am", "add_task", {"title": "buy milk", "due": "tomorrow 9am"}),
        ("add task buy milk tomorrow 9am.", "add_task", {"title": "buy milk", "due": "tomorrow 9am"}),
        ("add a task to call Ann on friday at 17:30", "add_task", {"title": "call Ann", "due": "on friday at 17:30"}),
        ("add task check in at the hotel", "add_task", {"title": "check in at the hotel"}),
        ("add task read May by Friday", "add_task", {"title": "read May", "due": "Friday"}),
        (
            "add task pay rent #home every month high priority due tomorrow",
            "add_task",
            {"title": "pay rent", "tags": ["home"], "repeat": "monthly", "priority": "high", "due": "tomorrow"},
        ),
        (
            "add task standup daily remind me 10 minutes before due tomorrow 9am",
            "add_task",
            {"title": "standup", "repeat": "daily", "remind_before": ["10 minutes"], "due": "tomorrow 9am"},
        ),
        ("list tasks", "list_tasks", {}),
        ("Show my completed tasks", "list_tasks", {"status": "completed"}),
        ("list tasks about milk", "list_tasks", {"text": "milk"}),
        ("complete task buy milk", "complete_task", {"task": "buy milk"}),
        ("finish buy milk", "complete_task", {"task": "buy milk"}),
        ("delete task: buy milk", "delete_task", {"task": "buy milk"}),
        (
            "update task buy milk: due tomorrow 18:00 priority high",
            "update_task",
            {"task": "buy milk", "due": "tomorrow 18:00", "priority": "high"},
        ),
        ("update task buy milk title buy oat milk", "update_task", {"task": "buy milk", "title": "buy oat milk"}),
        ("remind me of buy milk 10 minutes before", "set_reminder", {"task": "buy milk", "when": "10 minutes before"}),
        ("remind me of buy milk tomorrow 8am", "set_reminder", {"task": "buy milk", "when": "tomorrow 8am"}),
    ],
)
async def test_plain_words_for_tasks(text: str, tool: str, arguments: dict[str, Any]) -> None:
    """Where the tools are offered, plain words become calls; times stay words, for the user's zone is the tools'."""
    assert await _calls(text) == [(tool, arguments)]


@pytest.mark.parametrize(
    "text", ["add task", "add task   ", "remind me of buy milk", "update task x", "tasks are dull"]
)
async def test_words_that_are_no_command(text: str) -> None:
    """What lacks its other half is no command, and nothing is called."""
    assert await _calls(text) == []


async def test_plain_words_without_the_tools() -> None:
    """Nothing is called that was not offered, nor what two servers offer under one name."""
    assert await _calls("list tasks", _TOOLS) == []
    assert await _calls("list tasks", (*_TASKS, OfferedTool("other__list_tasks", "", "{}"))) == []


async def test_plain_answers() -> None:
    """The answer to plain words is what the tools said, and no more."""
    messages = [PromptMessage("user", "list tasks"), PromptMessage("tool", "None.", tool_call_id="1", name="t")]
    pieces = [piece async for piece in OfflineModel().answer(Prompt(messages, _TASKS))]
    assert "".join(piece.text for piece in pieces if isinstance(piece, Text)) == "None."
