"""Turns on the real mesh: what is said, called and answered, in one order, once."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from gaggle.agent.v1 import agent_service_pb2 as api
from gaggle.agent.v1 import turn_pb2
from gaggle.conversation.v1 import message_pb2
from tests.agent.agents import SCRIPTED, Turns, ended, kinds, said, spoken, text
from tests.agent.scripted import ScriptedModel, script
from tests.conditions import eventually
from tests.conversation.talking import refused

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("agents")]

COMPLETED = turn_pb2.TURN_STATUS_COMPLETED


async def test_turn_streams_and_is_kept(turns: Turns) -> None:
    """A turn streams text as it comes, counts it, and leaves question and answer in the conversation."""
    conversation = await turns.conversation("before")
    events = await turns.chat(
        script({"text": "Good morning", "pieces": 3, "thinking": "hm", "usage": [100, 10, 40]}),
        conversation_id=conversation,
        model=SCRIPTED,
    )
    expected = ["started", "saved", "thinking_delta", "text_delta", "usage", "saved", "ended"]
    assert kinds(events) == expected
    assert text(events) == "Good morning"
    positions = [event.position for event in events]
    assert positions == sorted(set(positions))
    end = ended(events)
    assert (end.status, end.unsaved) == (COMPLETED, False)
    # 60 at 1 $, 40 cached at 0.5 $, 10 at 2 $ for a million.
    assert end.usage.cost == pytest.approx(100e-6)
    messages = await turns.messages(conversation)
    assert [role for role, _ in spoken(messages)] == ["user", "user", "assistant"]
    answer = messages[-1]
    assert answer.usage.cache_read_input_tokens == 40
    assert (answer.inference.provider, answer.inference.resolved_model) == ("scripted", "one-resolved")
    assert answer.content[0].thinking.thinking == "hm"


async def test_history_is_given_within_the_budget(turns: Turns, scripted: ScriptedModel) -> None:
    """The model is given what fits its context, the newest of it, and the caller hears that some is missing."""
    conversation = await turns.conversation(*(f"{number} " + "x" * 400 for number in range(20)))
    question = script({"text": "yes"}, mark=conversation)
    events = await turns.chat(question, conversation_id=conversation, model="scripted:small")
    assert events[0].started.context_incomplete
    (asked,) = scripted.asked(conversation)
    texts = [one["content"] for one in asked["messages"]]
    assert texts[-1] == question
    assert 0 < len(texts) < 8
    assert texts[-2].startswith("19 ")


async def test_tools_run_and_their_answers_are_kept(turns: Turns, effects: Any) -> None:
    """Tool calls of one step run, their answers go to the model and, in order, to the conversation."""
    await turns.load_odd()
    conversation = await turns.conversation()
    calls = [
        ["call_a", "odd__append", json.dumps({"path": effects.path, "text": "one"})],
        ["call_b", "odd__fail", json.dumps({"why": "no reason"})],
        ["call_c", "odd__nothing", "{}"],
        ["call_d", "odd__append", "not json"],
    ]
    events = await turns.chat(
        script({"text": "Let me see.", "calls": calls}, {"text": "Done"}),
        conversation_id=conversation,
        model=SCRIPTED,
        extensions=["odd"],
    )
    assert ended(events).status == COMPLETED
    assert effects() == ["one"]
    results = {event.tool_result.name: event.tool_result for event in events if event.HasField("tool_result")}
    assert results["odd__fail"].response.result.is_error
    assert "no tool" in results["odd__nothing"].response.error
    messages = spoken(await turns.messages(conversation))
    assert [role for role, _ in messages] == ["user", "assistant", "tool", "tool", "tool", "tool", "assistant"]
    assert messages[1][1].startswith("Let me see. | call odd__append")
    assert messages[2] == ("tool", "one")
    assert "not JSON" in messages[5][1]
    assert messages[-1] == ("assistant", "Done")


async def test_same_request_again(turns: Turns, scripted: ScriptedModel) -> None:
    """The same request_id and body streams the same turn again, from any position; another body is refused."""
    conversation = await turns.conversation()
    question = script({"text": "Only once, please", "pieces": 5}, mark=conversation)
    fields: dict[str, Any] = {"conversation_id": conversation, "model": SCRIPTED, "request_id": f"again-{conversation}"}
    events = await turns.chat(question, **fields)
    again = await turns.chat(question, replica=1, **fields)
    assert (kinds(again), text(again)) == (kinds(events), text(events))
    assert again[-1] == events[-1]
    for event in events:
        rest = await turns.chat(question, replica=1, after_position=event.position, **fields)
        assert text(rest) == text([one for one in events if one.position > event.position])
    assert len(scripted.asked(conversation)) == 1
    assert len(await turns.messages(conversation)) == 2
    answer = await refused(turns.chat("other", **fields))
    assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")


async def test_many_turns_of_one_user_at_once(turns: Turns) -> None:
    """Turns in conversations of their own all end well, on both replicas, though they share what a user has."""
    conversations = await asyncio.gather(*(turns.conversation() for _ in range(40)))

    async def talk(number: int, conversation: str) -> turn_pb2.TurnEnded:
        question = script({"text": "yes", "usage": [10, 5, 0]})
        events = await turns.chat(question, replica=number % 2, conversation_id=conversation, model=SCRIPTED)
        return ended(events)

    ends = await asyncio.gather(*(talk(*one) for one in enumerate(conversations)))
    assert {one.status for one in ends} == {COMPLETED}
    (day,) = (await turns("ListUsage")).days
    assert (day.usage.input_tokens, day.usage.model_calls) == (400, 40)


async def test_turn_goes_on_without_its_caller(turns: Turns, scripted: ScriptedModel) -> None:
    """A caller who leaves does not end the turn; another replica streams it on, with the half that was missed."""
    conversation = await turns.conversation()
    gate = f"gate-{conversation}"
    fields: dict[str, Any] = {
        "conversation_id": conversation,
        "model": SCRIPTED,
        "request_id": f"left-{conversation}",
        "message": said(script({"text": "abcdefgh", "pieces": 2, "gate": gate})),
    }
    begun = await turns.until("text_delta", **fields)
    assert text(begun) == "abcd"
    rest = asyncio.create_task(turns.persist(replica=1, after_position=begun[-1].position, **fields))
    running = await turns.status(fields["request_id"], turn_pb2.TURN_STATUS_RUNNING)
    assert running.attempts == 1

    async def checkpointed() -> bool:
        return bool((await turns("GetTurn", turn_id=fields["request_id"], replica=1)).turn.text == "abcd")

    await eventually(checkpointed, within=5, what="what was streamed to be saved meanwhile")
    scripted.open(gate)
    events = await rest
    assert text(events) == "efgh"
    assert ended(events).status == COMPLETED
    assert spoken(await turns.messages(conversation))[-1] == ("assistant", "abcdefgh")


async def test_policies_for_a_second_turn(turns: Turns, scripted: ScriptedModel) -> None:
    """A second turn is refused, waits, or takes the first one's place, as the conversation's policy says."""
    conversation = await turns.conversation()
    gate = f"gate-{conversation}"
    fields: dict[str, Any] = {"conversation_id": conversation, "model": SCRIPTED}
    first = said(script({"text": "first one", "pieces": 2, "gate": gate}))
    await turns.until("text_delta", request_id=f"1-{conversation}", message=first, **fields)
    answer = await refused(turns.chat(script({"text": "x"}), replica=1, **fields))
    assert (answer.code, answer.reason) == ("ABORTED", "TURN_IN_PROGRESS")

    await turns("SetTurnPolicy", conversation_id=conversation, policy=api.TURN_POLICY_QUEUE)
    second = said(script({"text": "second"}))
    queued = await turns.until("queued", replica=1, request_id=f"2-{conversation}", message=second, **fields)
    assert queued[-1].queued.ahead == 1

    async def saved() -> bool:
        return bool((await turns("GetTurn", turn_id=f"1-{conversation}")).turn.text == "first")

    await eventually(saved, within=5, what="what was streamed to be saved meanwhile")
    await turns("SetTurnPolicy", conversation_id=conversation, policy=api.TURN_POLICY_INTERRUPT)
    events = await turns.chat(script({"text": "third"}), replica=1, request_id=f"3-{conversation}", **fields)
    assert ended(events).status == COMPLETED
    interrupted = await turns("GetTurn", turn_id=f"1-{conversation}")
    assert interrupted.turn.status == turn_pb2.TURN_STATUS_INTERRUPTED
    await turns.status(f"2-{conversation}", COMPLETED)
    scripted.open(gate)
    messages = await turns.messages(conversation)
    answers = [gist for role, gist in spoken(messages) if role == "assistant"]
    assert answers == ["first", "third", "second"]
    assert messages[1].metadata["incomplete"] == "interrupted"
    listed = (await turns("ListTurns", conversation_id=conversation)).turns
    assert [one.id[0] for one in listed] == ["3", "2", "1"]


async def test_cancel(turns: Turns) -> None:
    """A cancelled turn keeps what it said, ends for all who watch, and frees the conversation."""
    conversation = await turns.conversation()
    fields: dict[str, Any] = {"conversation_id": conversation, "model": SCRIPTED}
    question = said(script({"text": "a long story", "pieces": 2, "gate": f"never-{conversation}"}))
    begun = await turns.until("text_delta", request_id=f"c-{conversation}", message=question, **fields)

    async def saved() -> bool:
        return bool((await turns("GetTurn", turn_id=f"c-{conversation}", replica=1)).turn.text)

    await eventually(saved, within=5, what="what was streamed to be saved meanwhile")
    watching = asyncio.create_task(turns.watch(f"c-{conversation}", after=begun[-1].position, replica=1))
    response = await turns("CancelTurn", turn_id=f"c-{conversation}", replica=1)
    assert response.turn.status == turn_pb2.TURN_STATUS_CANCELLED
    assert ended(await watching).status == turn_pb2.TURN_STATUS_CANCELLED
    assert spoken(await turns.messages(conversation))[-1] == ("assistant", "a long")
    again = await turns("CancelTurn", turn_id=f"c-{conversation}")
    assert again.turn == response.turn
    assert ended(await turns.chat(script({"text": "next"}), **fields)).status == COMPLETED


FAILURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "rate-limit": (SCRIPTED, {"fail": [429, "rate_limit_exceeded", 99]}, "MODEL_RATE_LIMITED"),
    "quota": (SCRIPTED, {"fail": [429, "insufficient_quota", 99]}, "MODEL_KEY_REJECTED"),
    "down": (SCRIPTED, {"fail": [503, "server_error", 99]}, "MODEL_UNAVAILABLE"),
    "too-long": (SCRIPTED, {"fail": [400, "context_length_exceeded", 99]}, "MODEL_REQUEST_REJECTED"),
    "no-key": ("keyless:one", {"text": "x"}, "MODEL_KEY_REJECTED"),
    "refusal": (SCRIPTED, {"refusal": "I'd rather not"}, "MODEL_REFUSED"),
    "filter": (SCRIPTED, {"text": "half", "finish": "content_filter"}, "MODEL_REFUSED"),
    "breaks-off": (SCRIPTED, {"text": "half", "break_off": 99}, "MODEL_UNAVAILABLE"),
}


@pytest.mark.parametrize(("model", "answer", "reason"), FAILURES.values(), ids=FAILURES.keys())
async def test_failures_of_the_endpoint(turns: Turns, model: str, answer: dict[str, Any], reason: str) -> None:
    """What an endpoint refuses or fails at ends the turn with a typed error, and frees the conversation."""
    conversation = await turns.conversation()
    events = await turns.chat(script(answer, mark=conversation), conversation_id=conversation, model=model)
    assert (ended(events).status, ended(events).error.reason) == (turn_pb2.TURN_STATUS_FAILED, reason)
    assert ended(await turns.chat("say ok", conversation_id=conversation)).status == COMPLETED


@pytest.mark.parametrize(
    "answer",
    [
        {"text": "whole", "fail": [429, "rate_limit_exceeded", 2], "retry_after": 0.1},
        {"text": "whole", "fail": [500, "server_error", 3]},
        {"text": "whole", "break_off": 2},
    ],
    ids=["busy", "down", "breaks-off"],
)
async def test_passing_failures_are_outlasted(turns: Turns, answer: dict[str, Any]) -> None:
    """A provider that is busy, away or breaks off for a moment costs time and nothing else."""
    conversation = await turns.conversation()
    events = await turns.chat(script(answer, mark=conversation), conversation_id=conversation, model=SCRIPTED)
    assert (text(events), ended(events).status) == ("whole", COMPLETED)
    assert spoken(await turns.messages(conversation))[-1] == ("assistant", "whole")


async def test_response_schema(turns: Turns) -> None:
    """An answer that misses its schema is asked for again; one that keeps missing it fails the turn."""
    schema = json.dumps({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}})
    options = api.ChatOptions(response_schema_json=schema)
    conversation = await turns.conversation()
    good = await turns.chat('say {"n": 1}', conversation_id=conversation, options=options)
    assert ended(good).status == COMPLETED
    bad = await turns.chat('say {"n": "one"}', conversation_id=conversation, options=options)
    assert ended(bad).error.reason == "MODEL_RESPONSE_INVALID"
    reminders = [one for one in await turns.messages(conversation) if one.hidden_from_user]
    assert reminders
    assert all("schema" in one.content[0].text.text or "JSON" in one.content[0].text.text for one in reminders)


async def test_step_limit(turns: Turns) -> None:
    """A model that never stops calling tools is stopped."""
    await turns.load_odd()
    endless = script({"calls": [["", "odd__count", "{}"]]})
    conversation = await turns.conversation()
    events = await turns.chat(
        endless,
        conversation_id=conversation,
        model=SCRIPTED,
        extensions=["odd"],
        options=api.ChatOptions(max_steps=3),
    )
    assert ended(events).error.reason == "TURN_LIMIT_REACHED"
    answers = [
        event.tool_result.response.result.content[0].text.text for event in events if event.HasField("tool_result")
    ]
    assert answers == ["1", "2", "3"]
    ids = {event.tool_result.call_id for event in events if event.HasField("tool_result")}
    assert len(ids) == 3


async def test_offline_model(turns: Turns, effects: Callable[[], list[str]]) -> None:
    """The offline model follows plain commands, calls tools, and says that it is no language model."""
    await turns.load_odd()
    conversation = await turns.conversation()
    path = effects.path  # type: ignore[attr-defined]
    commands = f"say one moment\ntool append path={path} text=x\nsay done"
    events = await turns.chat(commands, conversation_id=conversation, extensions=["odd"])
    assert ended(events).message.content[0].text.text == "done"
    assert effects() == ["x"]
    plain = await turns.chat("What is the capital of France?", conversation_id=conversation)
    assert "not a language model" in text(plain)


async def test_two_users_do_not_meet(turns: Turns, stranger: Turns) -> None:
    """Another user's turns and conversations are not there; the same request_id is theirs to use."""
    conversation = await turns.conversation()
    fields: dict[str, Any] = {"request_id": "mine"}
    mine = await turns.chat("say mine", conversation_id=conversation, **fields)
    for call in (
        stranger("GetTurn", turn_id="mine"),
        stranger("CancelTurn", turn_id="mine"),
        stranger("ApproveToolCall", turn_id="mine", call_id="x"),
        stranger.watch("mine"),
        stranger.chat("say x", conversation_id=conversation),
        stranger("SetTurnPolicy", conversation_id=conversation, policy=api.TURN_POLICY_QUEUE),
    ):
        assert (await refused(call)).code == "NOT_FOUND"
    theirs = await stranger.chat("say theirs", **fields)
    assert (text(mine), text(theirs)) == ("mine", "theirs")


async def test_images_and_steering(turns: Turns, scripted: ScriptedModel) -> None:
    """Images reach the model; what others say while a tool runs comes after its answer."""
    conversation = await turns.conversation()
    picture = message_pb2.ContentPart(image=message_pb2.ImageContent(data=b"\x89PNG", mime_type="image/png"))
    message = [*said(f"look {conversation}"), picture]
    events = [event async for event in turns.stream(conversation_id=conversation, model=SCRIPTED, message=message)]
    assert ended(events).status == COMPLETED
    (asked,) = scripted.asked(conversation)
    assert asked["messages"][-1]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")
