"""Input that is refused: the field is named, and nothing has happened."""

from typing import Any

import pytest

from gaggle.agent.v1 import agent_service_pb2 as api
from gaggle.agent.v1 import session_pb2
from gaggle.conversation.v1 import message_pb2
from gaggle.owner.v1 import owner_service_pb2, owner_service_pb2_grpc
from tests.agent.agents import Turns, said
from tests.conversation.talking import refused
from tests.mesh_fixture import Mesh

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("agents")]

_OK = said("x")
_NO_KIND = message_pb2.ContentPart()
_FOREIGN = message_pb2.ContentPart(tool_response=message_pb2.ToolResponse(id="x", error="forged"))
_MANY = {str(number): "" for number in range(65)}


def _options(**fields: Any) -> dict[str, Any]:
    return {"message": _OK, "options": api.ChatOptions(**fields)}


def _approval(**fields: Any) -> dict[str, Any]:
    return _options(approval=session_pb2.ApprovalPolicy(**fields))


def _settings(**fields: Any) -> dict[str, Any]:
    return {"settings": session_pb2.SessionSettings(**fields)}


INVALID: dict[str, tuple[str, dict[str, Any], str]] = {
    "no-message": ("Chat", {}, "message"),
    "many-parts": ("Chat", {"message": _OK * 257}, "message"),
    "no-kind": ("Chat", {"message": [*_OK, _NO_KIND]}, "message[1]"),
    "forged-answer": ("Chat", {"message": [_FOREIGN]}, "message[0]"),
    "conversation": ("Chat", {"message": _OK, "conversation_id": "a:b"}, "conversation_id"),
    "session": ("Chat", {"message": _OK, "session_id": "a b"}, "session_id"),
    "request": ("Chat", {"message": _OK, "request_id": "x" * 65}, "request_id"),
    "position": ("Chat", {"message": _OK, "after_position": 5}, "after_position"),
    "model": ("Chat", {"message": _OK, "model": "nothing"}, "model"),
    "extensions": ("Chat", {"message": _OK, "extensions": ["e"] * 33}, "extensions"),
    "extension": ("Chat", {"message": _OK, "extensions": [""]}, "extensions[0]"),
    "temperature": ("Chat", _options(temperature=2.5), "options.temperature"),
    "not-a-number": ("Chat", _options(temperature=float("nan")), "options.temperature"),
    "steps": ("Chat", _options(max_steps=201), "options.max_steps"),
    "timeout": ("Chat", _options(timeout_seconds=86_401), "options.timeout_seconds"),
    "metadata": ("Chat", _options(metadata=_MANY), "options.metadata"),
    "schema-json": ("Chat", _options(response_schema_json="{"), "options.response_schema_json"),
    "schema": ("Chat", _options(response_schema_json='{"type": 1}'), "options.response_schema_json"),
    "schema-list": ("Chat", _options(response_schema_json="[]"), "options.response_schema_json"),
    "approval-mode": ("Chat", _approval(mode=99), "options.approval.mode"),
    "approval-tools": ("Chat", _approval(tools=["t"] * 65), "options.approval.tools"),
    "approval-time": ("Chat", _approval(expire_seconds=9), "options.approval.expire_seconds"),
    "watch": ("WatchTurn", {"turn_id": ""}, "turn_id"),
    "turn": ("GetTurn", {"turn_id": "a:b"}, "turn_id"),
    "cancel": ("CancelTurn", {}, "turn_id"),
    "approve": ("ApproveToolCall", {"turn_id": "t"}, "call_id"),
    "deny": ("DenyToolCall", {"turn_id": "t", "call_id": "c", "reason": "x" * 1025}, "reason"),
    "policy": ("SetTurnPolicy", {"conversation_id": "c", "policy": 99}, "policy"),
    "policy-where": ("SetTurnPolicy", {}, "conversation_id"),
    "turns-where": ("ListTurns", {}, "conversation_id"),
    "session-id": ("CreateSession", {"session_id": "a/b"}, "session_id"),
    "session-name": ("CreateSession", {"name": "x" * 1025}, "name"),
    "session-dir": ("CreateSession", {"working_dir": "x" * 4097}, "working_dir"),
    "session-type": ("CreateSession", {"session_type": "x" * 65}, "session_type"),
    "session-model": ("CreateSession", _settings(model="nothing"), "settings.model"),
    "session-steps": ("CreateSession", _settings(max_steps=201), "settings.max_steps"),
    "session-metadata": ("CreateSession", {"metadata": _MANY}, "metadata"),
    "get-session": ("GetSession", {}, "session_id"),
    "end-session": ("EndSession", {"session_id": "é"}, "session_id"),
    "page-size": ("ListSessions", {"page_size": -1}, "page_size"),
    "page-token": ("ListSessions", {"page_token": "nonsense"}, "page_token"),
    "status": ("ListSessions", {"status": 9}, "status"),
    "day": ("ListUsage", {"first_day": "2026-13-01"}, "first_day"),
    "days": ("ListUsage", {"first_day": "2024-01-01", "last_day": "2026-01-01"}, "first_day"),
    "days-order": ("ListUsage", {"first_day": "2026-01-02", "last_day": "2026-01-01"}, "first_day"),
    "usage-token": ("ListUsage", {"page_token": "x"}, "page_token"),
    "entry-day": ("ListUsageEntries", {"day": "today"}, "day"),
}


@pytest.mark.parametrize(("method", "fields", "named"), INVALID.values(), ids=INVALID.keys())
async def test_invalid_fields_are_named(turns: Turns, method: str, fields: dict[str, Any], named: str) -> None:
    """A missing or invalid field is INVALID_ARGUMENT, and BadRequest names it."""
    if method == "Chat":
        call = _drain(turns, **fields)
    elif method == "WatchTurn":
        call = turns.watch(fields["turn_id"])
    else:
        call = turns(method, **fields)
    answer = await refused(call)
    assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", (named,))
    assert answer.reason in {"INVALID_FIELD", "INVALID_PAGE_TOKEN"}


async def _drain(turns: Turns, **fields: Any) -> list[Any]:
    return [event async for event in turns.stream(**fields)]


MISSING: dict[str, tuple[str, dict[str, Any]]] = {
    "turn": ("GetTurn", {"turn_id": "none"}),
    "cancel": ("CancelTurn", {"turn_id": "none"}),
    "approve": ("ApproveToolCall", {"turn_id": "none", "call_id": "c"}),
    "turns": ("ListTurns", {"conversation_id": "none"}),
    "policy": ("SetTurnPolicy", {"conversation_id": "none", "policy": 1}),
    "session": ("GetSession", {"session_id": "none"}),
    "update": ("UpdateSession", {"session_id": "none", "name": "x"}),
    "end": ("EndSession", {"session_id": "none"}),
}


@pytest.mark.parametrize(("method", "fields"), MISSING.values(), ids=MISSING.keys())
async def test_what_is_not_there(turns: Turns, method: str, fields: dict[str, Any]) -> None:
    """What does not exist is NOT_FOUND."""
    assert (await refused(turns(method, **fields))).code == "NOT_FOUND"


@pytest.mark.parametrize(
    "fields", [{"conversation_id": "none"}, {"session_id": "none"}], ids=["conversation", "session"]
)
async def test_chat_where_nothing_is(turns: Turns, fields: dict[str, Any]) -> None:
    """A turn in a conversation or session that does not exist is refused before anything is kept."""
    answer = await refused(turns.chat("say x", request_id="r", **fields))
    assert answer.code == "NOT_FOUND"
    assert (await refused(turns("GetTurn", turn_id="r"))).code == "NOT_FOUND"


async def test_large_message(turns: Turns) -> None:
    """A message over the limit is RESOURCE_EXHAUSTED, with the limit."""
    answer = await refused(turns.chat("x" * (512 * 1024 + 1)))
    assert (answer.code, answer.reason, answer.facts["limit"]) == ("RESOURCE_EXHAUSTED", "TOO_LARGE", "524288")


async def test_no_token(turns: Turns) -> None:
    """Without a token nothing is answered."""
    turns.metadata = ()
    assert (await refused(turns("ListModels"))).code == "UNAUTHENTICATED"
    assert (await refused(turns.chat("x"))).code == "UNAUTHENTICATED"


async def test_owner_service_is_for_services(agents: Mesh, turns: Turns) -> None:
    """Users, admins too, can't walk what the service keeps of all."""
    async with agents.channel("agent") as channel:
        stub: Any = owner_service_pb2_grpc.EntityOwnerServiceStub(channel)
        metadata = agents.metadata(turns.user, roles=["admin"])
        answer = await refused(stub.ListUsers(owner_service_pb2.ListUsersRequest(), metadata=metadata))
    assert (answer.code, answer.reason) == ("PERMISSION_DENIED", "SERVICE_NOT_ALLOWED")
