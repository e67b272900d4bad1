"""The audit service on a real mesh: daprd, Redis and PostgreSQL."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.mesh.data import PROJECT_ROOT
from gaggle.agent.v1 import agent_service_pb2, agent_service_pb2_grpc
from gaggle.audit.v1 import audit_service_pb2 as api
from gaggle.audit.v1 import audit_service_pb2_grpc
from gaggle.common.v1 import event_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as conversations
from gaggle.conversation.v1 import conversation_service_pb2_grpc, message_pb2
from gaggle.extension.v1 import extension_pb2, extension_service_pb2, extension_service_pb2_grpc
from gaggle.recipe.v1 import recipe_service_pb2, recipe_service_pb2_grpc
from services.runtime.dapr import dapr_pb2_grpc, pubsub_pb2
from tests.audit.database import Database
from tests.cli.command import gaggle
from tests.conditions import eventually
from tests.mesh_fixture import Mesh

pytestmark = pytest.mark.mesh
_WITHIN = 30.0
_TOOL = "goose.agent.tool.executed"


@pytest.fixture
async def audit(mesh: Mesh) -> AsyncIterator[Any]:
    """The audit service's stub, on its own port."""
    async with mesh.channel("audit") as channel:
        await _ready(channel, api.DESCRIPTOR.services_by_name["AuditService"].full_name)
        yield audit_service_pb2_grpc.AuditServiceStub(channel)


@pytest.fixture
async def conversation(mesh: Mesh) -> AsyncIterator[Any]:
    """The conversation service's stub, on its own port."""
    async with mesh.channel("conversation") as channel:
        await _ready(channel, conversations.DESCRIPTOR.services_by_name["ConversationService"].full_name)
        yield conversation_service_pb2_grpc.ConversationServiceStub(channel)


async def _ready(channel: grpc.aio.Channel, service: str) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)

    async def serving() -> bool:
        try:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    await eventually(serving, within=_WITHIN, what=f"{service} taking calls")


@pytest.fixture
def readmodel(mesh: Mesh) -> Database:
    """The mesh's database."""
    return Database(mesh.description.database_url)


async def _publish_raw(mesh: Mesh, topic: str, data: bytes, **metadata: str) -> None:
    """Publish as any application does that has a sidecar."""
    async with mesh.sidecar("agent") as channel:
        stub: Any = dapr_pb2_grpc.DaprStub(channel)  # type: ignore[no-untyped-call]
        await stub.PublishEvent(
            pubsub_pb2.PublishEventRequest(
                pubsub_name="pubsub", topic=topic, data=data, data_content_type="application/json", metadata=metadata
            )
        )


async def _events(audit: Any, mesh: Mesh, user: str, **event_filter: Any) -> list[api.LogEntry]:
    response = await audit.ListEvents(
        api.ListEventsRequest(filter=api.EventFilter(**event_filter)), metadata=mesh.metadata(user)
    )
    return list(response.entries)


async def _talk(conversation: Any, mesh: Mesh, user: str, *texts: str, title: str = "") -> str:
    metadata = mesh.metadata(user)
    created = await conversation.CreateConversation(
        conversations.CreateConversationRequest(title=title), metadata=metadata
    )
    for text in texts:
        message = message_pb2.Message(
            role=message_pb2.ROLE_USER,
            content=[message_pb2.ContentPart(text=message_pb2.TextContent(text=text))],
        )
        await conversation.AppendMessages(
            conversations.AppendMessagesRequest(conversation_id=created.conversation.id, messages=[message]),
            metadata=metadata,
        )
    return str(created.conversation.id)


async def test_duplicates_are_logged_once(mesh: Mesh, audit: Any, user: str) -> None:
    """An event that is delivered five times stands in the log once."""
    body = json.dumps({"eventId": f"e-{user}", "eventType": _TOOL, "userId": user, "data": {"tool": "ls"}}).encode()
    last = json.dumps({"eventId": f"l-{user}", "eventType": _TOOL, "userId": user}).encode()
    for _ in range(5):
        await _publish_raw(mesh, _TOOL, body)
    await _publish_raw(mesh, _TOOL, last)

    async def both() -> bool:
        return {one.event.event_id for one in await _events(audit, mesh, user)} == {f"e-{user}", f"l-{user}"}

    await eventually(both, within=_WITHIN, what="both events in the log")
    entries = await _events(audit, mesh, user)
    assert len(entries) == 2
    assert dict(entries[0].event.data) == {"tool": "ls"} or dict(entries[1].event.data) == {"tool": "ls"}


async def test_each_change_has_its_row(mesh: Mesh, audit: Any, conversation: Any, user: str) -> None:
    """What the conversation service commits stands in the log once, with consecutive revisions."""
    conversation_id = await _talk(conversation, mesh, user, "one", "two", "three")

    async def four() -> list[api.LogEntry] | None:
        entries = await _events(audit, mesh, user, entity_id=conversation_id)
        return entries if len(entries) >= 4 else None

    entries = await eventually(four, within=_WITHIN, what="four events")
    assert sorted(one.event.revision for one in entries) == [1, 2, 3, 4]
    assert {one.event.event_type for one in entries} == {
        "goose.conversation.created",
        "goose.agent.message.received",
    }


async def test_a_poisonous_event_is_kept_apart(mesh: Mesh, audit: Any, user: str) -> None:
    """An event that can't be read becomes a dead letter with its reason; the ones around it are logged."""
    admin = mesh.metadata(user, roles=["admin"])
    good = json.dumps({"eventId": f"g-{user}", "eventType": _TOOL, "userId": user}).encode()
    bad = json.dumps({"eventId": f"b-{user}", "eventType": _TOOL, "userId": user, "revision": "soon"}).encode()
    await _publish_raw(mesh, _TOOL, bad, **{"cloudevent.id": f"ce-{user}"})
    await _publish_raw(mesh, _TOOL, good)

    async def kept() -> api.DeadLetter | None:
        token = ""
        while True:
            page = await audit.ListDeadLetters(api.ListDeadLettersRequest(page_token=token), metadata=admin)
            found = [one for one in page.dead_letters if one.event_id == f"ce-{user}"]
            token = page.next_page_token
            if found or not token:
                return found[0] if found else None

    letter = await eventually(kept, within=_WITHIN, what="the dead letter")
    assert letter.topic == _TOOL
    assert letter.error.startswith("revision:")
    assert json.loads(letter.payload) == json.loads(bad)

    async def logged() -> bool:
        return [one.event.event_id for one in await _events(audit, mesh, user)] == [f"g-{user}"]

    await eventually(logged, within=_WITHIN, what="the good event")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await audit.ListDeadLetters(api.ListDeadLettersRequest(), metadata=mesh.metadata(user))
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_users_see_their_own(mesh: Mesh, audit: Any, user: str) -> None:
    """A user gets no event of another, whatever the filter names; an admin gets both."""
    other = f"{user}-other"
    for whose in (user, other):
        event = event_pb2.Event(event_type=_TOOL, entity_type="tool", entity_id=whose)
        await audit.PublishEvent(api.PublishEventRequest(event=event), metadata=mesh.metadata(whose))
    admin = mesh.metadata(user, roles=["admin"])

    async def of(whose: str) -> list[api.LogEntry]:
        asked = api.ListEventsRequest(filter=api.EventFilter(user_id=whose))
        return list((await audit.ListEvents(asked, metadata=admin)).entries)

    async def both() -> bool:
        return bool(await of(user) and await of(other))

    await eventually(both, within=_WITHIN, what="both users' events")
    assert {one.event.user_id for one in await _events(audit, mesh, user)} == {user}
    assert await _events(audit, mesh, user, user_id=other) == []
    counted = await audit.CountEvents(
        api.CountEventsRequest(filter=api.EventFilter(user_id=other)), metadata=mesh.metadata(user)
    )
    assert counted.total == 0


async def test_counts_by_type_and_hour(mesh: Mesh, audit: Any, user: str) -> None:
    """CountEvents gives the caller's events by type, and by type and hour in UTC."""
    metadata = mesh.metadata(user)
    for topic, hour, times in ((_TOOL, 10, 3), (_TOOL, 11, 1), ("goose.extension.loaded", 10, 2)):
        for n in range(times):
            event = event_pb2.Event(
                event_id=f"{n}-{hour}-{topic.rpartition('.')[2]}",
                event_type=topic,
                timestamp=Timestamp(seconds=hour * 3600 + n),
            )
            await audit.PublishEvent(api.PublishEventRequest(event=event), metadata=metadata)

    async def six() -> bool:
        return bool((await audit.CountEvents(api.CountEventsRequest(), metadata=metadata)).total == 6)

    await eventually(six, within=_WITHIN, what="six events")
    by_type = await audit.CountEvents(api.CountEventsRequest(by=api.COUNT_BY_EVENT_TYPE), metadata=metadata)
    assert {one.key: one.count for one in by_type.counts} == {_TOOL: 4, "goose.extension.loaded": 2}
    by_hour = await audit.CountEvents(api.CountEventsRequest(by=api.COUNT_BY_HOUR), metadata=metadata)
    assert [(one.key, one.hour.seconds // 3600, one.count) for one in by_hour.counts] == [
        (_TOOL, 10, 3),
        (_TOOL, 11, 1),
        ("goose.extension.loaded", 10, 2),
    ]


async def test_watching_goes_on_without_gap(mesh: Mesh, audit: Any, user: str) -> None:
    """A watcher gets history, then what comes; one that resumes at its last position misses and repeats nothing."""
    metadata = mesh.metadata(user)

    async def publish(event_id: str) -> None:
        event = event_pb2.Event(event_id=event_id, event_type=_TOOL)
        await audit.PublishEvent(api.PublishEventRequest(event=event), metadata=metadata)

    async def read(after: int, count: int) -> tuple[list[str], int]:
        stream = audit.WatchEvents(api.WatchEventsRequest(after_position=after), metadata=metadata, timeout=_WITHIN)
        seen: list[str] = []
        position = after
        async for response in stream:
            seen += [one.event.event_id for one in response.entries]
            position = response.position
            if len(seen) >= count:
                break
        stream.cancel()
        return seen, position

    await publish("one")
    reading = asyncio.create_task(read(0, 2))
    await publish("two")
    seen, position = await reading
    assert sorted(seen) == ["one", "two"]
    resumed = asyncio.create_task(read(position, 1))
    await publish("three")
    assert (await resumed)[0] == ["three"]


async def test_search_and_rebuild(mesh: Mesh, audit: Any, conversation: Any, user: str, readmodel: Database) -> None:
    """Messages are found by their words, by their user alone; a lost read model is made again from the owner."""
    metadata = mesh.metadata(user)
    conversation_id = await _talk(
        conversation, mesh, user, "the geese were <b>flying</b> south", "something else", title="birds"
    )

    async def found(query: str, whose: str) -> list[api.SearchHit]:
        response = await audit.Search(api.SearchRequest(query=query), metadata=mesh.metadata(whose))
        return list(response.hits)

    async def one_hit() -> list[api.SearchHit]:
        return await found("fly geese", user)

    (hit,) = await eventually(one_hit, within=_WITHIN, what="the message found")
    assert (hit.conversation_id, hit.sequence) == (conversation_id, 1)
    assert hit.snippet == "the <b>geese</b> were &lt;b&gt;<b>flying</b>&lt;/b&gt; south"
    assert await found("fly geese", f"{user}-other") == []
    assert await found("geese -flying", user) == []

    readmodel.run("DELETE FROM goose.conversations WHERE user_id = %s", [user])
    assert await found("fly geese", user) == []
    stream = audit.Rebuild(api.RebuildRequest(user_id=user), metadata=mesh.metadata(user, roles=["admin"]))
    last = [response async for response in stream][-1]
    assert (last.users, last.conversations, last.messages, last.done) == (1, 1, 2, True)
    assert len(await found("fly geese", user)) == 1
    listed = await audit.QueryConversations(api.QueryConversationsRequest(), metadata=metadata)
    assert [(one.id, one.title, one.message_count) for one in listed.conversations] == [(conversation_id, "birds", 2)]


async def test_deleted_conversations_are_not_found(mesh: Mesh, audit: Any, conversation: Any, user: str) -> None:
    """Once a conversation is deleted, search and listing know nothing of it."""
    metadata = mesh.metadata(user)
    conversation_id = await _talk(conversation, mesh, user, "ephemeral")

    async def hits() -> int:
        return len((await audit.Search(api.SearchRequest(query="ephemeral"), metadata=metadata)).hits)

    async def found() -> bool:
        return await hits() == 1

    async def gone() -> bool:
        listed = await audit.QueryConversations(api.QueryConversationsRequest(), metadata=metadata)
        return await hits() == 0 and not listed.conversations

    await eventually(found, within=_WITHIN, what="the message found")
    await conversation.DeleteConversation(
        conversations.DeleteConversationRequest(conversation_id=conversation_id), metadata=metadata
    )
    await eventually(gone, within=_WITHIN, what="nothing found")


async def test_what_is_no_event_at_all_is_kept(mesh: Mesh, audit: Any, user: str) -> None:
    """A broker message that is not even a CloudEvent becomes a dead letter, byte for byte."""
    garbage = f"{user} ".encode() + b"\x00\xff{"
    async with mesh.sidecar("agent") as channel:
        sidecar: Any = dapr_pb2_grpc.DaprStub(channel)  # type: ignore[no-untyped-call]
        await sidecar.PublishEvent(
            pubsub_pb2.PublishEventRequest(
                pubsub_name="pubsub",
                topic=_TOOL,
                data=garbage,
                data_content_type="application/octet-stream",
                metadata={"rawPayload": "true"},
            )
        )

    async def kept() -> bool:
        page = await audit.ListDeadLetters(
            api.ListDeadLettersRequest(page_size=1000), metadata=mesh.metadata("admin", roles=["admin"])
        )
        return garbage in {one.payload for one in page.dead_letters}

    await eventually(kept, within=_WITHIN, what="the dead letter")


async def test_an_erasure_is_reported(mesh: Mesh, audit: Any, conversation: Any, user: str) -> None:
    """After EraseUser the read model has nothing of the user, the log no payload, and audit's receipt is there."""
    metadata = mesh.metadata(user)
    await _talk(conversation, mesh, user, "a secret", title="secret")

    async def hits() -> int:
        return len((await audit.Search(api.SearchRequest(query="secret"), metadata=metadata)).hits)

    async def found() -> bool:
        return await hits() == 1

    await eventually(found, within=_WITHIN, what="the message found")
    await conversation.EraseUser(conversations.EraseUserRequest(), metadata=metadata)

    async def reported() -> bool:
        erasure = await conversation.GetErasure(conversations.GetErasureRequest(), metadata=metadata)
        return {one.service for one in erasure.receipts} >= {"audit", "conversation"}

    await eventually(reported, within=_WITHIN, what="the receipts of audit and conversation")
    assert await hits() == 0
    entries = await _events(audit, mesh, user, entity_type="conversation")
    assert entries
    assert not any(one.event.data for one in entries)


async def test_what_a_broker_lost_is_published_again(
    private_mesh: Callable[..., Mesh], monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    """Events that never arrived are found by comparing revisions, and come into the log after all."""
    monkeypatch.setenv("GAGGLE_RECONCILE_INTERVAL_SECONDS", "1")
    monkeypatch.setenv("GAGGLE_RECONCILE_GRACE_SECONDS", "0.5")
    mesh = await asyncio.to_thread(private_mesh, only=["conversation", "audit"])
    readmodel = Database(mesh.description.database_url)
    async with mesh.channel("conversation") as talking, mesh.channel("audit") as auditing:
        await _ready(talking, conversations.DESCRIPTOR.services_by_name["ConversationService"].full_name)
        await _ready(auditing, api.DESCRIPTOR.services_by_name["AuditService"].full_name)
        conversation: Any = conversation_service_pb2_grpc.ConversationServiceStub(talking)
        audit: Any = audit_service_pb2_grpc.AuditServiceStub(auditing)
        await _talk(conversation, mesh, user, "one", "two", "three")

        async def revisions() -> list[int]:
            return sorted(one.event.revision for one in await _events(audit, mesh, user))

        async def complete() -> bool:
            return await revisions() == [1, 2, 3, 4]

        await eventually(complete, within=_WITHIN, what="all four events")
        # As if the second and the last had never been delivered.
        readmodel.run("DELETE FROM goose.events WHERE user_id = %s AND revision IN (2, 4)", [user])
        readmodel.run("UPDATE goose.revisions SET seen = '{[1,2),[3,4)}' WHERE user_id = %s", [user])
        await eventually(complete, within=_WITHIN, what="the lost events")


async def test_entities_are_made_again(mesh: Mesh, audit: Any, user: str, readmodel: Database) -> None:
    """A rebuild brings back lost rows of recipes, extensions and sessions, mends false ones, and takes away others."""
    metadata = mesh.metadata(user)
    async with mesh.channel("extension") as extension, mesh.channel("recipe") as recipe, mesh.channel("agent") as agent:
        config = extension_pb2.ExtensionConfig(name="clock", stdio=extension_pb2.StdioConfig(cmd="not-run"))
        register = extension_service_pb2.RegisterExtensionRequest(config=config)
        stub: Any = extension_service_pb2_grpc.ExtensionServiceStub(extension)
        await stub.RegisterExtension(register, metadata=metadata)
        content = "title: T\ndescription: d\nprompt: say x\n"
        taken = recipe_service_pb2.ImportRecipeRequest(content=content)
        stub = recipe_service_pb2_grpc.RecipeServiceStub(recipe)
        await stub.ImportRecipe(taken, metadata=metadata)
        stub = agent_service_pb2_grpc.AgentServiceStub(agent)
        session = agent_service_pb2.CreateSessionRequest(name="S", conversation_id=f"{user}.c")
        await stub.CreateSession(session, metadata=metadata)
    tables = ("extensions", "recipes", "agent_sessions")

    def rows() -> list[tuple[Any, ...]]:
        what = "id, name, status, data, created_at, updated_at, version"
        each = [f"SELECT {what} FROM goose.{table} WHERE user_id = %s" for table in tables]  # noqa: S608 - our own names
        return [row for one in each for row in readmodel.run(one, [user])]

    async def all_there() -> bool:
        return len(rows()) == len(tables)

    await eventually(all_there, within=_WITHIN, what="rows of all three")
    before = rows()
    assert [row[1] for row in before] == ["clock", "T", "S"]
    readmodel.run("DELETE FROM goose.extensions WHERE user_id = %s", [user])
    readmodel.run("UPDATE goose.recipes SET name = 'false', data = '{}', created_at = now() WHERE user_id = %s", [user])
    readmodel.run("UPDATE goose.agent_sessions SET conversation_id = NULL WHERE user_id = %s", [user])
    readmodel.run("INSERT INTO goose.recipes (user_id, id, name, version) VALUES (%s, 'made-up', 'x', '9')", [user])
    stream = audit.Rebuild(api.RebuildRequest(user_id=user), metadata=mesh.metadata(user, roles=["admin"]))
    last = [response async for response in stream][-1]
    assert (last.done, last.entities) == (True, len(tables))
    assert rows() == before
    held = readmodel.run("SELECT conversation_id FROM goose.agent_sessions WHERE user_id = %s", [user])
    assert held == [(f"{user}.c",)]


async def test_the_queries_of_the_documentation_run(
    mesh: Mesh, audit: Any, conversation: Any, user: str, readmodel: Database
) -> None:
    """Every query of docs/operations.md runs as it is written; that of the last hour's events counts them by type."""
    await _talk(conversation, mesh, user, "counted")

    async def logged() -> bool:
        request = api.CountEventsRequest(filter=api.EventFilter(user_id=user))
        return bool((await audit.CountEvents(request, metadata=mesh.metadata(user))).total >= 2)

    await eventually(logged, within=_WITHIN, what="the events in the log")
    text = (PROJECT_ROOT / "docs" / "operations.md").read_text()
    queries = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    assert queries
    for query in queries:
        readmodel.run(query)
    by_type = {(row[0], row[1]): row[2] for row in readmodel.run(queries[0])}
    assert by_type["goose.conversation.created", "conversation"] >= 1
    assert by_type["goose.agent.message.received", "conversation"] >= 1


async def test_the_command_line_shows_the_log_and_rebuilds(mesh: Mesh, conversation: Any, user: str) -> None:
    """`gaggle audit` prints a user's newest entries as JSON, the oldest first, and makes the user's rows again."""
    conversation_id = await _talk(conversation, mesh, user, "on the command line")

    async def shown() -> list[Any]:
        result = await asyncio.to_thread(gaggle, "audit", "events", "--user", user, "--last", "5", data=mesh.data.path)
        assert result.returncode == 0, result.stderr
        entries = [json.loads(line)["event"] for line in result.stdout.splitlines()]
        return entries if len(entries) == 2 else []

    entries = await eventually(shown, within=_WITHIN, what="both events on the command line")
    assert [one["eventType"] for one in entries] == ["goose.conversation.created", "goose.agent.message.received"]
    assert {one["entityId"] for one in entries} == {conversation_id}
    result = await asyncio.to_thread(gaggle, "audit", "rebuild", "--user", user, data=mesh.data.path)
    assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert "1 users, 1 conversations, 1 messages" in " ".join(result.stderr.split())
