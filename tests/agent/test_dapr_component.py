"""Dapr's Conversation API through a real sidecar: turns that a component answers."""

import json
from typing import Any

import pytest

from gaggle.agent.v1 import turn_pb2
from gaggle.conversation.v1 import message_pb2
from tests.agent.agents import Turns, ended, spoken, text
from tests.agent.scripted import ScriptedModel, script

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("agents")]

COMPLETED = turn_pb2.TURN_STATUS_COMPLETED
FAILED = turn_pb2.TURN_STATUS_FAILED


async def test_the_component_is_given_the_history(turns: Turns) -> None:
    """conversation.echo gives back what it was asked, the conversation's earlier messages before the new one."""
    conversation = await turns.conversation("a heron")
    events = await turns.chat("by the river", conversation_id=conversation, model="dapr:echo")
    assert ended(events).status == COMPLETED
    assert text(events).split("\n")[-2:] == ["a heron", "by the river"]
    assert spoken(await turns.messages(conversation))[-1] == ("assistant", text(events))


async def test_tools_are_called_through_it(turns: Turns, scripted: ScriptedModel, effects: Any) -> None:
    """conversation.openai asks for a tool, is given its result, and answers; usage of both calls is counted."""
    await turns.load_odd()
    conversation = await turns.conversation()
    call = ["c1", "odd__append", json.dumps({"path": effects.path, "text": "quack"})]
    question = script(
        {"calls": [call], "usage": [30, 3, 0]}, {"text": "It said quack", "usage": [50, 5, 0]}, mark=conversation
    )
    events = await turns.chat(question, conversation_id=conversation, model="dapr:asked-by-dapr", extensions=["odd"])
    assert ended(events).status == COMPLETED, events
    assert text(events) == "It said quack"
    assert (ended(events).usage.input_tokens, ended(events).usage.output_tokens) == (80, 8)
    assert effects() == ["quack"]
    assert spoken(await turns.messages(conversation))[1:] == [
        ("assistant", "call odd__append"),
        ("tool", "quack"),
        ("assistant", "It said quack"),
    ]
    first, second = scripted.asked(conversation)
    assert first["model"] == "two"
    assert "odd__append" in {one["function"]["name"] for one in first["tools"]}
    assert [one["role"] for one in second["messages"]][-3:] == ["user", "assistant", "tool"]


async def test_what_the_provider_refuses_is_told(turns: Turns) -> None:
    """An error of the component's provider ends the turn as failed, with the provider's own words."""
    conversation = await turns.conversation()
    question = script({"fail": [400, "context_length_exceeded", 9]}, mark=conversation)
    events = await turns.chat(question, conversation_id=conversation, model="dapr:asked-by-dapr")
    end = ended(events)
    assert end.status == FAILED
    assert "context_length_exceeded" in end.error.message
    assert message_pb2.ROLE_ASSISTANT not in {one.role for one in await turns.messages(conversation)}
