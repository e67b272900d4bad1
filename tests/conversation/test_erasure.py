"""A user's right to be forgotten."""

import asyncio

import grpc.aio
import psycopg
import pytest

from tests.conditions import eventually
from tests.conversation.talking import Talker, refused
from tests.mesh_fixture import Mesh

pytestmark = pytest.mark.mesh

_WITHIN = 60.0
_ERASED = 3


@pytest.fixture
def admin(mesh: Mesh, channel: grpc.aio.Channel, user: str) -> Talker:
    """Someone with the role."""
    return Talker(channel, mesh.metadata(f"{user}-admin", roles=["admin"]))


async def _erased(by: Talker, **fields: str) -> dict[str, int]:
    """Receipts of the services, once those of both that hold anything are there: items by service."""

    async def reported() -> dict[str, int]:
        answer = await by("GetErasure", **fields)
        receipts = {one.service: one.items for one in answer.receipts}
        return receipts if {"conversation", "audit"} <= set(receipts) else {}

    return await eventually(reported, within=_WITHIN, what="receipts of conversation and audit")


async def test_an_erasure_leaves_nothing(mesh: Mesh, talker: Talker, stranger: Talker, user: str) -> None:
    """A user's own EraseUser empties every service, receipts say so, nothing is made for the user again."""
    secret = f"secret-of-{user}"
    first = await talker.create(*(f"{secret} {number} {'x' * 200}" for number in range(200)), title=secret)
    await talker("ForkConversation", conversation_id=first)
    await talker.create(secret, metadata={"k": secret})
    await stranger.create("kept", conversation_id="kept")
    erased = await talker("EraseUser")
    assert await talker("EraseUser") == erased
    receipts = await _erased(talker)
    assert receipts["conversation"] == _ERASED
    answer = await talker("GetErasure")
    assert answer.erasure_id == erased.erasure_id
    assert answer.expire_time.ToDatetime() > answer.request_time.ToDatetime()
    assert not (await talker("ListConversations")).conversations
    assert (await refused(talker.get(first))).code == "NOT_FOUND"
    assert not (await talker("SearchMessages", query="secret")).hits
    for call in (talker("CreateConversation"), talker("CreateConversation", conversation_id="again")):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "USER_ERASED")
    assert len(await stranger.history("kept")) == 1

    async def forgotten() -> bool:
        return await asyncio.to_thread(_traces, mesh, secret) == []

    await eventually(forgotten, within=_WITHIN, what=f"no trace in {_traces(mesh, secret)}")


async def test_an_admin_may_erase_anyone(talker: Talker, admin: Talker, user: str) -> None:
    """An admin erases a user and reads the receipts; the user's conversations are gone."""
    conversation_id = await talker.create("one")
    await admin("EraseUser", user_id=user)
    assert (await _erased(admin, user_id=user))["conversation"] == 1
    assert (await refused(talker.get(conversation_id))).code == "NOT_FOUND"


async def test_nobody_else_may(talker: Talker, stranger: Talker, user: str) -> None:
    """A user who names another is PERMISSION_DENIED, and nothing is erased."""
    conversation_id = await talker.create("one")
    for method in ("EraseUser", "GetErasure"):
        answer = await refused(stranger(method, user_id=user))
        assert (answer.code, answer.reason, answer.facts) == ("PERMISSION_DENIED", "ROLE_REQUIRED", {"role": "admin"})
    assert (await refused(talker("GetErasure"))).code == "NOT_FOUND"
    assert await talker.history(conversation_id) == [(1, "one")]


def _traces(mesh: Mesh, text: str) -> list[str]:
    """Tables of the product that hold a text in any row, event rows apart, which run out by themselves."""
    with psycopg.connect(mesh.description.database_url) as connection:
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'goose'"
        ).fetchall()
        found = []
        for (table,) in tables:
            # Bytes are compared in hexadecimal, as a row's text shows them.
            query = f"SELECT 1 FROM {table} AS t WHERE (t::text LIKE %s OR t::text LIKE %s)"  # noqa: S608
            if table == "goose.dapr_state":
                query += " AND key NOT LIKE '%%||outbox:%%'"
            if connection.execute(query.encode(), [f"%{text}%", f"%{text.encode().hex()}%"]).fetchone():
                found.append(table)
        return found
