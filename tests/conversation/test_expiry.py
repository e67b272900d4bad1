"""The sweep that ends what is past its time to live."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest

from gaggle.conversation.v1 import conversation_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as api
from services.conversation.index import UserIndexes
from services.conversation.owning import Owner
from services.conversation.reading import Reader
from services.conversation.settings import ConversationSettings
from services.conversation.store import PAGE_CLEAN_UP, ConversationStore, WindowCache
from services.conversation.writing import Writer
from services.runtime import topics
from services.runtime.errors import NotFoundError
from tests.conversation.talking import text_message
from tests.runtime.memory import MemoryBroker, MemoryState, make_outbox, settled

_SETTINGS = ConversationSettings.model_validate(
    {"app_id": "conversation", "port": 0, "sidecar_port": 1, "app_api_token": "x"}
)
_USER = "ada"


class Service:
    """The domain of the service on a store in memory, at a time of the test's choosing."""

    def __init__(self) -> None:
        """Begin empty, now."""
        self.broker = MemoryBroker()
        self.late = timedelta()
        clean_ups: dict[str, Any] = {}
        state: Any = MemoryState()
        self.outbox = make_outbox(state, self.broker, clean_ups=clean_ups)
        self.store = ConversationStore(state, self.outbox, WindowCache(100_000, 5))
        clean_ups[PAGE_CLEAN_UP] = self.store.clean_up
        indexes = UserIndexes(state)
        self.writer = Writer(self.store, indexes, _SETTINGS)
        self.reader = Reader(self.store, indexes, _SETTINGS)
        self.owner = Owner(self.store, indexes, self.writer, "conversation")

    async def create(self, name: str, ttl_seconds: int = 0) -> None:
        """Create a conversation with one message."""
        retention = conversation_pb2.Retention()
        if ttl_seconds:
            retention.ttl.FromSeconds(ttl_seconds)
        await self.writer.create(_USER, api.CreateConversationRequest(conversation_id=name, retention=retention))
        await self.append(name)

    async def append(self, name: str) -> None:
        """Use it."""
        await self.writer.append(_USER, api.AppendMessagesRequest(conversation_id=name, messages=[text_message("x")]))

    def at(self, seconds: float) -> Any:
        """So many seconds from now, within the block."""
        moment = datetime.now(UTC) + timedelta(seconds=seconds)

        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
                return moment.astimezone(tz)

        return patch.multiple("services.conversation.store", datetime=Clock), patch.multiple(
            "services.conversation.owning", datetime=Clock
        )


@pytest.fixture
async def service() -> Any:
    """A service; its outbox publishes."""
    one = Service()
    await one.outbox.start()
    yield one
    await one.outbox.stop()


async def test_what_is_past_its_time_is_not_found(service: Service) -> None:
    """A conversation unchanged for its ttl is gone for readers and lists at once, swept or not."""
    await service.create("brief", ttl_seconds=60)
    await service.create("lasting")
    store_clock, owning_clock = service.at(61)
    with store_clock, owning_clock, pytest.raises(NotFoundError):
        await service.store.head(_USER, "brief")
    assert (await service.store.head(_USER, "brief")).message_count == 1
    reading = patch("services.conversation.reading.datetime")
    with reading as clock:
        clock.now.return_value = datetime.now(UTC) + timedelta(seconds=61)
        listed = await service.reader.conversations(_USER, api.ListConversationsRequest())
    assert [one.id for one in listed.conversations] == ["lasting"]


async def test_the_sweep_deletes_what_has_expired(service: Service) -> None:
    """The sweep deletes what is past its time, with an event that says so, and nothing else; again it finds nothing."""
    await service.create("brief", ttl_seconds=60)
    await service.create("longer", ttl_seconds=3600)
    await service.create("lasting")
    assert await service.owner.sweep() == 0
    store_clock, owning_clock = service.at(61)
    with store_clock, owning_clock:
        assert await service.owner.sweep() == 1
        assert await service.owner.sweep() == 0
    await settled(lambda: service.outbox._queued == 0)
    deleted = [json.loads(body) for topic, body in service.broker.published if topic == topics.CONVERSATION_DELETED]
    assert [(one["entityId"], one["data"]) for one in deleted] == [("brief", {"cause": "expired"})]
    stored = await service.store.find(_USER, "brief")
    assert stored is not None
    assert stored.head.HasField("delete_time")
    for name in ("longer", "lasting"):
        assert (await service.store.head(_USER, name)).message_count == 1


async def test_use_prolongs_and_updates_count(service: Service) -> None:
    """A ttl counts from the last change, and one that is taken away or given later holds from then on."""
    await service.create("kept", ttl_seconds=60)
    await service.writer.update(
        _USER, api.UpdateConversationRequest(conversation_id="kept", retention=conversation_pb2.Retention())
    )
    await service.create("given")
    retention = conversation_pb2.Retention()
    retention.ttl.FromSeconds(60)
    await service.writer.update(_USER, api.UpdateConversationRequest(conversation_id="given", retention=retention))
    store_clock, owning_clock = service.at(59)
    with store_clock, owning_clock:
        assert await service.owner.sweep() == 0
    store_clock, owning_clock = service.at(61)
    with store_clock, owning_clock:
        assert await service.owner.sweep() == 1
    assert (await service.store.head(_USER, "kept")).message_count == 1
    with pytest.raises(NotFoundError):
        await service.store.head(_USER, "given")
