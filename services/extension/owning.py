"""What the owner of extensions does for the mesh: revisions, events told again, erasure."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog
from google.protobuf import json_format

from gaggle.conversation.v1 import event_pb2 as conversation_events
from gaggle.owner.v1 import owner_service_pb2 as owner_api
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from services.extension import domain
from services.extension.connections import Connections
from services.extension.registry import Registry
from services.extension.store import ATTEMPTS, ENTITY, ExtensionStore, index_put
from services.runtime import paging, topics
from services.runtime.callbacks import Outcome, TopicEvent
from services.runtime.errors import ConflictError, GaggleError, InvalidArgumentError, NotFoundError
from services.runtime.events import Change, build_events
from services.runtime.outbox import Number
from services.runtime.users import USER_BUCKETS

MAX_REPUBLISHED = 1000
_USERS_PAGE = 1000
_REVISIONS_PAGE = 100
_HEADS_AT_ONCE = 25

_log = structlog.get_logger()


class Owner:
    """Walks what there is."""

    def __init__(self, store: ExtensionStore, registry: Registry, connections: Connections, service: str) -> None:
        """`service` signs this service's erasure receipts."""
        self._store = store
        self._registry = registry
        self._connections = connections
        self._service = service

    async def users(self, request: owner_api.ListUsersRequest) -> owner_api.ListUsersResponse:
        """List the users, at least one of the 256 documents at a time."""
        size = paging.page_size(request.page_size, default=_USERS_PAGE, most=_USERS_PAGE)
        bucket = int(paging.decode(request.page_token, "ListUsers").get("k", 0))
        response = owner_api.ListUsersResponse()
        while bucket < USER_BUCKETS and len(response.user_ids) < size:
            response.user_ids.extend(await self._store.users.bucket(bucket))
            bucket += 1
        if bucket < USER_BUCKETS:
            response.next_page_token = paging.encode({"k": bucket}, "ListUsers")
        return response

    async def revisions(self, request: owner_api.ListRevisionsRequest) -> owner_api.ListRevisionsResponse:
        """List what lies under a user with its revisions, tombstones included."""
        size = paging.page_size(request.page_size, default=_REVISIONS_PAGE, most=_REVISIONS_PAGE)
        scope = ("ListRevisions", request.user_id)
        cursor = paging.decode(request.page_token, *scope)
        index, _ = await self._store.index(request.user_id)
        # Entries are added at the end, and only what was deleted long ago goes.
        wanted = [one.extension_id for one in index.entries]
        if "i" in cursor and cursor["i"] in wanted:
            wanted = wanted[wanted.index(str(cursor["i"])) + 1 :]
        response = owner_api.ListRevisionsResponse()
        if len(wanted) > size:
            response.next_page_token = paging.encode({"i": wanted[size - 1]}, *scope)
        for start in range(0, min(len(wanted), size), _HEADS_AT_ONCE):
            chunk = wanted[start : min(start + _HEADS_AT_ONCE, size)]
            for head in await self._store.heads(request.user_id, chunk):
                response.revisions.add(
                    entity_type=ENTITY,
                    entity_id=head.extension_id,
                    revision=head.revision,
                    incarnation=head.incarnation,
                    deleted=head.HasField("delete_time"),
                )
        return response

    async def republish(self, request: owner_api.RepublishEventsRequest) -> owner_api.RepublishEventsResponse:
        """Publish the events of some revisions again."""
        count = request.last_revision - request.first_revision + 1
        if not 0 < count <= MAX_REPUBLISHED:
            raise InvalidArgumentError({"last_revision": f"at most {MAX_REPUBLISHED} revisions at once"})
        head, _ = await self._store.head(request.user_id, request.entity_id)
        if head is None:
            raise NotFoundError(ENTITY, request.entity_id)
        published = 0
        for one in head.events:
            if request.first_revision <= one.revision <= request.last_revision:
                row = await self._store.outbox.row(Number(one.slot, one.epoch, one.number))
                if row is not None:
                    published += await self._store.outbox.publish_row(row)
        return owner_api.RepublishEventsResponse(published=published)

    # -- erasure

    async def on_user_erased(self, events: Sequence[TopicEvent]) -> list[Outcome]:
        """Delete all that an erased user had, then report it."""
        return [await self._guard(event) for event in events]

    async def _guard(self, event: TopicEvent) -> Outcome:
        try:
            body = json.loads(event.data)
            await self._erase(body["userId"], str(body["data"]["erasureId"]))
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("event_not_readable", topic=event.topic, id=event.id, error=str(error))
            return Outcome.DROP
        except GaggleError as error:
            _log.warning("event_put_off", topic=event.topic, id=event.id, error=str(error))
            return Outcome.RETRY
        return Outcome.SUCCESS

    async def _erase(self, user_id: str, erasure_id: str) -> None:
        if not user_id:
            return
        await self._close(user_id)
        index, _ = await self._store.index(user_id)
        for entry in index.entries:
            head, _ = await self._store.head(user_id, entry.extension_id)
            if head is None or head.HasField("delete_time"):
                continue
            try:
                await self._registry.remove(user_id, user_id, entry.extension_id, "erased")
            except NotFoundError:
                await self._registry.forget(user_id, entry.extension_id)
            await self._connections.close((user_id, entry.extension_id))
        await self._report(user_id, erasure_id)

    async def _close(self, user_id: str) -> None:
        """See that nothing is registered or loaded for a user any more."""
        for _ in range(ATTEMPTS):
            index, item = await self._store.index(user_id)
            if index.HasField("erase_time"):
                return
            index.erase_time.CopyFrom(domain.timestamp(datetime.now(UTC)))
            try:
                await self._store.outbox.commit([index_put(user_id, index, item)], runtime_pb2.OutboxRow())
            except ConflictError:
                continue
            return
        raise ConflictError("other writers kept winning")

    async def _report(self, user_id: str, erasure_id: str) -> None:
        """Tell once that it is done; what the index held goes with the same commit."""
        for _ in range(ATTEMPTS):
            index, item = await self._store.index(user_id)
            if index.erasure_id == erasure_id:
                return
            payload = conversation_events.UserErasureCompletedEvent(
                erasure_id=erasure_id, service=self._service, items=len(index.entries)
            )
            for entry in index.entries:
                entry.ClearField("key")
            index.erasure_id = erasure_id
            change = Change(
                entity_type="user",
                entity_id=user_id,
                user_id=user_id,
                revision=0,
                incarnation=0,
                time=datetime.now(UTC),
            )
            topic = topics.USER_ERASURE_COMPLETED
            events = build_events(
                change,
                {topic: json_format.MessageToDict(payload)},
                id_prefix=f"{topic}.{erasure_id}.{self._service}",
            )
            put = index_put(user_id, index, item)
            try:
                await self._store.outbox.commit([put], runtime_pb2.OutboxRow(events=events))
            except ConflictError:
                continue
            return
        raise ConflictError("other writers kept winning")
