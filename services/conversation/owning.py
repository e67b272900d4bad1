"""What the owner of conversations does for the mesh: revisions, events told again, expiry, erasure."""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from google.protobuf import json_format

from gaggle.conversation.state.v1 import document_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as api
from gaggle.conversation.v1 import event_pb2
from gaggle.conversation.v1 import owner_service_pb2 as owner_api
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from services.conversation import domain
from services.conversation.index import UserIndexes
from services.conversation.store import (
    TOMBSTONE_SECONDS,
    ConversationStore,
    expired,
    head_key,
    index_key,
    revision_key,
    timestamp,
)
from services.conversation.writing import Writer
from services.runtime import paging, topics
from services.runtime.callbacks import Outcome, TopicEvent
from services.runtime.errors import ConflictError, GaggleError, InvalidArgumentError, NotFoundError
from services.runtime.events import Change, build_events
from services.runtime.ids import new_id
from services.runtime.owning import check_span, publish_again
from services.runtime.requests import TTL_SECONDS
from services.runtime.state import CommitFailedError, Item, Put
from services.runtime.users import USER_BUCKETS

_USERS_PAGE = 1000
_REVISIONS_PAGE = 100
_HEADS_AT_ONCE = 25
_ROWS_AT_ONCE = 200
_ATTEMPTS = 12
_log = structlog.get_logger()


class Owner:
    """Walks what there is."""

    def __init__(self, store: ConversationStore, indexes: UserIndexes, writer: Writer, service: str) -> None:
        """`service` signs this service's erasure receipts."""
        self._store = store
        self._indexes = indexes
        self._writer = writer
        self._service = service

    # -- for reconciliation and rebuild

    async def users(self, request: owner_api.ListUsersRequest) -> owner_api.ListUsersResponse:
        """List the users, at least one of the 256 documents at a time."""
        size = paging.page_size(request.page_size, default=_USERS_PAGE, most=_USERS_PAGE)
        bucket = int(paging.decode(request.page_token, "ListUsers").get("k", 0))
        response = owner_api.ListUsersResponse()
        while bucket < USER_BUCKETS and len(response.user_ids) < size:
            response.user_ids.extend(await self._indexes.users(bucket))
            bucket += 1
        if bucket < USER_BUCKETS:
            response.next_page_token = paging.encode({"k": bucket}, "ListUsers")
        return response

    async def revisions(self, request: owner_api.ListRevisionsRequest) -> owner_api.ListRevisionsResponse:
        """List a user's conversations with their revisions, tombstones included."""
        if not request.user_id:
            raise InvalidArgumentError({"user_id": "must be set"})
        size = paging.page_size(request.page_size, default=_REVISIONS_PAGE, most=_REVISIONS_PAGE)
        scope = ("ListRevisions", request.user_id)
        cursor = paging.decode(request.page_token, *scope)
        bucket = int(cursor["k"]) if cursor else None
        position = int(cursor["p"]) if cursor else None
        limit = datetime.now(UTC) - timedelta(seconds=TOMBSTONE_SECONDS)
        response = owner_api.ListRevisionsResponse()
        wanted: list[str] = []
        async for current, place, entry in self._indexes.newest_first(
            request.user_id, bucket=bucket, position=position
        ):
            if entry.HasField("delete_time") and entry.delete_time.ToDatetime(UTC) < limit:
                continue
            if len(wanted) == size:
                response.next_page_token = paging.encode({"k": current, "p": place}, *scope)
                break
            wanted.append(entry.conversation_id)
        for start in range(0, len(wanted), _HEADS_AT_ONCE):
            keys = [head_key(request.user_id, one) for one in wanted[start : start + _HEADS_AT_ONCE]]
            found = await self._store.state.get_many(keys, confirm=keys)
            for key in keys:
                if key in found:
                    head = document_pb2.Head.FromString(found[key].value)
                    response.revisions.append(_revision(head))
        return response

    async def republish(self, request: owner_api.RepublishEventsRequest) -> owner_api.RepublishEventsResponse:
        """Publish the events of some revisions again."""
        check_span(request.first_revision, request.last_revision)
        stored = await self._store.find(request.user_id, request.conversation_id)
        if stored is None:
            raise NotFoundError("conversation", request.conversation_id)
        wanted = range(request.first_revision, request.last_revision + 1)
        references = await self._references(request.user_id, stored.head, wanted)
        published = await publish_again(self._store.outbox, references, request.first_revision, request.last_revision)
        return owner_api.RepublishEventsResponse(published=published)

    async def _references(
        self, user_id: str, head: document_pb2.Head, wanted: range
    ) -> list[runtime_pb2.EventReference]:
        keys = [
            revision_key(user_id, head.conversation.id, head.incarnation, revision)
            for revision in range(wanted.start, min(wanted.stop, head.revision + 1))
        ]
        found: dict[str, Item] = {}
        for start in range(0, len(keys), _ROWS_AT_ONCE):
            found |= await self._store.state.get_many(keys[start : start + _ROWS_AT_ONCE])
        return [runtime_pb2.EventReference.FromString(found[key].value) for key in keys if key in found]

    # -- time to live

    async def sweep(self) -> int:
        """Delete what is past its time to live, as a caller would; gives how many."""
        deleted = 0
        async for user_id in self._indexes.all_users():
            async for _, _, entry in self._indexes.newest_first(user_id):
                if not entry.expires or entry.HasField("delete_time"):
                    continue
                stored = await self._store.find(user_id, entry.conversation_id)
                if stored is None or stored.head.HasField("delete_time"):
                    continue
                if expired(stored.head, datetime.now(UTC)):
                    etag = str(stored.head.revision)
                    request = api.DeleteConversationRequest(conversation_id=entry.conversation_id, etag=etag)
                    try:
                        await self._writer.delete(user_id, request, cause="expired")
                    except ConflictError:
                        continue  # It was used in the meantime and lives on.
                    deleted += 1
        return deleted

    async def sweep_forever(self, seconds: float) -> None:
        """Sweep every so often; run in the background."""
        while True:
            await asyncio.sleep(seconds)
            if deleted := await self.sweep():
                _log.info("expired_conversations_deleted", count=deleted)

    # -- erasure

    async def request_erasure(self, user_id: str) -> str:
        """Close the user's index and tell everyone; gives the erasure's id. Repeating it gives the same."""
        async with self._store.locks.alone(self._indexes.key(user_id)):
            for _ in range(_ATTEMPTS):
                index, item = await self._indexes.read(user_id)
                if index.erasure_id:
                    return str(index.erasure_id)
                now = datetime.now(UTC)
                index.erasure_id = new_id()
                index.erase_time.CopyFrom(timestamp(now))
                payload = event_pb2.UserErasedEvent(erasure_id=index.erasure_id, request_time=timestamp(now))
                try:
                    await self._tell(user_id, index, item, topics.USER_ERASED, payload)
                except ConflictError:
                    continue
                return str(index.erasure_id)
        raise ConflictError("other writers kept winning; try again")

    async def _tell(
        self, user_id: str, index: document_pb2.UserIndex, item: Item | None, topic: str, payload: Any
    ) -> None:
        """Write a user's index with an event about the user."""
        change = Change(
            entity_type="user",
            entity_id=user_id,
            user_id=user_id,
            revision=0,
            incarnation=0,
            time=datetime.now(UTC),
        )
        # There are no revisions of a user: the erasure itself tells these events apart.
        events = build_events(
            change,
            {topic: json_format.MessageToDict(payload)},
            id_prefix=f"{topic}.{payload.erasure_id}.{self._service}",
        )
        put = Put(index_key(user_id), index.SerializeToString(), etag=item.etag if item else "", create=item is None)
        await self._store.outbox.commit([put], runtime_pb2.OutboxRow(events=events))

    async def erasure(self, user_id: str) -> api.GetErasureResponse:
        """Tell how far an erasure has come. Raises NotFoundError."""
        index, _ = await self._indexes.read(user_id)
        if not index.erasure_id:
            raise NotFoundError("erasure", user_id)
        ends = index.erase_time.ToDatetime(UTC) + timedelta(seconds=max(TTL_SECONDS, TOMBSTONE_SECONDS))
        return api.GetErasureResponse(
            erasure_id=index.erasure_id,
            request_time=index.erase_time,
            expire_time=timestamp(ends),
            receipts=[
                api.ErasureReceipt(service=one.service, complete_time=one.complete_time, items=one.items)
                for one in index.receipts
            ],
        )

    async def on_user_erased(self, events: Sequence[TopicEvent]) -> list[Outcome]:
        """Delete all that an erased user had, then report it."""
        return [await self._guard(event, self._erase) for event in events]

    async def on_erasure_completed(self, events: Sequence[TopicEvent]) -> list[Outcome]:
        """Note the receipt of a service."""
        return [await self._guard(event, self._note) for event in events]

    async def _guard(self, event: TopicEvent, handle: Any) -> Outcome:
        try:
            body = json.loads(event.data)
            await handle(body["userId"], body["data"])
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("event_not_readable", topic=event.topic, id=event.id, error=str(error))
            return Outcome.DROP
        except GaggleError as error:
            _log.warning("event_put_off", topic=event.topic, id=event.id, error=str(error))
            return Outcome.RETRY
        return Outcome.SUCCESS

    async def _erase(self, user_id: str, data: dict[str, Any]) -> None:
        items = 0
        async for _, _, entry in self._indexes.newest_first(user_id):
            items += 1
            request = api.DeleteConversationRequest(conversation_id=entry.conversation_id)
            try:
                await self._writer.delete(user_id, request, cause="erased")
            except NotFoundError:
                continue
        payload = event_pb2.UserErasureCompletedEvent(
            erasure_id=str(data["erasureId"]), service=self._service, items=items
        )
        for _ in range(_ATTEMPTS):
            index, item = await self._indexes.read(user_id)
            if any(one.service == self._service for one in index.receipts):
                return
            _receive(index, payload)
            try:
                await self._tell(user_id, index, item, topics.USER_ERASURE_COMPLETED, payload)
            except ConflictError:
                continue
            return
        raise ConflictError("other writers kept winning")

    async def _note(self, user_id: str, data: dict[str, Any]) -> None:
        receipt = event_pb2.UserErasureCompletedEvent()
        json_format.ParseDict(data, receipt, ignore_unknown_fields=True)
        for _ in range(_ATTEMPTS):
            index, item = await self._indexes.read(user_id)
            if index.erasure_id != receipt.erasure_id or any(one.service == receipt.service for one in index.receipts):
                return
            _receive(index, receipt)
            put = Put(index_key(user_id), index.SerializeToString(), etag=item.etag if item else "")
            try:
                await self._store.state.commit([put])
            except CommitFailedError:
                continue  # Whether it happened shows when it is read again.
            return
        raise ConflictError("other writers kept winning")


def _receive(index: document_pb2.UserIndex, receipt: event_pb2.UserErasureCompletedEvent) -> None:
    index.receipts.add(service=receipt.service, complete_time=timestamp(datetime.now(UTC)), items=receipt.items)


def _revision(head: document_pb2.Head) -> owner_api.ConversationRevision:
    deleted = head.HasField("delete_time")
    return owner_api.ConversationRevision(
        conversation_id=head.conversation.id,
        revision=head.revision,
        incarnation=head.incarnation,
        deleted=deleted,
        conversation=None if deleted else domain.describe(head),
    )
