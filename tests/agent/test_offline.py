"""The offline model: the same answer to the same question, and no more than it was told."""

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
