"""What every broker must keep, on the services as they are: nothing lost, nothing doubled in effect, order kept."""

import asyncio
import json
import random
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from gaggle.audit.v1 import audit_service_pb2 as api
from gaggle.common.v1 import event_pb2
from services.runtime import topics
from tests.audit.database import Database
from tests.brokers.conftest import BrokerMesh
from tests.brokers.probe import TOPIC
from tests.brokers.taps import tapped
from tests.conditions import eventually
from tests.conversation.talking import Talker, text_message
from tests.mesh.load import under_load

pytestmark = [pytest.mark.mesh, pytest.mark.slow, pytest.mark.timeout(300)]

# Kafka's consumers may still be sharing out partitions when a mesh is ready.
_DELIVERED_SECONDS = 120.0
_AWAY_SECONDS = 30.0
_BURST = 5_000
_BURST_SECONDS = 90.0
_CALLERS = 32
_AFTERWARDS = 300
_SEED = random.randrange(1, 2**31)
_MEGABYTE = 1024 * 1024


async def test_publish_to_subscriber(own: BrokerMesh, audit: Any, user: str) -> None:
    """An append's event lies in the broker as a CloudEvent with the typed payload, and in the log."""
    async with own.channel("conversation") as channel, tapped(own, topics.MESSAGE_RECEIVED) as tap:
        talker = Talker(channel, own.metadata(user))
        conversation_id = await talker.create("hello")
        entries = await logged(own, audit, user, 2)

        assert {one.topic for one in entries} == {topics.CONVERSATION_CREATED, topics.MESSAGE_RECEIVED}
        cloud = next(one for one in await tap.events() if one["data"]["userId"] == user)
    assert cloud["specversion"] == "1.0"
    assert cloud["topic"] == topics.MESSAGE_RECEIVED
    assert cloud["pubsubname"] == own.pubsub
    assert cloud["source"] == own.service("conversation").app_id
    assert cloud["data"]["entityId"] == conversation_id
    assert [one["sequence"] for one in cloud["data"]["data"]["messages"]] == ["1"]


async def test_other_apps_take_an_event_from_the_broker(own: BrokerMesh, audit: Any, user: str) -> None:
    """A program that knows the broker and JSON finds `data.entityId`, as the n8n workflow of the documents does."""
    async with tapped(own, topics.RECIPE_COMPLETED) as tap:
        event = event_pb2.Event(event_type=topics.RECIPE_COMPLETED, entity_type="execution", entity_id=f"run-{user}")
        await audit.PublishEvent(api.PublishEventRequest(event=event), metadata=own.metadata(user))
        await logged(own, audit, user, 1)

        assert {one["data"]["entityId"] for one in await tap.events()} == {f"run-{user}"}


async def test_topics_have_the_names_of_the_set(own: BrokerMesh, audit: Any, user: str) -> None:
    """Tasks' events go by the name that the set gives their topic, and come back under the product's own."""
    async with tapped(own, topics.TASK_EVENTS) as tap:
        event = event_pb2.Event(event_type="task.created", entity_type="task", entity_id="7")
        request = api.PublishEventRequest(event=event, topic=topics.TASK_EVENTS)
        await audit.PublishEvent(request, metadata=own.metadata(user))
        (entry,) = await logged(own, audit, user, 1)
        cloud = next(one for one in await tap.events() if one["data"]["user_id"] == user)

    assert entry.topic == topics.TASK_EVENTS
    assert cloud["topic"] == {"todo": "todo.tasks.events"}.get(own.set, topics.TASK_EVENTS)
    assert cloud["data"]["event_type"] == "task.created"


async def test_order_of_a_conversation(own: BrokerMesh, audit: Any, user: str) -> None:
    """In the broker a conversation's events lie in the order of its revisions; what was last is what the tables say."""
    names, rounds = [f"c{number}" for number in range(4)], 25
    async with (
        own.channel("conversation") as channel,
        tapped(own, topics.MESSAGE_RECEIVED) as messages,
        tapped(own, topics.CONVERSATION_UPDATED) as updates,
    ):
        talker = Talker(channel, own.metadata(user))

        async def one_after_another(name: str) -> None:
            await talker.create(conversation_id=name)
            for number in range(rounds):
                await talker.say(name, f"{number}")
                await talker("UpdateConversation", conversation_id=name, title=f"title {number}")

        await asyncio.gather(*(one_after_another(name) for name in names))
        entries = await logged(own, audit, user, len(names) * (1 + 2 * rounds))
        for tap in (messages, updates):
            events = [one["data"] for one in await tap.events() if one["data"]["userId"] == user]
            for name in names:
                # What took too long is published again: where each came first is what counts.
                told = list(dict.fromkeys(int(one["revision"]) for one in events if one["entityId"] == name))
                assert told == sorted(told), f"{tap.topic} of {name}"
                assert len(told) == rounds
    assert len({one.event.event_id for one in entries}) == len(entries)

    async def settled() -> bool:
        rows = await asyncio.to_thread(
            Database(own.description.database_url).run,
            "SELECT id, title, revision FROM goose.conversations WHERE user_id = %s ORDER BY id",
            [user],
        )
        return rows == [(name, f"title {rounds - 1}", 1 + 2 * rounds) for name in names]

    await eventually(settled, within=_DELIVERED_SECONDS, what="the last title and revision in the tables")


async def test_redelivery(own: BrokerMesh) -> None:
    """An event that was refused comes again until it is taken, once, and holds nobody else up for good."""
    trouble, others = _id(), [_id() for _ in range(20)]
    await own.publish(TOPIC, _event(trouble, "fail 3"))
    await asyncio.gather(*(own.publish(TOPIC, _event(one), key=one) for one in others))

    await taken(own, {trouble, *others})
    assert own.deliveries(TOPIC).count(trouble) == 4
    assert own.deliveries("taken").count(trouble) == 1


async def test_dead_letter(own: BrokerMesh) -> None:
    """What is dropped, or refused for longer than the policy, goes to the dead letters; what is behind it is taken."""
    dropped, refused, behind = _id(), _id(), _id()
    # All of one key, so that they lie in one partition where there are several.
    for one, do in ((dropped, "drop"), (refused, "refuse"), (behind, "take")):
        await own.publish(TOPIC, _event(one, do), key="one")

    async def dead() -> bool:
        return {dropped, refused} <= set(own.deliveries("dead-letter"))

    await eventually(dead, within=_DELIVERED_SECONDS, what="both in the dead letters")
    await taken(own, {behind})
    assert {dropped, refused}.isdisjoint(own.deliveries("taken"))
    assert own.deliveries(TOPIC).count(refused) > 5


async def test_poison_message(own: BrokerMesh, audit: Any, user: str) -> None:
    """Bytes that are no CloudEvent, put there by a foreign program, are parked; the events around them are logged."""
    poison = f"{{not json {user}".encode()
    async with tapped(own, topics.TOOL_EXECUTED) as tap:
        for number in range(3):
            await tap.put(poison + b" %d" % number)
            event = event_pb2.Event(event_type=topics.TOOL_EXECUTED, entity_type="tool", entity_id=f"{number}")
            await audit.PublishEvent(api.PublishEventRequest(event=event), metadata=own.metadata(user))
    await logged(own, audit, user, 3)

    async def parked() -> bool:
        answer = await audit.ListDeadLetters(
            api.ListDeadLettersRequest(page_size=1000), metadata=own.metadata(user, roles=["admin"])
        )
        found = {bytes(one.payload) for one in answer.dead_letters}
        return {poison + b" %d" % number for number in range(3)} <= found

    await eventually(parked, within=_DELIVERED_SECONDS, what="the poison among the dead letters")


async def test_subscriber_dies_and_restarts(own: BrokerMesh) -> None:
    """An event whose subscriber died of it is delivered to its successor; so is what came while nobody was there."""
    deadly, later = _id(), [_id() for _ in range(30)]
    pid = own.pid("probe")
    await own.publish(TOPIC, _event(deadly, "die"))
    await asyncio.gather(*(own.publish(TOPIC, _event(one), key=one, service="audit") for one in later))
    await own.back("probe", pid)
    await taken(own, {deadly, *later})

    away = [_id() for _ in range(30)]
    own.kill("probe.daprd")
    await asyncio.gather(*(own.publish(TOPIC, _event(one), key=one, service="audit") for one in away))
    await taken(own, set(away))


async def test_log_restarts_under_load(own: BrokerMesh, user: str, tmp_path: Path) -> None:
    """While the log's service is restarted and killed appends go on; in the end each is logged once."""
    async with under_load(own, user, tmp_path, seed=_SEED) as load:
        await load.more(30)
        await own.restart("audit")
        await load.more(30)
        await own.killed("audit")
        await load.more(30)


@pytest.mark.timeout(_BURST_SECONDS + 120)
async def test_burst(own: BrokerMesh, audit: Any, user: str) -> None:
    """5,000 events as fast as they are taken: each is in the log, once."""
    metadata = own.metadata(user)
    numbers = iter(range(_BURST))

    async def publish() -> None:
        for number in numbers:
            await _tool_event(audit, metadata, f"{user}-{number}")

    began = time.monotonic()
    await asyncio.gather(*(publish() for _ in range(_CALLERS)))
    published = time.monotonic() - began

    async def all_of_them() -> bool:
        answer = await audit.CountEvents(
            api.CountEventsRequest(filter=api.EventFilter(event_types=[topics.TOOL_EXECUTED])), metadata=metadata
        )
        return bool(answer.total >= _BURST)

    await eventually(all_of_them, within=_BURST_SECONDS, what=f"{_BURST} events logged", every=0.5)
    print(f"{own.set}: published in {published:.1f} s, logged after {time.monotonic() - began:.1f} s")  # noqa: T201
    entries = await _entries(own, audit, user)
    assert sorted(one.event.event_id for one in entries) == sorted(f"{user}-{number}" for number in range(_BURST))


async def test_large_append_through_the_mesh(own: BrokerMesh, audit: Any, user: str) -> None:
    """Three megabytes of messages by way of another service's sidecar are stored, read back and told of."""
    texts = [letter * (_MEGABYTE - 64 * 1024) for letter in "abc"]
    target = own.service("conversation").app_id
    async with own.sidecar("probe") as channel:
        talker = Talker(channel, own.metadata(user, app_id=target))
        conversation_id = await talker.create()
        await talker("AppendMessages", conversation_id=conversation_id, messages=[text_message(text) for text in texts])
        assert [text for _, text in await talker.history(conversation_id)] == texts
    await logged(own, audit, user, 2)


@pytest.mark.timeout(600)
async def test_broker_away(own: BrokerMesh, audit: Any, user: str, tmp_path: Path) -> None:
    """The broker hangs for 30 seconds, then dies: appends go on, and in the end all is logged once, in order."""
    process = own.description.broker
    async with tapped(own, topics.MESSAGE_SENT) as tap:
        async with under_load(own, user, tmp_path, seed=_SEED, clients=3, replicas=1) as load:
            await load.more(30)
            hung = time.monotonic()
            pid = own.signal(process, signal.SIGSTOP)
            before = len(load.attempts)
            # Not a wait for something to happen: that it lasts is what is tried.
            await asyncio.sleep(_AWAY_SECONDS)
            assert time.monotonic() - hung >= _AWAY_SECONDS
            assert len(load.attempts) - before > 100
            assert all(one.outcome == "OK" for one in load.attempts[before:])
            own.kill(process)
            # Kafka goes through its log before it is there again.
            await own.back(process, pid, within=120)
            await load.more(30)
        events = [one["data"] for one in await tap.events() if one["data"]["userId"] == user]
    for name in load.conversations:
        told = list(dict.fromkeys(int(one["revision"]) for one in events if one["entityId"] == name))
        assert told == sorted(told), name
    # Subscriptions work as before, those of no reconciliation, too.
    after = [f"{user}-{number}" for number in range(_AFTERWARDS)]
    await asyncio.gather(*(_tool_event(audit, own.metadata(user), event_id) for event_id in after))

    async def all_of_them() -> bool:
        request = api.CountEventsRequest(filter=api.EventFilter(event_types=[topics.TOOL_EXECUTED]))
        return bool((await audit.CountEvents(request, metadata=own.metadata(user))).total == _AFTERWARDS)

    # RabbitMQ takes back what lost consumers hold after a minute (see cli/mesh/rabbitmq.py).
    within = 300.0 if process == "rabbitmq" else _DELIVERED_SECONDS
    await eventually(all_of_them, within=within, what=f"{_AFTERWARDS} more events logged", every=0.5)


async def _tool_event(audit: Any, metadata: Any, event_id: str) -> None:
    data = Struct()
    data.update({"tool": "search", "arguments": "x" * 200})
    event = event_pb2.Event(
        event_type=topics.TOOL_EXECUTED, entity_type="tool", entity_id=event_id, event_id=event_id, data=data
    )
    await audit.PublishEvent(api.PublishEventRequest(event=event), metadata=metadata, timeout=30)


def _id() -> str:
    return uuid.uuid4().hex


def _event(event_id: str, do: str = "take") -> bytes:
    return json.dumps({"id": event_id, "do": do}).encode()


async def taken(mesh: BrokerMesh, wanted: set[str], *, within: float = _DELIVERED_SECONDS) -> None:
    """Wait until the probe took these events."""

    async def all_of_them() -> bool:
        return wanted <= set(mesh.deliveries("taken"))

    await eventually(all_of_them, within=within, what=f"{len(wanted)} events taken")


async def logged(mesh: BrokerMesh, audit: Any, user: str, count: int) -> list[api.LogEntry]:
    """Wait until so many events of a user are in the log, and give them."""

    async def enough() -> list[api.LogEntry]:
        entries = await _entries(mesh, audit, user)
        return entries if len(entries) >= count else []

    entries = await eventually(enough, within=_DELIVERED_SECONDS, what=f"{count} events in the log", every=0.2)
    assert len(entries) == count
    return entries


async def _entries(mesh: BrokerMesh, audit: Any, user: str) -> list[api.LogEntry]:
    entries: list[api.LogEntry] = []
    request = api.ListEventsRequest(page_size=1000)
    while True:
        page = await audit.ListEvents(request, metadata=mesh.metadata(user), timeout=10)
        entries += page.entries
        if not page.next_page_token:
            return entries
        request.page_token = page.next_page_token
