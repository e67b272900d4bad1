"""A user who is erased leaves nothing in the agent's state, and nothing new is kept for them."""

import pytest

from gaggle.conversation.v1 import conversation_service_pb2 as conversation_api
from tests.agent.agents import SCRIPTED, Turns, said
from tests.agent.scripted import script
from tests.conditions import eventually
from tests.conversation.talking import refused

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("agents")]


async def test_erasure(turns: Turns) -> None:
    """Sessions, turns that ended or run, and the ledger are gone; the service's receipt says so."""
    session = (await turns("CreateSession", name="private")).session
    await turns.chat("say something", session_id=session.id, request_id="done")
    conversation = await turns.conversation()
    gated = said(script({"text": "half a story", "pieces": 2, "gate": f"never-{conversation}"}))
    await turns.until("text_delta", conversation_id=conversation, model=SCRIPTED, request_id="running", message=gated)
    erase = conversation_api.EraseUserRequest()
    await turns.conversations.EraseUser(erase, metadata=turns.metadata, timeout=20)

    async def reported() -> bool:
        request = conversation_api.GetErasureRequest()
        erasure = await turns.conversations.GetErasure(request, metadata=turns.metadata, timeout=20)
        return "agent" in {one.service for one in erasure.receipts}

    await eventually(reported, within=30, what="the agent's receipt")
    for turn_id in ("done", "running"):
        assert (await refused(turns("GetTurn", turn_id=turn_id))).code == "NOT_FOUND"
    assert (await refused(turns("GetSession", session_id=session.id))).code == "NOT_FOUND"
    assert list((await turns("ListUsage")).days) == []
    answer = await refused(turns("CreateSession"))
    assert (answer.code, answer.reason) == ("FAILED_PRECONDITION", "USER_ERASED")
    answer = await refused(turns.chat("say x"))
    assert (answer.code, answer.reason) == ("FAILED_PRECONDITION", "USER_ERASED")
