"""A chatbot's one call."""

import json
from typing import Any

import pytest

from gaggle.agent.v1 import chat_service_pb2 as chat_api
from gaggle.agent.v1 import chat_service_pb2_grpc, turn_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as conversation_api
from tests.agent.agents import SCRIPTED, Turns, store_away
from tests.agent.scripted import script
from tests.conditions import eventually
from tests.conversation.talking import refused, text_message
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


async def test_the_window_and_what_is_kept(agents: Mesh, turns: Turns) -> None:
    """Of a conversation of its making 200 messages are kept, and the newest 50 come with each answer."""
    began = await _chat(agents, turns, "say hello")
    conversation_id = began.conversation_id
    for _ in range(3):
        append = conversation_api.AppendMessagesRequest(
            conversation_id=conversation_id, messages=[text_message(f"number {number}") for number in range(80)]
        )
        await turns.conversations.AppendMessages(append, metadata=turns.metadata, timeout=30)
    answer = await _chat(agents, turns, "say last", conversation_id=conversation_id)
    assert len(answer.history) == 50
    assert [one.content[0].text.text for one in answer.history[-3:]] == ["number 79", "say last", "last"]
    assert len(await turns.messages(conversation_id)) == 200


async def test_another_users_conversation(agents: Mesh, turns: Turns, stranger: Turns) -> None:
    """Another user's conversation answers as one that there is not, and gets nothing."""
    began = await _chat(agents, turns, "say hello")
    foreign = await refused(_chat(agents, stranger, "say hello", conversation_id=began.conversation_id))
    missing = await refused(_chat(agents, stranger, "say hello", conversation_id="there-is-none"))
    assert (foreign.code, foreign.reason) == (missing.code, missing.reason) == ("NOT_FOUND", "NOT_FOUND")
    assert len(await turns.messages(began.conversation_id)) == 2


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"message": "x", "conversation_id": "a:b"}, "conversation_id"),
        ({"message": "x", "request_id": "x" * 65}, "request_id"),
        ({"message": "x", "model": "nothing"}, "model"),
        ({"message": "x", "extensions": ["e"] * 33}, "extensions"),
    ],
    ids=["conversation", "request", "model", "extensions"],
)
async def test_refusals(agents: Mesh, turns: Turns, fields: dict[str, Any], field: str) -> None:
    """What is wrong with a request is named, and nothing has happened."""
    answer = await refused(_chat(agents, turns, **fields))
    assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", (field,))


async def test_a_request_used_again(agents: Mesh, turns: Turns) -> None:
    """A request_id with another message is refused; a message over the limit is told the limit."""
    began = await _chat(agents, turns, "say hello", request_id="again")
    fields = {"conversation_id": began.conversation_id, "request_id": "again"}
    answer = await refused(_chat(agents, turns, "say something else", **fields))
    assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    answer = await refused(_chat(agents, turns, "x" * (513 * 1024)))
    assert (answer.code, answer.reason) == ("RESOURCE_EXHAUSTED", "TOO_LARGE")


@pytest.mark.slow
async def test_without_the_state_store(agents: Mesh, turns: Turns, effects: Any) -> None:
    """While the store is away a chatbot answers, without history, tools or anything saved, and says so."""
    await turns.load_odd()
    began = await _chat(agents, turns, "say hello")
    calls = [["", "odd__append", json.dumps({"path": effects.path, "text": "must not run"})]]
    question = script({"text": "alone", "calls": calls})
    with store_away(agents):
        answers = [
            await _chat(agents, turns, question, model=SCRIPTED, extensions=["odd"], conversation_id=conversation_id)
            for conversation_id in (began.conversation_id, "")
        ]
    for answer, conversation_id in zip(answers, (began.conversation_id, ""), strict=True):
        assert (answer.response, answer.conversation_id) == ("alone", conversation_id)
        assert (answer.history_state, answer.unsaved) == (turn_pb2.HISTORY_UNAVAILABLE, True)
        assert (len(answer.history), len(answer.tool_calls)) == (0, 0)
    assert effects() == []

    async def back() -> bool:
        answer = await _chat(agents, turns, "say back", conversation_id=began.conversation_id)
        return bool(answer.history_state == turn_pb2.HISTORY_AVAILABLE)

    await eventually(back, within=30, what="history after the store is back")
    assert all("alone" not in str(one) for one in await turns.messages(began.conversation_id))
