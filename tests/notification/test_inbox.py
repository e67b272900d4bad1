"""The inbox against a model, on a store in memory."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from gaggle.notification.v1 import notification_service_pb2 as api
from services.notification.delivering import Delivery
from services.notification.domain import News
from services.notification.metrics import NotificationMetrics
from services.notification.reading import Reader
from services.notification.settings import NotificationSettings
from services.notification.store import NotificationStore, Once
from services.notification.tokens import UnsubscribeTokens
from services.notification.writing import Writer
from services.runtime.errors import NotFoundError
from services.runtime.identity import Caller
from services.runtime.telemetry import Metrics
from tests.runtime.memory import MemoryBroker, MemoryState, make_outbox

_USER = "ann"
_KEPT = 128
_CALLER = Caller(_USER, frozenset(), "", "gaggle", 0, 0, "token")


class _Assembled:
    def __init__(self, state: MemoryState, outbox: Any) -> None:
        settings = NotificationSettings.model_validate(
            {"app_id": "n", "port": 1, "sidecar_port": 1, "app_api_token": "t", "kept_notifications": _KEPT}
        )
        self.state = state
        self.store = NotificationStore(state, outbox, lambda: datetime.now(UTC))  # type: ignore[arg-type]
        nobody: Any = None
        metrics = NotificationMetrics(Metrics().registry)
        delivery = Delivery(self.store, nobody, nobody, settings, metrics, holder="one")
        self.writer = Writer(self.store, delivery, UnsubscribeTokens(), settings, metrics)
        self.reader = Reader(self.store)

    async def all(self, **fields: Any) -> list[Any]:
        found: list[Any] = []
        request = api.ListNotificationsRequest(**fields)
        while True:
            page = await self.reader.page(_USER, request)
            found += page.notifications
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    async def mark(self, **fields: Any) -> int:
        return (await self.writer.mark(_CALLER, api.MarkReadRequest(**fields))).unread_count


@pytest.fixture
async def assembled() -> AsyncIterator[_Assembled]:
    """The service's parts."""
    state = MemoryState()
    outbox = make_outbox(state, MemoryBroker())
    await outbox.start()
    yield _Assembled(state, outbox)
    await outbox.stop(0.1)


@pytest.mark.parametrize("seed", range(4))
async def test_the_inbox_is_what_was_told_and_read(assembled: _Assembled, seed: int) -> None:
    """Whatever is told, marked and repeated: lists, counts and what is kept are those of a plain list."""
    chance = random.Random(seed)
    model: list[tuple[str, int, bool]] = []
    last = 0
    for step in range(400):
        what = chance.random()
        if what < 0.75 or not model:
            once = Once(event_id=f"e{step}")
            answer = await assembled.writer.tell(_USER, News(6, f"t{step}"), once)
            again = await assembled.writer.tell(_USER, News(6, f"t{step}"), once)
            last += 1
            assert (answer.sequence, again.sequence) == (last, 0)
            model.append((answer.notification_id, last, False))
            # The document holds two pages at most; of whole ones `_KEPT` stay.
            first = max(0, (last // 32 - 1) * 32 - _KEPT)
            model = [one for one in model if one[1] >= first]
        elif what < 0.95:
            ids = chance.sample([one[0] for one in model], min(len(model), 3))
            left = await assembled.mark(notification_ids=ids)
            model = [(one, number, read or one in ids) for one, number, read in model]
            assert left == sum(not read for _, _, read in model)
        elif what < 0.98:
            through = chance.choice(model)[1]
            left = await assembled.mark(through_sequence=through)
            model = [(one, number, read or number <= through) for one, number, read in model]
            assert left == sum(not read for _, _, read in model)
        elif chance.random() < 0.2:
            assert await assembled.mark(all=True) == 0
            model = [(one, number, True) for one, number, _ in model]
        if step % 20 == 0 or step == 399:
            size = chance.choice((1, 7, 50, 200))
            assert [(one.id, one.sequence, one.read) for one in await assembled.all(page_size=size)] == model[::-1]
            unread = [one.id for one in await assembled.all(page_size=size, unread_only=True)]
            assert unread == [one for one, _, read in model if not read][::-1]
            assert await assembled.reader.unread(_USER) == len(unread)
    assert last > 2 * _KEPT - 64
    assert len([key for key in assembled.state.items if ":p" in key]) <= _KEPT // 32


async def test_an_id_of_elsewhere_is_not_found(assembled: _Assembled) -> None:
    """An id that is none of the user's marks nothing, though one of the same place is there."""
    answer = await assembled.writer.tell(_USER, News(6, "t"), Once(event_id="e"))
    other = await assembled.writer.tell("bob", News(6, "t"), Once(event_id="e"))
    with pytest.raises(NotFoundError):
        await assembled.mark(notification_ids=[answer.notification_id, other.notification_id])
    assert await assembled.reader.unread(_USER) == 1


async def test_reading_costs_the_same_whatever_there_is(assembled: _Assembled) -> None:
    """The newest page is one read at 5 notifications and at 200, and at most two."""
    costs = []
    for total in (5, 200):
        while (await assembled.store.find(_USER)).last_sequence < total:
            await assembled.writer.tell(_USER, News(6, "t"), Once())
        before = assembled.state.reads
        await assembled.reader.page(_USER, api.ListNotificationsRequest(page_size=20))
        costs.append(assembled.state.reads - before)
    assert costs == [1, 1]
