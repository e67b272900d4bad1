"""Processes killed or stalled in the middle of a turn: it ends, once, and no tool that has answered runs again."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from cli.samples import OBSERVATORY, sample
from gaggle.agent.v1 import turn_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as conversation_api
from gaggle.conversation.v1 import message_pb2
from tests.agent.agents import SCRIPTED, Turns, ended, kinds, said, spoken, store_away, text
from tests.agent.scripted import ScriptedModel, script
from tests.conditions import eventually
from tests.conversation.talking import refused, text_message
from tests.mesh_fixture import Mesh

pytestmark = [pytest.mark.mesh, pytest.mark.slow, pytest.mark.xdist_group("agents")]

COMPLETED = turn_pb2.TURN_STATUS_COMPLETED
RUNNING = turn_pb2.TURN_STATUS_RUNNING
_LOCOMO = Path(__file__).parents[3] / "shared" / "data" / "locomo"


async def _gated(turns: Turns, **answer: Any) -> tuple[str, str, dict[str, Any]]:
    """A turn that stops half-way until its gate is opened; gives conversation, gate and request."""
    conversation = await turns.conversation()
    gate = f"gate-{conversation}"
    question = script({"text": "first second", "pieces": 2, "gate": gate, **answer})
    fields: dict[str, Any] = {
        "conversation_id": conversation,
        "model": SCRIPTED,
        "request_id": f"t-{conversation}",
        "message": said(question),
    }
    return conversation, gate, fields


async def test_agent_killed_in_the_middle(agents: Mesh, turns: Turns, scripted: ScriptedModel) -> None:
    """After kill -9 another replica goes on: the caller is told to forget the half answer, and one is kept."""
    conversation, gate, fields = await _gated(turns)
    begun = await turns.until("text_delta", **fields)
    dead = agents.kill("agent")
    scripted.open(gate)
    rest = await turns.persist(replica=1, after_position=begun[-1].position, **fields)
    assert "restarted" in kinds(rest)
    assert text(rest) == "first second"
    assert ended(rest).status == COMPLETED
    assert (await turns("GetTurn", turn_id=fields["request_id"], replica=1)).turn.attempts == 2
    assert [role for role, _ in spoken(await turns.messages(conversation))] == ["user", "assistant"]
    await agents.back("agent", dead)


async def test_single_replica_comes_back(agents: Mesh, turns: Turns, scripted: ScriptedModel) -> None:
    """A process that comes back in its own place takes its predecessor's turns up at once, and nobody else does."""
    _, gate, fields = await _gated(turns)
    await turns.until("text_delta", replica=1, **fields)
    await asyncio.gather(*(agents.killed(name) for name in ("agent", "agent-2")))
    scripted.open(gate)
    assert text(await turns.persist(**fields)) == "first second"
    assert (await turns("GetTurn", turn_id=fields["request_id"])).turn.attempts == 2


async def test_rolling_restart(agents: Mesh, turns: Turns, scripted: ScriptedModel) -> None:
    """A replica that is told to stop hands its turns over; callers come back and have their answer."""
    _, gate, fields = await _gated(turns)
    begun = await turns.until("text_delta", **fields)
    stream = asyncio.create_task(turns.persist(after_position=begun[-1].position, **fields))
    assert len(await agents.restart("agent")) == 2
    scripted.open(gate)
    rest = await stream
    assert (text(rest), ended(rest).status) == ("first second", COMPLETED)


async def test_tools_that_answered_do_not_run_again(
    agents: Mesh, turns: Turns, scripted: ScriptedModel, effects: Any
) -> None:
    """A turn taken over after its tools have answered goes on with their answers."""
    await turns.load_odd()
    conversation = await turns.conversation()
    gate = f"gate-{conversation}"
    calls = [["", "odd__append", json.dumps({"path": effects.path, "text": str(number)})] for number in range(4)]
    fields: dict[str, Any] = {
        "conversation_id": conversation,
        "model": SCRIPTED,
        "extensions": ["odd"],
        "request_id": f"t-{conversation}",
        "message": said(script({"calls": calls}, {"text": "all done", "pieces": 2, "gate": gate})),
    }
    begun = await turns.until("text_delta", **fields)
    assert sorted(effects()) == ["0", "1", "2", "3"]
    dead = agents.kill("agent")
    scripted.open(gate)
    rest = await turns.persist(replica=1, after_position=begun[-1].position, **fields)
    assert ended(rest).status == COMPLETED
    assert sorted(effects()) == ["0", "1", "2", "3"]
    messages = spoken(await turns.messages(conversation))
    assert [role for role, _ in messages] == ["user", "assistant", *["tool"] * 4, "assistant"]
    assert [gist for role, gist in messages if role == "tool"] == ["0", "1", "2", "3"]
    await agents.back("agent", dead)


async def test_killed_while_a_tool_runs(agents: Mesh, turns: Turns, tmp_path: Path, effects: Any) -> None:
    """Killed while one of two tools runs, a turn goes on without running the other one again."""
    await turns.load_odd()
    conversation = await turns.conversation()
    slow = json.dumps({"seconds": 2, "mark": str(tmp_path / "slow")})
    calls = [
        ["", "odd__append", json.dumps({"path": effects.path, "text": "once"})],
        ["", "odd__slow", slow],
    ]
    fields: dict[str, Any] = {
        "conversation_id": conversation,
        "model": SCRIPTED,
        "extensions": ["odd"],
        "request_id": f"t-{conversation}",
        "message": said(script({"calls": calls}, {"text": "Done"})),
    }
    begun = await turns.until("tool_result", **fields)
    dead = agents.kill("agent")
    rest = await turns.persist(replica=1, after_position=begun[-1].position, **fields)
    assert ended(rest).status == COMPLETED
    assert effects() == ["once"]
    answers = [gist for role, gist in spoken(await turns.messages(conversation)) if role == "tool"]
    assert answers == ["once", "slept"]
    await agents.back("agent", dead)


async def test_extension_service_killed_in_a_call(agents: Mesh, turns: Turns, tmp_path: Path) -> None:
    """While the extension service starts again the call is repeated under its own key; the turn completes."""
    await turns.load_odd()
    conversation = await turns.conversation()
    slow = json.dumps({"seconds": 1.5, "mark": str(tmp_path / "slow")})
    fields: dict[str, Any] = {
        "conversation_id": conversation,
        "model": SCRIPTED,
        "extensions": ["odd"],
        "request_id": f"t-{conversation}",
        "message": said(script({"calls": [["", "odd__slow", slow]]}, {"text": "Done"})),
    }
    begun = await turns.until("tool_progress", **fields)
    dead = agents.kill("extension")
    rest = await turns.persist(after_position=begun[-1].position, **fields)
    assert ended(rest).status == COMPLETED
    answers = [gist for role, gist in spoken(await turns.messages(conversation)) if role == "tool"]
    assert answers == ["slept"]
    await agents.back("extension", dead)


async def test_stalled_agent_wakes_after_take_over(agents: Mesh, turns: Turns, scripted: ScriptedModel) -> None:
    """A replica that stalls loses its turn; when it wakes it changes nothing, and its fence is refused."""
    conversation, gate, fields = await _gated(turns)
    begun = await turns.until("text_delta", **fields)
    agents.signal("agent", signal.SIGSTOP)
    try:
        scripted.open(gate)
        rest = await turns.persist(replica=1, after_position=begun[-1].position, **fields)
        assert ended(rest).status == COMPLETED
    finally:
        agents.signal("agent", signal.SIGCONT)
    log = agents.data.path / "logs" / "agent.log"

    async def noticed() -> bool:
        lines = await asyncio.to_thread(log.read_text)
        return any(fields["request_id"] in line and '"turn_left"' in line for line in lines.splitlines())

    await eventually(noticed, within=20, what="the woken replica to leave the turn")
    assert spoken(await turns.messages(conversation))[1:] == [("assistant", "first second")]
    late = conversation_api.AppendMessagesRequest(
        conversation_id=conversation, messages=[text_message("late", message_pb2.ROLE_ASSISTANT)], fence=1
    )
    answer = await refused(turns.conversations.AppendMessages(late, metadata=turns.metadata, timeout=20))
    assert (answer.code, answer.reason) == ("ABORTED", "STALE_FENCE")
    assert ended(await turns.chat("say ok", conversation_id=conversation)).status == COMPLETED


def _long_conversation() -> list[str]:
    """Six hundred messages of a real long conversation, where there is one; else of the sample that is shipped."""
    for file in sorted(_LOCOMO.glob("*.json")):
        texts = [str(one.get("text") or "...") for one in json.loads(file.read_text())["messages"]]
        if len(texts) >= 600:
            return texts[:600]
    lines = [str(json.loads(line).get("content") or "...") for line in sample(OBSERVATORY).read_text().splitlines()]
    return (lines * 2)[:600]


async def test_chat_without_the_state_store(agents: Mesh, turns: Turns, effects: Any) -> None:
    """A long conversation chatted on while the store is away: answered, without history and tools, and saying so."""
    await turns.load_odd()
    conversation = await turns.conversation()
    texts = _long_conversation()
    for start in range(0, len(texts), 300):
        append = conversation_api.AppendMessagesRequest(
            conversation_id=conversation, messages=[text_message(one) for one in texts[start : start + 300]]
        )
        await turns.conversations.AppendMessages(append, metadata=turns.metadata, timeout=30)
    fields: dict[str, Any] = {"conversation_id": conversation, "model": SCRIPTED, "extensions": ["odd"]}
    before = await turns.chat(script({"text": "with history"}), **fields)
    assert before[0].started.history == turn_pb2.HISTORY_AVAILABLE
    calls = [["", "odd__append", json.dumps({"path": effects.path, "text": "must not run"})]]
    with store_away(agents):
        began = asyncio.get_running_loop().time()
        during = await turns.chat(script({"text": "without", "calls": calls}), **fields)
        assert asyncio.get_running_loop().time() - began < 10
    assert during[0].started.history == turn_pb2.HISTORY_UNAVAILABLE
    assert (ended(during).status, ended(during).unsaved) == (COMPLETED, True)
    assert ended(during).message.metadata["unsaved"] == "true"
    assert text(during) == "without"
    assert effects() == []

    async def back() -> bool:
        events = await turns.chat(script({"text": "again"}), **fields)
        return events[0].started.history == turn_pb2.HISTORY_AVAILABLE

    await eventually(back, within=30, what="history after the store is back")
    kept = await turns.messages(conversation)
    assert len([one for one in kept if one.role == message_pb2.ROLE_USER]) == 602
    assert [gist for role, gist in spoken(kept) if role == "assistant"] == ["with history", "again"]
    # Stopped for good this time, and started again: nothing of it is lost, and the talk goes on.
    await agents.killed("postgres", within=60)
    asked = {**fields, "request_id": f"after-{conversation}", "message": said(script({"text": "still here"}))}

    async def answered() -> bool:
        try:
            events = await turns.persist(**asked)
        except grpc.aio.AioRpcError:
            return False
        end = ended(events)
        return end.status == COMPLETED and not end.unsaved and text(events) == "still here"

    await eventually(answered, within=60, what="an answer after the store was killed")

    async def saved() -> bool:
        return spoken(await turns.messages(conversation))[-1] == ("assistant", "still here")

    await eventually(saved, within=30, what="the answer in the conversation")
    now = await turns.messages(conversation)
    assert [one.content[0].text.text for one in now[:600]] == texts
    assert now[: len(kept)] == kept


async def test_store_goes_away_in_the_middle(agents: Mesh, turns: Turns, scripted: ScriptedModel) -> None:
    """An answer that can't be saved is given to its caller as unsaved, and saved once the store is back."""
    conversation, gate, fields = await _gated(turns)
    begun = await turns.until("text_delta", **fields)
    stream = asyncio.create_task(turns.persist(after_position=begun[-1].position, **fields))
    await turns.status(fields["request_id"], RUNNING)
    with store_away(agents):
        scripted.open(gate)
        rest = await stream
        assert (ended(rest).unsaved, text([*begun, *rest])) == (True, "first second")
    await turns.status(fields["request_id"], COMPLETED, within=60)
    assert spoken(await turns.messages(conversation))[-1] == ("assistant", "first second")
