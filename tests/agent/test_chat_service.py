"""A chatbot's one call."""

import json
from typing import Any

import pytest

from gaggle.agent.v1 import chat_service_pb2 as chat_api
from gaggle.agent.v1 import chat_service_pb2_grpc, turn_pb2
from tests.agent.agents import SCRIPTED, Turns
from tests.agent.scripted import script
from tests.conversation.talking import refused
from tests.mesh_fixture import Mesh

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("agents")]


async def _chat(mesh: Mesh, turns: Turns, message: str, **fields: Any) -> Any:
    async with mesh.channel("agent") as channel:
        stub: Any = chat_service_pb2_grpc.ChatServiceStub(channel)
        request = chat_api.ChatServiceChatRequest(message=message, **fields)
        return await stub.Chat(request, metadata=turns.metadata, timeout=60)


async def test_a_chatbot(agents: Mesh, turns: Turns, effects: Any) -> None:
    """Message in; answer, tools and history out; the conversation goes on, and keeps 200 messages."""
    await turns.load_odd()
    calls = [["", "odd__append", json.dumps({"path": effects.path, "text": "x"})]]
    first = await _chat(
        agents, turns, script({"calls": calls}, {"text": "Done"}), model=SCRIPTED, extensions=["odd"], request_id="r"
    )
    assert (first.response, first.unsaved, first.history_state) == ("Done", False, turn_pb2.HISTORY_AVAILABLE)
    assert [(one.name, one.response, one.is_error) for one in first.tool_calls] == [("odd__append", "x", False)]
    assert first.history[-1].content[0].text.text == "Done"
    second = await _chat(agents, turns, "say again", conversation_id=first.conversation_id)
    assert (second.conversation_id, second.response) == (first.conversation_id, "again")
    assert len(second.history) == len(first.history) + 2
    repeated = await _chat(
        agents, turns, script({"calls": calls}, {"text": "Done"}), model=SCRIPTED, extensions=["odd"], request_id="r"
    )
    assert (repeated.conversation_id, repeated.response) == (first.conversation_id, "Done")
    assert effects() == ["x"]


async def test_failures(agents: Mesh, turns: Turns) -> None:
    """A turn that fails is raised as its error."""
    answer = await refused(_chat(agents, turns, script({"refusal": "no"}), model=SCRIPTED))
    assert (answer.code, answer.reason) == ("FAILED_PRECONDITION", "MODEL_REFUSED")
    answer = await refused(_chat(agents, turns, ""))
    assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", ("message",))
