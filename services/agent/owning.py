"""What the owner of sessions and turns does for the mesh: revisions, events told again, erasure."""

import structlog

from gaggle.agent.state.v1 import document_pb2
from gaggle.agent.v1 import event_pb2, turn_pb2
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
from services.runtime.errors import ConflictError, InvalidArgumentError, NotFoundError
from services.runtime.owning import REVISIONS_PAGE, publish_again
from services.runtime.state import CommitFailedError, Put, Remove

_ROWS_AT_ONCE = 50
_ATTEMPTS = 12
_MARK_SECONDS = 3 * 86_400
_log = structlog.get_logger()


class Owner:
    """Walks what there is."""

    def __init__(self, store: AgentStore, sessions: Sessions, runs: Runs) -> None:
        """All of one process."""
        self._store = store
        self._sessions = sessions
        self._runs = runs

    async def users(self, request: api.ListUsersRequest) -> api.ListUsersResponse:
        """List the users."""
        return await self._store.users.list(request)

    async def revisions(self, request: api.ListRevisionsRequest) -> api.ListRevisionsResponse:
        """List a user's sessions with their revisions."""
        if not request.user_id:
            raise InvalidArgumentError({"user_id": "must be set"})
        size = paging.page_size(request.page_size, default=REVISIONS_PAGE, most=REVISIONS_PAGE)
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
        key = session_key(request.user_id, request.entity_id)
        document = await self._store.read(key, document_pb2.SessionDocument)
        if document is None or request.entity_type != ENTITY:
            raise NotFoundError(request.entity_type, request.entity_id)
        published = await publish_again(
            self._store.outbox, document.events, request.first_revision, request.last_revision
        )
        return api.RepublishEventsResponse(published=published)

    async def _index(self, user_id: str) -> document_pb2.UserIndex:
        return await self._store.read(index_key(user_id), document_pb2.UserIndex) or document_pb2.UserIndex()

    # -- erasure

    async def empty(self, user_id: str) -> int:
        """Close a user and take away all there is; gives how many sessions, turns and usage entries that were."""
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
        return items

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
