"""What the owner of sessions and turns does for the mesh: revisions, events told again, erasure."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog
from google.protobuf import json_format

from gaggle.agent.state.v1 import document_pb2
from gaggle.agent.v1 import event_pb2, turn_pb2
from gaggle.conversation.v1 import event_pb2 as conversation_event_pb2
from gaggle.owner.v1 import owner_service_pb2 as api
from services.agent.runs import Runs
from services.agent.sessions import ENTITY, Sessions
from services.agent.store import (
    AgentStore,
    Transaction,
    day_key,
    index_key,
    lane_key,
    log_key,
    now,
    session_key,
    today,
    turn_key,
)
from services.runtime import paging, topics
from services.runtime.callbacks import Outcome, TopicEvent
from services.runtime.errors import ConflictError, GaggleError, InvalidArgumentError, NotFoundError
from services.runtime.events import Change, build_events
from services.runtime.outbox import Number
from services.runtime.state import CommitFailedError, Put, Remove
from services.runtime.users import USER_BUCKETS

MAX_REPUBLISHED = 1000
_USERS_PAGE = 1000
_REVISIONS_PAGE = 100
_ROWS_AT_ONCE = 50
_ATTEMPTS = 12
_MARK_SECONDS = 3 * 86_400
_log = structlog.get_logger()


class Owner:
    """Walks what there is."""

    def __init__(self, store: AgentStore, sessions: Sessions, runs: Runs, service: str) -> None:
        """`service` signs this service's erasure receipts."""
        self._store = store
        self._sessions = sessions
        self._runs = runs
        self._service = service

    async def users(self, request: api.ListUsersRequest) -> api.ListUsersResponse:
        """List the users, at least one of the 256 documents at a time."""
        size = paging.page_size(request.page_size, default=_USERS_PAGE, most=_USERS_PAGE)
        bucket = int(paging.decode(request.page_token, "ListUsers").get("k", 0))
        response = api.ListUsersResponse()
        while bucket < USER_BUCKETS and len(response.user_ids) < size:
            response.user_ids.extend(await self._store.users.bucket(bucket))
            bucket += 1
        if bucket < USER_BUCKETS:
            response.next_page_token = paging.encode({"k": bucket}, "ListUsers")
        return response

    async def revisions(self, request: api.ListRevisionsRequest) -> api.ListRevisionsResponse:
        """List a user's sessions with their revisions."""
        if not request.user_id:
            raise InvalidArgumentError({"user_id": "must be set"})
        size = paging.page_size(request.page_size, default=_REVISIONS_PAGE, most=_REVISIONS_PAGE)
        scope = ("ListRevisions", request.user_id)
        cursor = paging.decode(request.page_token, *scope)
        index = await self._index(request.user_id)
        bucket = int(cursor["k"]) if cursor else int(index.buckets)
        place = int(cursor["p"]) if cursor else None
        response = api.ListRevisionsResponse()
        while bucket >= 0:
            ids = await self._sessions.entries(request.user_id, index, bucket)
            end = len(ids) if place is None else min(place + 1, len(ids))
            start = max(end - (size - len(response.revisions)), 0)
            wanted = list(reversed(ids[start:end]))
            for document in await self._sessions.documents(request.user_id, wanted):
                if document.session.id:
                    response.revisions.add(
                        entity_type=ENTITY,
                        entity_id=document.session.id,
                        revision=document.revision,
                        incarnation=document.incarnation,
                        deleted=document.HasField("delete_time"),
                    )
            if start > 0:
                response.next_page_token = paging.encode({"k": bucket, "p": start - 1}, *scope)
                return response
            bucket, place = bucket - 1, None
        return response

    async def republish(self, request: api.RepublishEventsRequest) -> api.RepublishEventsResponse:
        """Publish the events of some revisions again."""
        count = request.last_revision - request.first_revision + 1
        if not 0 < count <= MAX_REPUBLISHED:
            raise InvalidArgumentError({"last_revision": f"at most {MAX_REPUBLISHED} revisions at once"})
        key = session_key(request.user_id, request.entity_id)
        document = await self._store.read(key, document_pb2.SessionDocument)
        if document is None or request.entity_type != ENTITY:
            raise NotFoundError(request.entity_type, request.entity_id)
        published = 0
        for reference in document.events:
            if request.first_revision <= reference.revision <= request.last_revision:
                row = await self._store.outbox.row(Number(reference.slot, reference.epoch, reference.number))
                if row is not None:
                    published += await self._store.outbox.publish_row(row)
        return api.RepublishEventsResponse(published=published)

    async def _index(self, user_id: str) -> document_pb2.UserIndex:
        return await self._store.read(index_key(user_id), document_pb2.UserIndex) or document_pb2.UserIndex()

    # -- erasure

    async def on_user_erased(self, events: Sequence[TopicEvent]) -> list[Outcome]:
        """Take away all that an erased user had, then report it."""
        return [await self._guard(event) for event in events]

    async def _guard(self, event: TopicEvent) -> Outcome:
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
        index = await self._close(user_id)
        items = 0
        conversations: set[str] = set()
        for day in range(index.first_day or today(), today() + 2):
            items += await self._erase_day(user_id, day, conversations)
        for conversation_id in conversations:
            await self._store.state.commit([Remove(lane_key(user_id, conversation_id))])
        for bucket in range(index.buckets, -1, -1):
            ids = await self._sessions.entries(user_id, index, bucket)
            for session_id in ids:
                items += await self._erase_session(user_id, session_id)
            if bucket != index.buckets:
                await self._store.state.commit([Remove(index_key(user_id, bucket))])
        await self._report(user_id, erasure_id, items)

    async def _close(self, user_id: str) -> document_pb2.UserIndex:
        """Let nothing more be created."""
        key = index_key(user_id)

        async def apply(transaction: Transaction) -> document_pb2.UserIndex:
            index = transaction.read(key, document_pb2.UserIndex) or document_pb2.UserIndex()
            if not index.HasField("erase_time"):
                if transaction.item(key) is None:
                    transaction.puts += await self._store.users.entering(user_id)
                index.erase_time.CopyFrom(now())
                transaction.put(key, index)
            return index

        return await self._store.change([key], apply, confirm=[key])

    async def _erase_day(self, user_id: str, day: int, conversations: set[str]) -> int:
        """Take away what a day names. Where turns may still begin, a mark is left that no beginning gets past."""
        key = day_key(user_id, day)
        items = 0
        for _ in range(_ATTEMPTS):
            item = await self._store.state.get(key)
            document = document_pb2.Day.FromString(item.value) if item else document_pb2.Day()
            items += await self._erase_named(user_id, day, document, conversations)
            mark = document_pb2.Day(erased=True).SerializeToString()
            etag = item.etag if item else ""
            last: Put | Remove = Remove(key, etag=etag)
            if day >= today():
                last = Put(key, mark, etag=etag, create=item is None, ttl_seconds=_MARK_SECONDS)
            elif item is None:
                return items
            try:
                await self._store.state.commit([last])
            except CommitFailedError:
                continue  # A turn began meanwhile: it is named there now.
            return items
        raise ConflictError("other writers kept winning")

    async def _erase_named(self, user_id: str, day: int, document: document_pb2.Day, conversations: set[str]) -> int:
        turns = list(document.turn_ids)
        keys = []
        for block in range(document.turn_blocks):
            keys.append(day_key(user_id, day, f"t{block}"))
            older = await self._store.read(keys[-1], document_pb2.Day)
            turns += older.turn_ids if older else ()
        keys += [day_key(user_id, day, f"e{block}") for block in range(document.entry_blocks)]
        for turn_id in turns:
            await self._erase_turn(user_id, turn_id, conversations)
        if keys:
            await self._store.state.commit([Remove(key) for key in keys])
        return len(turns) + len(document.entries)

    async def _erase_turn(self, user_id: str, turn_id: str, conversations: set[str]) -> None:
        await self._runs.end(user_id, turn_id, turn_pb2.TURN_STATUS_CANCELLED)
        run = self._runs.get(user_id, turn_id)
        if run is not None:
            # Its conversation is gone: there is nothing to append to.
            await run.stop()
        turn = await self._store.turn(user_id, turn_id)
        if turn is None:
            return
        conversations.add(turn.request.conversation_id)
        keys = [turn_key(user_id, turn_id), *(log_key(user_id, turn_id, row) for row in range(turn.log_rows))]
        keys += [f"{turn_key(user_id, turn_id)}:c{attempt}" for attempt in range(1, turn.attempt + 1)]
        for start in range(0, len(keys), _ROWS_AT_ONCE):
            await self._store.state.commit([Remove(key) for key in keys[start : start + _ROWS_AT_ONCE]])

    async def _erase_session(self, user_id: str, session_id: str) -> int:
        key = session_key(user_id, session_id)

        def apply(transaction: Transaction) -> int:
            document = transaction.read(key, document_pb2.SessionDocument)
            if document is None:
                return 0
            payload = event_pb2.SessionEndedEvent(cause="erased")
            self._sessions.write(user_id, transaction, document, {topics.SESSION_ENDED: payload}, erased=True)
            transaction.remove(key)
            return 1

        return await self._store.change([key], apply, confirm=[key])

    async def _report(self, user_id: str, erasure_id: str, items: int) -> None:
        payload = conversation_event_pb2.UserErasureCompletedEvent(
            erasure_id=erasure_id, service=self._service, items=items
        )
        change = Change(
            entity_type="user", entity_id=user_id, user_id=user_id, revision=0, incarnation=0, time=datetime.now(UTC)
        )
        events = build_events(
            change,
            {topics.USER_ERASURE_COMPLETED: json_format.MessageToDict(payload)},
            id_prefix=f"{topics.USER_ERASURE_COMPLETED}.{erasure_id}.{self._service}",
        )

        def apply(transaction: Transaction) -> None:
            transaction.events += events

        await self._store.change([index_key(user_id)], apply)
