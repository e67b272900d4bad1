"""Sessions and the usage ledger: counted once, listed, told to the log."""

import asyncio
import json
from typing import Any

import grpc.aio
import psycopg
import pytest

from gaggle.agent.v1 import agent_service_pb2 as api
from gaggle.agent.v1 import session_pb2
from gaggle.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from tests.agent.agents import SCRIPTED, Turns, ended, text
from tests.agent.scripted import ScriptedModel, script
from tests.conditions import eventually
from tests.conversation.talking import refused
from tests.mesh_fixture import Mesh

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("agents")]


async def _events(mesh: Mesh, turns: Turns, entity_id: str, count: int) -> list[Any]:
    """Wait until the log has so many events of an entity; gives them."""
    async with mesh.channel("audit") as channel:
        stub: Any = audit_service_pb2_grpc.AuditServiceStub(channel)
        found: list[Any] = []

        async def there() -> bool:
            request = audit_service_pb2.ListEventsRequest(
                filter=audit_service_pb2.EventFilter(entity_id=entity_id), page_size=100
            )
            try:
                response = await stub.ListEvents(request, metadata=turns.metadata, timeout=20)
            except grpc.aio.AioRpcError:
                return False
            found[:] = [one.event for one in response.entries]
            return len(found) >= count

        await eventually(there, within=30, what=f"{count} events of {entity_id}")
        return found


async def test_turns_are_counted_in_their_session(agents: Mesh, turns: Turns) -> None:
    """A session gives its turns settings and a conversation, and sums what they use; each change is told once."""
    settings = session_pb2.SessionSettings(model=SCRIPTED, system_prompt="Be brief.")
    created = await turns("CreateSession", name="Work", working_dir="/srv", settings=settings, request_id="s")
    session_id = created.session.id
    first = await turns.chat(script({"text": "a", "usage": [100, 10, 0]}), session_id=session_id)
    second = await turns.chat(script({"text": "b", "usage": [200, 20, 50]}), session_id=session_id, replica=1)
    assert first[0].started.conversation_id == second[0].started.conversation_id
    session = (await turns("GetSession", session_id=session_id, replica=1)).session
    assert session.turn_count == 2
    assert session.accumulated_usage.input_tokens == 300
    assert session.accumulated_usage.cache_read_input_tokens == 50
    assert session.accumulated_usage.model_calls == 2
    assert session.accumulated_usage.cost == pytest.approx(335e-6)
    assert session.last_usage.output_tokens == 20
    ended_session = (await turns("EndSession", session_id=session_id)).session
    assert ended_session.status == session_pb2.SESSION_STATUS_ENDED
    answer = await refused(turns.chat("say x", session_id=session_id))
    assert (answer.code, answer.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    told = await _events(agents, turns, session_id, 5)
    kinds = sorted((one.revision, one.event_type.rpartition(".")[2]) for one in told)
    assert kinds == [(1, "started"), (2, "updated"), (3, "updated"), (4, "updated"), (5, "ended")]
    assert all("Be brief" not in str(one) for one in told)
    assert _read_model(agents, turns.user) == [("Work", "ended", first[0].started.conversation_id, 2, 330)]


def _read_model(mesh: Mesh, user: str) -> list[tuple[Any, ...]]:
    """What the read model has of a user's sessions, by the query of docs/operations.md."""
    secrets: dict[str, Any] = json.loads(mesh.description.secrets_file.read_text())
    with psycopg.connect(secrets["database"]) as connection:
        return connection.execute(
            "SELECT name, status, conversation_id, (data #>> '{session,turnCount}')::bigint, "
            "(data #>> '{session,accumulatedUsage,totalTokens}')::bigint FROM goose.agent_sessions WHERE user_id = %s",
            [user],
        ).fetchall()


async def test_usage_by_day_and_model(turns: Turns) -> None:
    """The ledger has a line for each call of a model; ListUsage sums them by day and model."""
    conversation = await turns.conversation()
    await turns.chat(script({"text": "a", "usage": [7, 3, 0]}), conversation_id=conversation, model=SCRIPTED)
    await turns.chat("say b", conversation_id=conversation)
    # Not the store of one process: the other replica gives the same.
    usage = await turns("ListUsage", replica=1)
    models = {one.model: one.usage for one in usage.days}
    assert models[SCRIPTED].total_tokens == 10
    assert models["offline"].model_calls == 1
    assert not usage.next_page_token or len(usage.days) == 2
    only = await turns("ListUsage", model="offline")
    assert [one.model for one in only.days] == ["offline"]
    lines = (await turns("ListUsageEntries")).entries
    assert [one.model for one in lines] == ["offline", SCRIPTED]
    page = await turns("ListUsageEntries", page_size=1)
    rest = await turns("ListUsageEntries", page_size=1, page_token=page.next_page_token)
    assert [*page.entries, *rest.entries] == list(lines)


async def test_many_turns_at_once_are_all_counted(turns: Turns) -> None:
    """Turns of one user and session in several conversations and both replicas lose no usage to each other."""
    session_id = (await turns("CreateSession")).session.id
    conversations = await asyncio.gather(*(turns.conversation() for _ in range(12)))
    await asyncio.gather(
        *(
            turns.chat("say hi", conversation_id=one, session_id=session_id, replica=number % 2)
            for number, one in enumerate(conversations)
        )
    )
    session = (await turns("GetSession", session_id=session_id)).session
    assert (session.turn_count, session.accumulated_usage.model_calls) == (12, 12)
    usage = (await turns("ListUsage")).days[0].usage
    assert usage.model_calls == 12
    assert usage.total_tokens == session.accumulated_usage.total_tokens


async def test_sessions_are_listed(turns: Turns, stranger: Turns) -> None:
    """Sessions come newest first, in pages, by status; changes need the current etag; nobody else sees them."""
    ids = [(await turns("CreateSession", name=f"n{number}")).session.id for number in range(5)]
    await turns("EndSession", session_id=ids[1])
    listed: list[str] = []
    token = ""
    while True:
        page = await turns("ListSessions", page_size=2, page_token=token)
        listed += [one.id for one in page.sessions]
        token = page.next_page_token
        if not token:
            break
    assert listed == ids[::-1]
    active = await turns("ListSessions", status=session_pb2.SESSION_STATUS_ACTIVE)
    assert [one.id for one in active.sessions] == [ids[4], ids[3], ids[2], ids[0]]
    assert list((await stranger("ListSessions")).sessions) == []
    updated = await turns("UpdateSession", session_id=ids[0], name="new", etag="1")
    assert (updated.session.name, updated.session.etag) == ("new", "2")
    answer = await refused(turns("UpdateSession", session_id=ids[0], name="x", etag="1"))
    assert (answer.code, answer.reason) == ("ABORTED", "STALE_ETAG")
    for method in ("GetSession", "EndSession", "UpdateSession"):
        assert (await refused(stranger(method, session_id=ids[0]))).code == "NOT_FOUND"
    assert (await refused(turns("CreateSession", session_id=ids[0]))).code == "ALREADY_EXISTS"
    again = await turns("CreateSession", name="r", request_id="same")
    assert (await turns("CreateSession", name="r", request_id="same")).session.id == again.session.id
    answer = await refused(turns("CreateSession", name="other", request_id="same"))
    assert answer.reason == "REQUEST_ID_REUSED"


async def test_session_keeps_its_conversation(turns: Turns, scripted: ScriptedModel) -> None:
    """A session whose conversation is not there yet makes it; its system prompt and place reach the model."""
    settings = session_pb2.SessionSettings(model=SCRIPTED, system_prompt="Speak Latin.")
    name = f"own-{turns.user}"
    created = await turns("CreateSession", conversation_id=name, working_dir="/home", settings=settings)
    events = await turns.chat(script({"text": "salve"}, mark=name), session_id=created.session.id)
    assert (events[0].started.conversation_id, text(events)) == (name, "salve")
    assert ended(events).usage.model_calls == 1
    (asked,) = scripted.asked(name)
    assert asked["messages"][0] == {"role": "system", "content": "Speak Latin.\n\nThe working directory is /home."}


def _line(number: int, day: int, tokens: int) -> session_pb2.UsageEntry:
    line = session_pb2.UsageEntry(source_id=number, model="tern", cost_source="estimated")
    line.time.FromSeconds(1_760_000_000 + day * 86_400)
    line.usage.input_tokens = tokens
    line.usage.cost = 0.5
    return line


async def test_usage_of_other_programs_is_entered_once(turns: Turns) -> None:
    """Another program's ledger comes over line by line, each once however often it is sent, into its own days."""
    session = (await turns("CreateSession", session_id=f"{turns.user}.s", extra_json='{"a": 1}')).session
    lines = [_line(1, 0, 10), _line(2, 0, 20), _line(7, 30, 40)]
    sums = session_pb2.UsageTotals(input_tokens=70, cost=1.5, model_calls=3)
    fields: dict[str, Any] = {"session_id": session.id, "entries": lines, "accumulated_usage": sums}
    first = (await turns("ImportUsage", etag=session.etag, request_id="i", **fields)).session
    assert (first.usage_source_id, first.accumulated_usage) == (7, sums)
    again = (await turns("ImportUsage", etag=session.etag, request_id="i", replica=1, **fields)).session
    assert again == first
    assert (await turns("ImportUsage", **fields)).session.usage_source_id == 7
    stale = await refused(turns("ImportUsage", etag=session.etag, **fields))
    assert (stale.code, stale.reason) == ("ABORTED", "STALE_ETAG")
    more = await turns("ImportUsage", session_id=session.id, entries=[_line(7, 30, 40), _line(300, 30, 1)])
    assert more.session.accumulated_usage == sums
    entries = (await turns("ListUsageEntries", day="2025-10-09")).entries
    assert [(one.source_id, one.usage.input_tokens, one.session_id) for one in entries] == [
        (2, 20, session.id),
        (1, 10, session.id),
    ]
    usage = await turns("ListUsage", first_day="2025-10-01", last_day="2025-12-01")
    assert [(one.day, one.usage.input_tokens) for one in usage.days] == [("2025-11-08", 41), ("2025-10-09", 30)]
    many = [_line(1000 + number, 31, 1) for number in range(500)]
    await turns("ImportUsage", session_id=session.id, entries=many)
    page = await turns("ListUsageEntries", day="2025-11-09", page_size=1000)
    assert [one.source_id for one in page.entries] == [line.source_id for line in reversed(many)]
    assert (await turns("GetSession", session_id=session.id)).session.extra_json == '{"a": 1}'
    assert (await turns("ListSessions")).sessions[0].extra_json == ""


REFUSED_IMPORTS: dict[str, tuple[dict[str, Any], str]] = {
    "no number": ({"entries": [_line(0, 0, 1)]}, "entries[0].source_id"),
    "not ascending": ({"entries": [_line(2, 0, 1), _line(2, 0, 1)]}, "entries[1].source_id"),
    "no time": ({"entries": [session_pb2.UsageEntry(source_id=1)]}, "entries[0].time"),
    "in the future": ({"entries": [_line(1, 100_000, 1)]}, "entries[0].time"),
    "too many days": ({"entries": [_line(day + 1, day, 1) for day in range(41)]}, "entries"),
    "too many lines": ({"entries": [_line(number, 0, 1) for number in range(1, 502)]}, "entries"),
    "of a turn": (
        {"entries": [session_pb2.UsageEntry(source_id=1, turn_id="t", time=_line(1, 0, 1).time)]},
        "entries[0].turn_id",
    ),
}


@pytest.mark.parametrize(("fields", "field"), REFUSED_IMPORTS.values(), ids=REFUSED_IMPORTS)
async def test_bad_imports_are_refused(turns: Turns, fields: dict[str, Any], field: str) -> None:
    """Lines that can't be entered are refused by name, and nothing of them is entered."""
    answer = await refused(turns("ImportUsage", session_id="any", **fields))
    assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", (field,))


async def test_sessions_are_deleted(turns: Turns, stranger: Turns) -> None:
    """A deleted session is gone from every answer; its id may be taken at once, and its lines are not entered again."""
    name = f"{turns.user}.d"
    kept = (await turns("CreateSession")).session
    session = (await turns("CreateSession", session_id=name)).session
    lines = [_line(1, 0, 10)]
    session = (await turns("ImportUsage", session_id=name, entries=lines)).session
    assert (await refused(stranger("DeleteSession", session_id=name))).code == "NOT_FOUND"
    stale = await refused(turns("DeleteSession", session_id=name, etag="1"))
    assert (stale.code, stale.reason) == ("ABORTED", "STALE_ETAG")
    for _ in range(2):
        await turns("DeleteSession", session_id=name, etag=session.etag, request_id="d")
    for method in ("GetSession", "EndSession", "UpdateSession", "ImportUsage"):
        assert (await refused(turns(method, session_id=name))).code == "NOT_FOUND"
    assert (await refused(turns.chat("say x", session_id=name))).code == "NOT_FOUND"
    assert [one.id for one in (await turns("ListSessions")).sessions] == [kept.id]
    await turns("CreateSession", session_id=name, name="second life")
    await turns("ImportUsage", session_id=name, entries=[*lines, _line(2, 0, 5)])
    entries = (await turns("ListUsageEntries", day="2025-10-09", session_id=name)).entries
    assert [one.source_id for one in entries] == [2, 1]
    assert len((await turns("ListSessions")).sessions) == 2
    bad = await refused(turns("CreateSession", extra_json="[]"))
    assert (bad.code, bad.fields) == ("INVALID_ARGUMENT", ("extra_json",))


async def test_models(turns: Turns) -> None:
    """ListModels names the default model first, and what endpoints are known to have."""
    models = (await turns("ListModels")).models
    assert models[0].name == "offline"
    assert {"scripted:one", "scripted:small"} <= {one.name for one in models}
    answer = await refused(turns.chat("x", model="nowhere:model", options=api.ChatOptions()))
    assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", ("model",))
