"""Which conversations a user has, and which users there are.

A user's index document holds the newest 256 entries; full, it becomes a bucket of its own. It is written in the
transaction of the create, so a list is never behind. A user's first conversation enters the user in one of 256
`users` documents, which sweep, reconciliation, rebuild and erasure walk.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta

from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.state.v1 import document_pb2
from services.conversation.store import (
    INDEX_BUCKET_ENTRIES,
    TOMBSTONE_SECONDS,
    index_key,
)
from services.runtime.errors import FailedPreconditionError
from services.runtime.state import Item, Put, StateStore
from services.runtime.users import Users


class UserIndexes:
    """Reads the indexes, and plans the writes that go with a change."""

    def __init__(self, state: StateStore) -> None:
        """`state` is the service's store."""
        self._state = state
        self.users = Users(state)

    @staticmethod
    def key(user_id: str) -> str:
        """Key of the newest entries, which creates of one user contend for."""
        return index_key(user_id)

    async def read(self, user_id: str) -> tuple[document_pb2.UserIndex, Item | None]:
        """Read the newest entries."""
        item = await self._state.get(index_key(user_id))
        return (document_pb2.UserIndex.FromString(item.value) if item else document_pb2.UserIndex()), item

    async def adding(self, user_id: str, head: document_pb2.Head) -> tuple[int, list[Put]]:
        """Plan to enter a new conversation; gives its bucket. Raises FailedPreconditionError for an erased user."""
        index, item = await self.read(user_id)
        if index.HasField("erase_time"):
            raise FailedPreconditionError("the user has been erased", reason=error_reason_pb2.ERROR_REASON_USER_ERASED)
        puts = [] if item else await self.users.entering(user_id)
        if len(index.entries) >= INDEX_BUCKET_ENTRIES:
            limit = datetime.now(UTC) - timedelta(seconds=TOMBSTONE_SECONDS)
            kept = [
                one
                for one in index.entries
                if not one.HasField("delete_time") or one.delete_time.ToDatetime(UTC) > limit
            ]
            bucket = document_pb2.IndexBucket(entries=kept)
            puts.append(Put(index_key(user_id, index.buckets), bucket.SerializeToString(), create=True))
            index.buckets += 1
            del index.entries[:]
        conversation = head.conversation
        index.entries.add(
            conversation_id=conversation.id,
            create_time=conversation.create_time,
            expires=conversation.retention.HasField("ttl"),
        )
        puts.append(_put(index_key(user_id), index.SerializeToString(), item))
        return index.buckets, puts

    async def removing(self, user_id: str, tombstone: document_pb2.Head) -> list[Put]:
        """Plan to mark an entry as deleted."""
        return await self._entry(user_id, tombstone, lambda entry: entry.delete_time.CopyFrom(tombstone.delete_time))

    async def marking(self, user_id: str, before: document_pb2.Head, head: document_pb2.Head) -> list[Put]:
        """Plan to note that a conversation has a time to live now, or no longer."""
        expires = head.conversation.retention.HasField("ttl")
        if expires == before.conversation.retention.HasField("ttl"):
            return []

        def mark(entry: document_pb2.IndexEntry) -> None:
            entry.expires = expires

        return await self._entry(user_id, head, mark)

    async def _entry(
        self, user_id: str, head: document_pb2.Head, change: Callable[[document_pb2.IndexEntry], None]
    ) -> list[Put]:
        index, item = await self.read(user_id)
        document: document_pb2.UserIndex | document_pb2.IndexBucket = index
        key = index_key(user_id)
        if head.index_bucket != index.buckets:
            key = index_key(user_id, head.index_bucket)
            item = await self._state.get(key)
            document = document_pb2.IndexBucket.FromString(item.value) if item else document_pb2.IndexBucket()
        entry = next((one for one in document.entries if one.conversation_id == head.conversation.id), None)
        if entry is None or item is None:
            return []
        change(entry)
        return [_put(key, document.SerializeToString(), item)]

    async def newest_first(
        self, user_id: str, *, bucket: int | None = None, position: int | None = None
    ) -> AsyncIterator[tuple[int, int, document_pb2.IndexEntry]]:
        """Walk a user's entries, deleted ones included, from a place on: bucket, position in it, entry."""
        index, _ = await self.read(user_id)
        current = index.buckets if bucket is None else bucket
        while current >= 0:
            entries: Sequence[document_pb2.IndexEntry] = index.entries
            if current != index.buckets:
                item = await self._state.get(index_key(user_id, current))
                entries = document_pb2.IndexBucket.FromString(item.value).entries if item else []
            start = len(entries) - 1 if position is None else min(position, len(entries) - 1)
            for place in range(start, -1, -1):
                yield current, place, entries[place]
            current, position = current - 1, None


def _put(key: str, value: bytes, item: Item | None) -> Put:
    return Put(key, value, etag=item.etag if item else "", create=item is None)
