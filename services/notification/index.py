"""Keys, and what is found without a query: who has to be looked at when, and what was given up.

Both are written in the transaction of the change. Users to be looked at lie in buckets of a minute, sixteen of each, so
that writers seldom meet; an entry is a hint, and is taken out by the sweep alone. Parked deliveries lie in buckets of
64, whose number is in their ids.
"""

import zlib
from collections.abc import Sequence
from datetime import datetime

from gaggle.notification.state.v1 import document_pb2
from gaggle.notification.v1 import notification_service_pb2 as api
from services.notification.domain import id_at
from services.runtime.keys import user_part
from services.runtime.state import Item, Put, Remove, StateStore
from services.runtime.times import timestamp

BUCKET_SECONDS = 60
SHARDS = 16
ENTRIES = 256
PARKED_ENTRIES = 64
PARKED_KEY = "parked"
_BUCKETS_AT_ONCE = 64


def inbox_key(user_id: str) -> str:
    """Key of a user's inbox."""
    return f"inbox:{user_part(user_id)}"


def page_key(user_id: str, page: int) -> str:
    """Key of 32 older notifications."""
    return f"inbox:{user_part(user_id)}:p{page}"


def taken_key(user_id: str, digest: str) -> str:
    """Key of an event that has had its effect."""
    return f"taken:{user_part(user_id)}:{digest}"


def due_key(bucket: int, shard: int, chunk: int | None = None) -> str:
    """Key of the users to be looked at: the newest entries, or a chunk of 256 further ones."""
    return f"due:{bucket}:{shard}" + ("" if chunk is None else f":c{chunk}")


def parked_key(bucket: int) -> str:
    """Key of a bucket of parked deliveries."""
    return f"parked:{bucket}"


def bucket_of(moment: datetime) -> int:
    """Which minute since 1970 a time lies in."""
    return int(moment.timestamp() // BUCKET_SECONDS)


def shard_of(user_id: str) -> int:
    """Which of the sixteen documents of a bucket a user lies in."""
    return zlib.crc32(user_id.encode()) % SHARDS


def put(key: str, value: bytes, item: Item | None) -> Put:
    """Write a document over what was read of it."""
    return Put(key, value, etag=item.etag if item else "", create=item is None)


def entering(user_id: str, at: datetime, key: str, item: Item | None) -> list[Put]:
    """Plan to enter a user in a bucket that has been read: that of `at`, or of now if that has gone by."""
    document = document_pb2.DueBucket.FromString(item.value) if item else document_pb2.DueBucket()
    puts = []
    if len(document.entries) >= ENTRIES:
        chunk = document_pb2.DueBucket(entries=document.entries)
        number = document.chunks
        puts.append(Put(f"{key}:c{number}", chunk.SerializeToString(), create=True))
        document.chunks += 1
        del document.entries[:]
    document.entries.add(user_id=user_id, time=timestamp(at))
    return [*puts, put(key, document.SerializeToString(), item)]


class Parked:
    """Reads what was given up, and plans the writes that add to it and take from it."""

    def __init__(self, state: StateStore) -> None:
        """`state` is the service's store."""
        self._state = state

    async def adding(self, parked: Sequence[api.ParkedDelivery]) -> list[Put | Remove]:
        """Plan to park deliveries, and give them their ids."""
        index, index_item = await self._index()
        item = await self._state.get(parked_key(index.last))
        document = document_pb2.ParkedBucket.FromString(item.value) if item else document_pb2.ParkedBucket()
        puts: list[Put | Remove] = []
        before = index.last
        for one in parked:
            if document.entered >= PARKED_ENTRIES:
                puts.append(put(parked_key(index.last), document.SerializeToString(), item))
                index.last += 1
                document, item = document_pb2.ParkedBucket(), None
            one.id = id_at(index.last)
            document.entered += 1
            document.parked.append(one)
        puts.append(put(parked_key(index.last), document.SerializeToString(), item))
        if index_item is None or index.last != before:
            puts.append(put(PARKED_KEY, index.SerializeToString(), index_item))
        return puts

    async def buckets(self, first: int = 0) -> "list[tuple[int, Item, document_pb2.ParkedBucket]]":
        """Read the next buckets that there are, from one on; none: that was all."""
        index, _ = await self._index()
        first = max(first, index.first)
        while first <= index.last:
            numbers = range(first, min(first + _BUCKETS_AT_ONCE, index.last + 1))
            found = await self._state.get_many([parked_key(one) for one in numbers])
            if there := [one for one in numbers if parked_key(one) in found]:
                items = [(one, found[parked_key(one)]) for one in there]
                return [(one, item, document_pb2.ParkedBucket.FromString(item.value)) for one, item in items]
            first = numbers.stop
        return []

    async def bucket(self, number: int) -> tuple[Item | None, document_pb2.ParkedBucket]:
        """Read a bucket."""
        item = await self._state.get(parked_key(number))
        return item, document_pb2.ParkedBucket.FromString(item.value) if item else document_pb2.ParkedBucket()

    async def taking(self, number: int, item: Item, document: document_pb2.ParkedBucket) -> list[Put | Remove]:
        """Plan to write a bucket from which something was taken; an empty one goes if no more is put into it."""
        if document.parked or document.entered < PARKED_ENTRIES:
            return [put(parked_key(number), document.SerializeToString(), item)]
        operations: list[Put | Remove] = [Remove(parked_key(number), etag=item.etag)]
        index, index_item = await self._index()
        if number == index.last:
            # Its number is not used again.
            index.last += 1
            index.first = index.last if index.first == number else index.first
            operations.append(put(PARKED_KEY, index.SerializeToString(), index_item))
        elif number == index.first:
            following = await self.buckets(number + 1)
            index.first = following[0][0] if following else index.last
            operations.append(put(PARKED_KEY, index.SerializeToString(), index_item))
        return operations

    async def _index(self) -> tuple[document_pb2.ParkedIndex, Item | None]:
        item = await self._state.get(PARKED_KEY)
        # From 1 on: an index of zeros would be no bytes at all, which no store takes.
        return (
            document_pb2.ParkedIndex.FromString(item.value) if item else document_pb2.ParkedIndex(first=1, last=1)
        ), item
