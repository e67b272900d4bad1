"""Tools that wait for a person: durably, for their owner alone, and no longer than was said."""

import asyncio
import json
from typing import Any

import pytest

from gaggle.agent.v1 import agent_service_pb2 as api
from gaggle.agent.v1 import session_pb2, turn_pb2
from tests.agent.agents import SCRIPTED, Turns, ended, kinds, said, spoken
from tests.agent.scripted import ScriptedModel, script
from tests.conversation.talking import refused
from tests.mesh_fixture import Mesh

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("agents")]

WAITING = turn_pb2.TURN_STATUS_WAITING_APPROVAL
COMPLETED = turn_pb2.TURN_STATUS_COMPLETED
_ASK = api.ChatOptions(approval=session_pb2.ApprovalPolicy(tools=["odd__append"]))


async def _ask(turns: Turns, path: str, *texts: str, options: api.ChatOptions = _ASK) -> tuple[str, dict[str, Any]]:
    """Begin a turn whose appends wait, beside a count that does not; gives the conversation and the request."""
    await turns.load_odd()
    conversation = await turns.conversation()
    calls = [["", "odd__append", json.dumps({"path": path, "text": one})] for one in texts]
    question = script({"calls": [*calls, ["", "odd__count", "{}"]]}, {"text": "Done"})
    fields = {
        "conversation_id": conversation,
        "model": SCRIPTED,
        "extensions": ["odd"],
        "request_id": f"ask-{conversation}",
        "message": said(question),
        "options": options,
    }
    return conversation, fields


async def test_approve_and_deny(turns: Turns, effects: Any) -> None:
    """What is approved runs once, what is denied never; the turn goes on once all is decided, in any process."""
    conversation, fields = await _ask(turns, effects.path, "one", "two")
    events = [event async for event in turns.stream(**fields)]
    told = [kind for kind in kinds(events) if kind != "saved"]
    assert told[-4:] == ["approval_requested", "approval_requested", "tool_result", "waiting"]
    assert effects() == []
    first, second = (event.approval_requested for event in events if event.HasField("approval_requested"))
    turn_id = fields["request_id"]
    assert (await turns("GetTurn", turn_id=turn_id, replica=1)).turn.status == WAITING
    decided = await turns("ApproveToolCall", turn_id=turn_id, call_id=first.call_id)
    assert decided.turn.status == WAITING
    await turns("DenyToolCall", turn_id=turn_id, call_id=second.call_id, reason="not that", replica=1)
    rest = await turns.persist(after_position=events[-1].position, **fields)
    assert ended(rest).status == COMPLETED
    assert effects() == ["one"]
    messages = spoken(await turns.messages(conversation))
    roles = ["user", "assistant", "assistant", "user", "user", "tool", "tool", "tool", "assistant"]
    assert [role for role, _ in messages] == roles
    assert messages[2][1] == "tool_confirmation_request | tool_confirmation_request"
    assert "denied the call: not that" in messages[6][1]
    answer = await refused(turns("DenyToolCall", turn_id=turn_id, call_id=first.call_id))
    assert answer.code in {"NOT_FOUND", "FAILED_PRECONDITION"}


async def test_only_the_owner_decides(turns: Turns, stranger: Turns, effects: Any) -> None:
    """Another user can neither see nor decide what waits; a decision can be repeated, and not be turned round."""
    _, fields = await _ask(turns, effects.path, "one", "two")
    events = [event async for event in turns.stream(**fields)]
    call_id = next(event.approval_requested.call_id for event in events if event.HasField("approval_requested"))
    named = {"turn_id": fields["request_id"], "call_id": call_id}
    for method in ("ApproveToolCall", "DenyToolCall"):
        assert (await refused(stranger(method, **named))).code == "NOT_FOUND"
    await turns("ApproveToolCall", **named)
    await turns("ApproveToolCall", **named)
    answer = await refused(turns("DenyToolCall", **named))
    assert (answer.code, answer.reason, answer.facts) == ("FAILED_PRECONDITION", "WRONG_STATE", {"state": "approved"})
    assert (await refused(turns("ApproveToolCall", turn_id=fields["request_id"], call_id="x"))).code == "NOT_FOUND"
    cancelled = await turns("CancelTurn", turn_id=fields["request_id"])
    assert cancelled.turn.status == turn_pb2.TURN_STATUS_CANCELLED
    assert effects() == []


async def test_waiting_outlives_every_process(agents: Mesh, turns: Turns, effects: Any) -> None:
    """A call that waits is approved after both replicas were killed; it runs, once, and the turn completes."""
    conversation, fields = await _ask(turns, effects.path, "late")
    events = [event async for event in turns.stream(**fields)]
    call_id = next(event.approval_requested.call_id for event in events if event.HasField("approval_requested"))
    await asyncio.gather(*(agents.killed(name) for name in ("agent", "agent-2")))
    assert (await turns("GetTurn", turn_id=fields["request_id"])).turn.status == WAITING
    await turns("ApproveToolCall", turn_id=fields["request_id"], call_id=call_id)
    rest = await turns.persist(after_position=events[-1].position, **fields)
    assert ended(rest).status == COMPLETED
    assert effects() == ["late"]
    assert spoken(await turns.messages(conversation))[-1] == ("assistant", "Done")


async def test_nobody_answers(turns: Turns, effects: Any) -> None:
    """A call that nobody decides on in time counts as denied, and the turn goes on by itself."""
    options = api.ChatOptions(approval=session_pb2.ApprovalPolicy(tools=["odd__append"], expire_seconds=10))
    conversation, fields = await _ask(turns, effects.path, "never", options=options)
    events = [event async for event in turns.stream(**fields)]
    await turns.status(fields["request_id"], COMPLETED, within=30)
    rest = await turns.watch(fields["request_id"], after=events[-1].position)
    decided = next(event.approval_decided for event in rest if event.HasField("approval_decided"))
    assert (decided.approved, decided.expired) == (False, True)
    assert effects() == []
    texts = [gist for _, gist in spoken(await turns.messages(conversation))]
    assert any("nobody approved" in one for one in texts)


MODES = {
    "auto": (session_pb2.APPROVAL_MODE_AUTO, 0),
    "approve": (session_pb2.APPROVAL_MODE_APPROVE, 2),
    "smart": (session_pb2.APPROVAL_MODE_SMART_APPROVE, 2),
}


@pytest.mark.parametrize(("mode", "waiting"), MODES.values(), ids=MODES.keys())
async def test_modes(turns: Turns, effects: Any, mode: "session_pb2.ApprovalMode.ValueType", waiting: int) -> None:
    """A session's mode says which tools wait."""
    await turns.load_odd()
    settings = session_pb2.SessionSettings(
        model=SCRIPTED, extensions=["odd"], approval=session_pb2.ApprovalPolicy(mode=mode)
    )
    session = (await turns("CreateSession", settings=settings)).session
    calls = [["", "odd__append", json.dumps({"path": effects.path, "text": "x"})], ["", "odd__count", "{}"]]
    events = await turns.chat(script({"calls": calls}, {"text": "Done"}), session_id=session.id)
    assert kinds(events).count("approval_requested") == waiting
    assert kinds(events)[-1] == ("waiting" if waiting else "ended")


async def test_decisions_in_the_ledger(turns: Turns, effects: Any) -> None:
    """A decision's request_id has one effect, is answered again once the turn has gone on, and is good for no other."""
    conversation, fields = await _ask(turns, effects.path, "one", "two")
    events = [event async for event in turns.stream(**fields)]
    first, second = (event.approval_requested for event in events if event.HasField("approval_requested"))
    turn_id = fields["request_id"]
    approve: dict[str, Any] = {"turn_id": turn_id, "call_id": first.call_id, "request_id": f"a-{conversation}"}
    deny: dict[str, Any] = {
        "turn_id": turn_id,
        "call_id": second.call_id,
        "request_id": f"d-{conversation}",
        "reason": "no",
    }
    await turns("ApproveToolCall", **approve)
    answer = await refused(turns("ApproveToolCall", **{**approve, "call_id": second.call_id}))
    assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    answer = await refused(
        turns("DenyToolCall", turn_id=turn_id, call_id=first.call_id, request_id=f"a-{conversation}")
    )
    assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    await turns("DenyToolCall", **deny)
    await turns.status(turn_id, COMPLETED)
    # The calls are answered by now, and nothing waits: a decision without its row would be refused.
    assert (await refused(turns("ApproveToolCall", turn_id=turn_id, call_id=first.call_id))).code == "NOT_FOUND"
    for method, request in (("ApproveToolCall", approve), ("DenyToolCall", deny)):
        for replica in range(2):
            assert (await turns(method, replica=replica, **request)).turn.status == COMPLETED
    answer = await refused(turns("DenyToolCall", **{**deny, "reason": "another"}))
    assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    assert effects() == ["one"]


async def test_policies_in_the_ledger(turns: Turns, scripted: ScriptedModel) -> None:
    """A policy that is set again by the same request does not undo what was set since, whatever became of it all."""
    conversation = await turns.conversation()
    queue: dict[str, Any] = {
        "conversation_id": conversation,
        "policy": api.TURN_POLICY_QUEUE,
        "request_id": f"q-{conversation}",
    }
    await turns("SetTurnPolicy", **queue)
    await turns("SetTurnPolicy", conversation_id=conversation, policy=api.TURN_POLICY_REJECT)
    await turns("SetTurnPolicy", replica=1, **queue)
    answer = await refused(turns("SetTurnPolicy", **{**queue, "policy": api.TURN_POLICY_INTERRUPT}))
    assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    gate = f"gate-{conversation}"
    running: dict[str, Any] = {"conversation_id": conversation, "model": SCRIPTED, "request_id": f"t-{conversation}"}
    await turns.until("text_delta", message=said(script({"text": "one two", "pieces": 2, "gate": gate})), **running)
    answer = await refused(turns.chat("say second", conversation_id=conversation))
    assert answer.reason == "TURN_IN_PROGRESS"
    cancel: dict[str, Any] = {"turn_id": f"t-{conversation}", "request_id": f"c-{conversation}"}
    cancelled = await turns("CancelTurn", **cancel)
    assert cancelled.turn.status == turn_pb2.TURN_STATUS_CANCELLED
    scripted.open(gate)
    assert (await turns("CancelTurn", replica=1, **cancel)).turn == cancelled.turn
    ended_since = await turns.chat("say after", conversation_id=conversation)
    other = ended(ended_since).turn_id
    answer = await refused(turns("CancelTurn", turn_id=other, request_id=f"c-{conversation}"))
    assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
