"""What a service does when a user is erased: it empties itself of that user, once, and says so.

The conversation service begins an erasure and keeps the receipts; every other owner of users' data subscribes
`Erasure.take` to `goose.user.erased`.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import structlog
from google.protobuf import json_format

from gaggle.conversation.v1 import event_pb2
from gaggle.runtime.state.v1 import document_pb2
from services.runtime import topics
from services.runtime.callbacks import Outcome, TopicEvent
from services.runtime.errors import ConflictError, GaggleError
from services.runtime.events import Change, build_events
from services.runtime.keys import user_part
from services.runtime.outbox import Outbox
from services.runtime.state import CommitFailedError, Put, StateStore

_log = structlog.get_logger()

Empty = Callable[[str], Awaitable[int]]
"""Closes a user, so that nothing is created any more, then deletes all there is; gives how many entities that were.
Repeating it does no harm."""


def erasure_key(user_id: str) -> str:
    """Key of what was done about a user's erasure."""
    return f"erasure:{user_part(user_id)}"


class Erasure:
    """Takes `goose.user.erased`, and answers with `goose.user.erasure.completed`."""

    def __init__(self, state: StateStore, outbox: Outbox, service: str, empty: Empty) -> None:
        """`service` signs the receipt."""
        self._state = state
        self._outbox = outbox
        self._service = service
        self._empty = empty

    async def take(self, events: Sequence[TopicEvent]) -> list[Outcome]:
        """Empty the service of each user, and report it in the commit that notes it."""
        return [await self._take(event) for event in events]

    async def _take(self, event: TopicEvent) -> Outcome:
        try:
            body = json.loads(event.data)
            user_id, erasure_id = str(body["userId"]), str(body["data"]["erasureId"])
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("event_not_readable", topic=event.topic, id=event.id, error=str(error))
            return Outcome.DROP
        try:
            await self._erase(user_id, erasure_id)
        except (GaggleError, CommitFailedError) as error:
            _log.warning("event_put_off", topic=event.topic, id=event.id, error=str(error))
            return Outcome.RETRY
        return Outcome.SUCCESS

    async def _erase(self, user_id: str, erasure_id: str) -> None:
        key = erasure_key(user_id)
        if await self._state.get(key) is not None:
            return
        items = await self._empty(user_id)
        now = datetime.now(UTC)
        row = document_pb2.ErasureRow(erasure_id=erasure_id, items=items)
        row.complete_time.FromDatetime(now)
        payload = event_pb2.UserErasureCompletedEvent(erasure_id=erasure_id, service=self._service, items=items)
        change = Change("user", user_id, user_id, revision=0, incarnation=0, time=now)
        events = build_events(
            change,
            {topics.USER_ERASURE_COMPLETED: json_format.MessageToDict(payload)},
            id_prefix=f"{topics.USER_ERASURE_COMPLETED}.{erasure_id}.{self._service}",
        )
        try:
            await self._outbox.commit(
                [Put(key, row.SerializeToString(), create=True)], document_pb2.OutboxRow(events=events)
            )
        except ConflictError:
            if await self._state.get(key) is None:
                raise
