"""Things that a service owns, each under its user's key, with revisions, an index by user, and their events.

A head document holds one entity. A change reads head and request row together, and commits head, request row, index
and events in one transaction with the ETag just read; a lost race reads again. So a repeated request has one effect,
every revision has its events, and a list is never behind.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.common.v1 import error_reason_pb2
from gaggle.runtime.state.v1 import document_pb2, entity_pb2
from services.runtime import paging
from services.runtime.call import trace_metadata
from services.runtime.errors import AlreadyExistsError, ConflictError, FailedPreconditionError, NotFoundError
from services.runtime.events import Change, build_events
from services.runtime.keys import user_part
from services.runtime.locks import KeyedLocks
from services.runtime.outbox import Outbox
from services.runtime.owning import publish_again
from services.runtime.requests import first_answer, new_row, row_key
from services.runtime.state import CommitFailedError, Item, Put, Remove, StateStore
from services.runtime.users import Users

TOMBSTONE_SECONDS = 7 * 24 * 3600
INDEX_ENTRIES = 256
MAX_REFERENCES = 1024
MAX_SCANNED = 512
"""Heads that one page of a filtered list reads at most."""

_HEADS_AT_ONCE = 32
_ATTEMPTS = 12
H = TypeVar("H")


@dataclass(slots=True)
class Draft(Generic[H]):
    """A change in the making: what is committed together."""

    head: H
    answer: bytes
    """What a repeated request is given: ids, numbers and times, never text."""

    events: Mapping[str, Mapping[str, Any]]
    """Topic to payload in proto3 JSON, published in that order."""

    operations: list[Put | Remove] = field(default_factory=list)
    clean_ups: list[document_pb2.CleanUp] = field(default_factory=list)


class Entities(Generic[H]):
    """The entities of one kind."""

    def __init__(
        self,
        state: StateStore,
        outbox: Outbox,
        users: Users,
        *,
        kind: str,
        head_class: Callable[[], H],
    ) -> None:
        """`kind` names it in keys, events and errors; its index is the plural by `s`."""
        self.state = state
        self.outbox = outbox
        self.kind = kind
        self.changed: Callable[[str, str], None] = lambda _user, _entity: None
        """Called after each commit with user and id: wakes watchers of this process."""

        self._users = users
        self._head_class = head_class
        self._locks = KeyedLocks()

    def key(self, user_id: str, entity_id: str) -> str:
        """Key of a head; what belongs to the entity beside it has this key and a suffix."""
        return f"{self.kind}:{user_part(user_id)}:{entity_id}"

    def index_key(self, user_id: str, bucket: int | None = None) -> str:
        """Key of a user's newest entries, or of a bucket of older ones."""
        return f"{self.kind}s:{user_part(user_id)}" + ("" if bucket is None else f":b{bucket}")

    # -- reading

    def _parse(self, item: Item) -> Any:
        head: Any = self._head_class()
        head.ParseFromString(item.value)
        return head

    async def find(self, user_id: str, entity_id: str) -> H | None:
        """Read a head, a tombstone too; None if there is none. Strong."""
        item = await self.state.get(self.key(user_id, entity_id))
        return None if item is None else self._parse(item)

    async def get(self, user_id: str, entity_id: str) -> H:
        """Read the head of an entity that is there. Raises NotFoundError. Strong."""
        head: Any = await self.find(user_id, entity_id)
        if head is None or head.entity.HasField("delete_time"):
            raise NotFoundError(self.kind, entity_id)
        return head  # type: ignore[no-any-return]

    async def get_many(self, user_id: str, ids: Sequence[str]) -> list[H]:
        """Read the heads of those that are there, in the order given."""
        heads: list[Any] = []
        for start in range(0, len(ids), _HEADS_AT_ONCE):
            keys = [self.key(user_id, one) for one in ids[start : start + _HEADS_AT_ONCE]]
            found = await self.state.get_many(keys, confirm=keys)
            heads += [self._parse(found[key]) for key in keys if key in found]
        return [one for one in heads if not one.entity.HasField("delete_time")]

    async def page(
        self, user_id: str, *, size: int, token: str, scope: Sequence[str], match: Callable[[H], bool]
    ) -> tuple[list[H], str]:
        """Give a page of heads that match, newest created first, and the token of the next; "" if that was all.

        Reads at most MAX_SCANNED heads, so that a page may be short of what was asked. Raises InvalidArgumentError.
        """
        names = (f"{self.kind}s", user_id, *scope)
        cursor = paging.decode(token, *names)
        bucket, position = (int(cursor["b"]), int(cursor["p"])) if cursor else (None, None)
        found: list[H] = []
        waiting: list[tuple[int, int, str]] = []
        scanned = 0

        async def read() -> tuple[int, int] | None:
            """Look at those waiting; gives the place of the first that the page has no room for."""
            heads = {one.entity.id: one for one in await self._heads(user_id, [one for _, _, one in waiting])}
            for current, place, entity_id in waiting:
                head = heads.get(entity_id)
                if head is None or not match(head):
                    continue
                if len(found) == size:
                    return current, place
                found.append(head)
            waiting.clear()
            return None

        async for current, place, entry in self.newest_first(user_id, bucket=bucket, position=position):
            if scanned >= MAX_SCANNED and not waiting:
                return found, paging.encode({"b": current, "p": place}, *names)
            if entry.HasField("delete_time"):
                continue
            waiting.append((current, place, entry.entity_id))
            scanned += 1
            if len(waiting) == _HEADS_AT_ONCE and (stop := await read()):
                return found, paging.encode({"b": stop[0], "p": stop[1]}, *names)
        stop = await read()
        return found, paging.encode({"b": stop[0], "p": stop[1]}, *names) if stop else ""

    async def _heads(self, user_id: str, ids: Sequence[str]) -> list[Any]:
        return list(await self.get_many(user_id, ids))

    async def newest_first(
        self, user_id: str, *, bucket: int | None = None, position: int | None = None
    ) -> AsyncIterator[tuple[int, int, entity_pb2.EntityEntry]]:
        """Walk a user's entries, deleted ones included, from a place on: bucket, position in it, entry."""
        index, _ = await self._index(user_id)
        current = index.buckets if bucket is None else bucket
        while current >= 0:
            entries: Sequence[entity_pb2.EntityEntry] = index.entries
            if current != index.buckets:
                item = await self.state.get(self.index_key(user_id, current))
                entries = entity_pb2.EntityBucket.FromString(item.value).entries if item else []
            start = len(entries) - 1 if position is None else min(position, len(entries) - 1)
            for place in range(start, -1, -1):
                yield current, place, entries[place]
            current, position = current - 1, None

    async def _index(self, user_id: str) -> tuple[entity_pb2.EntityIndex, Item | None]:
        item = await self.state.get(self.index_key(user_id))
        return (entity_pb2.EntityIndex.FromString(item.value) if item else entity_pb2.EntityIndex()), item

    # -- changing

    async def create(
        self,
        user_id: str,
        entity_id: str,
        request_id: str,
        body_hash: bytes,
        build: Callable[[entity_pb2.Entity], "Draft[H] | Awaitable[Draft[H]]"],
    ) -> bytes:
        """Create an entity, once for each request_id; give the answer.

        `build` gets the entity's beginning, id, revision and times set, to put it into a head; it may be called
        several times. Raises AlreadyExistsError, ConflictError, FailedPreconditionError for an erased user, and what
        `build` raises.
        """
        key = self.key(user_id, entity_id)
        request_key = row_key(user_id, request_id) if request_id else ""
        async with self._locks.alone(self.index_key(user_id)):
            for attempt in range(_ATTEMPTS):
                found = await self._read([key, request_key] if request_id else [key])
                if (answer := first_answer(found.get(request_key), body_hash)) is not None:
                    return answer
                if key in found:
                    deleted = self._parse(found[key]).entity.HasField("delete_time")
                    why = "was deleted less than seven days ago" if deleted else "exists already"
                    raise AlreadyExistsError(self.kind, entity_id, why=why)
                now = datetime.now(UTC)
                entity = entity_pb2.Entity(id=entity_id, revision=1, incarnation=int(now.timestamp()))
                entity.create_time.FromDatetime(now)
                entity.update_time.FromDatetime(now)
                entity.index_bucket, puts = await self._entering(user_id, entity)
                draft: Draft[H] = await _made(build(entity))
                draft.operations += puts
                if await self._save(user_id, draft, None, request_key, body_hash):
                    return draft.answer
                await _pause(attempt)
        raise ConflictError("other writers kept winning; try again")

    async def change(
        self,
        user_id: str,
        entity_id: str,
        request_id: str,
        body_hash: bytes,
        apply: Callable[[H], "Draft[H] | bytes | Awaitable[Draft[H] | bytes]"],
    ) -> bytes:
        """Change an entity that is there, once for each request_id; give the answer.

        `apply` gets a head of its own to change, calls `advance` if there is something to change, and gives a Draft, or
        an answer if there is not. It may be called several times. Raises NotFoundError, ConflictError, and
        what `apply` raises.
        """
        key = self.key(user_id, entity_id)
        request_key = row_key(user_id, request_id) if request_id else ""
        async with self._locks.alone(key):
            for attempt in range(_ATTEMPTS):
                found = await self._read([key, request_key] if request_id else [key])
                if (answer := first_answer(found.get(request_key), body_hash)) is not None:
                    return answer
                item = found.get(key)
                if item is None:
                    raise NotFoundError(self.kind, entity_id)
                head = self._parse(item)
                if head.entity.HasField("delete_time"):
                    raise NotFoundError(self.kind, entity_id)
                draft: Draft[H] | bytes = await _made(apply(head))
                if isinstance(draft, bytes):
                    return draft
                if await self._save(user_id, draft, item, request_key, body_hash):
                    return draft.answer
                await _pause(attempt)
        raise ConflictError("other writers kept winning; try again")

    async def delete(
        self,
        user_id: str,
        entity_id: str,
        request_id: str,
        body_hash: bytes,
        bury: Callable[[H], "Draft[H] | Awaitable[Draft[H]]"],
    ) -> None:
        """Take an entity away; one that was deleted lately is OK.

        `bury` gets the head and gives a Draft whose head becomes the tombstone: what is personal is its to leave out.
        Raises NotFoundError, ConflictError, and what `bury` raises.
        """

        async def apply(head: Any) -> Draft[H]:
            draft: Draft[H] = await _made(bury(head))
            advance(head.entity)
            tombstone: Any = draft.head
            tombstone.entity.CopyFrom(head.entity)
            tombstone.entity.delete_time.CopyFrom(head.entity.update_time)
            draft.operations += await self._leaving(user_id, tombstone.entity)
            return draft

        try:
            await self.change(user_id, entity_id, request_id, body_hash, apply)
        except NotFoundError:
            if await self.find(user_id, entity_id) is None:
                raise

    async def _read(self, keys: Sequence[str]) -> dict[str, Item]:
        if len(keys) == 1:
            item = await self.state.get(keys[0])
            return {} if item is None else {keys[0]: item}
        return await self.state.get_many(keys, confirm=keys[:1])

    async def _save(self, user_id: str, draft: Draft[H], item: Item | None, request_key: str, body_hash: bytes) -> bool:
        """Commit; tells whether it was, or another writer was faster."""
        head: Any = draft.head
        entity: entity_pb2.Entity = head.entity
        number = await self.outbox.reserve()
        entity.events.add(revision=entity.revision, slot=number.slot, epoch=number.epoch, number=number.number)
        if len(entity.events) > MAX_REFERENCES:
            del entity.events[: len(entity.events) - MAX_REFERENCES]
        change = Change(
            entity_type=self.kind,
            entity_id=entity.id,
            user_id=user_id,
            revision=entity.revision,
            incarnation=entity.incarnation,
            time=entity.update_time.ToDatetime(UTC),
            traceparent=dict(trace_metadata()).get("traceparent", ""),
        )
        row = document_pb2.OutboxRow(events=build_events(change, draft.events), clean_ups=draft.clean_ups)
        ttl = TOMBSTONE_SECONDS if entity.HasField("delete_time") else 0
        put = Put(
            self.key(user_id, entity.id),
            head.SerializeToString(),
            etag=item.etag if item else "",
            create=item is None,
            ttl_seconds=ttl,
        )
        ledger = [new_row(request_key, body_hash, draft.answer)] if request_key else []
        try:
            await self.outbox.commit_reserved(number, row, [*draft.operations, *ledger, put])
        except ConflictError:
            return False
        self.changed(user_id, entity.id)
        return True

    # -- the index

    async def _entering(self, user_id: str, entity: entity_pb2.Entity) -> tuple[int, list[Put]]:
        index, item = await self._index(user_id)
        if index.HasField("erase_time"):
            raise FailedPreconditionError("the user has been erased", reason=error_reason_pb2.ERROR_REASON_USER_ERASED)
        puts = [] if item else await self._users.entering(user_id)
        if len(index.entries) >= INDEX_ENTRIES:
            limit = datetime.now(UTC) - timedelta(seconds=TOMBSTONE_SECONDS)
            kept = [one for one in index.entries if not one.HasField("delete_time") or _time(one.delete_time) > limit]
            bucket = entity_pb2.EntityBucket(entries=kept)
            # An empty value can't be stored; an empty bucket need not be.
            if kept:
                puts.append(Put(self.index_key(user_id, index.buckets), bucket.SerializeToString(), create=True))
            index.buckets += 1
            del index.entries[:]
        index.entries.add(entity_id=entity.id, create_time=entity.create_time)
        puts.append(_put(self.index_key(user_id), index.SerializeToString(), item))
        return index.buckets, puts

    async def _leaving(self, user_id: str, entity: entity_pb2.Entity) -> list[Put]:
        index, item = await self._index(user_id)
        document: entity_pb2.EntityIndex | entity_pb2.EntityBucket = index
        key = self.index_key(user_id)
        if entity.index_bucket != index.buckets:
            key = self.index_key(user_id, entity.index_bucket)
            item = await self.state.get(key)
            document = entity_pb2.EntityBucket.FromString(item.value) if item else entity_pb2.EntityBucket()
        entry = next((one for one in document.entries if one.entity_id == entity.id), None)
        if entry is None or item is None:
            return []
        entry.delete_time.CopyFrom(entity.delete_time)
        return [_put(key, document.SerializeToString(), item)]

    # -- for reconciliation, rebuild and erasure

    async def revisions(self, user_id: str, ids: Sequence[str]) -> list[entity_pb2.Entity]:
        """Give the entities of these ids, tombstones included."""
        found: list[entity_pb2.Entity] = []
        for start in range(0, len(ids), _HEADS_AT_ONCE):
            keys = [self.key(user_id, one) for one in ids[start : start + _HEADS_AT_ONCE]]
            items = await self.state.get_many(keys, confirm=keys)
            found += [self._parse(items[key]).entity for key in keys if key in items]
        return found

    async def republish(self, user_id: str, entity_id: str, first: int, last: int) -> int:
        """Publish the events of these revisions again; gives how many. Raises NotFoundError, UnavailableError."""
        head: Any = await self.find(user_id, entity_id)
        if head is None:
            raise NotFoundError(self.kind, entity_id)
        return await publish_again(self.outbox, head.entity.events, first, last)

    async def close(self, user_id: str) -> None:
        """Let nothing more be created for a user. Raises ConflictError."""
        async with self._locks.alone(self.index_key(user_id)):
            for attempt in range(_ATTEMPTS):
                index, item = await self._index(user_id)
                if index.HasField("erase_time"):
                    return
                index.erase_time.FromDatetime(datetime.now(UTC))
                try:
                    await self.state.commit([_put(self.index_key(user_id), index.SerializeToString(), item)])
                except CommitFailedError:
                    await _pause(attempt)  # Whether it happened shows when it is read again.
                    continue
                return
        raise ConflictError("other writers kept winning")


def advance(entity: entity_pb2.Entity) -> None:
    """Take the next revision, now."""
    entity.revision += 1
    entity.update_time.FromDatetime(datetime.now(UTC))


async def _made(draft: Any) -> Any:
    return await draft if isinstance(draft, Awaitable) else draft


async def _pause(attempt: int) -> None:
    await asyncio.sleep(random.uniform(0, min(0.005 * 2**attempt, 0.2)))  # noqa: S311 - spreads rivals, keeps no secret


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)


def _put(key: str, value: bytes, item: Item | None) -> Put:
    return Put(key, value, etag=item.etag if item else "", create=item is None)
