"""What is found without a query: a user's tasks with reminders, and what may be due when.

Both kinds of documents are written in the transaction of the change. A user's index holds the newest 256 tasks; full,
it becomes a bucket of its own. What may be due lies in buckets of five minutes, sixteen of each, so that writers seldom
meet; an entry names an occurrence of a reminder, and is taken out by the sweep alone.
"""

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime

from gaggle.common.v1 import error_reason_pb2
from gaggle.reminder.state.v1 import document_pb2
from services.reminder.domain import Job
from services.runtime.errors import FailedPreconditionError
from services.runtime.keys import user_part
from services.runtime.state import Item, Put, StateStore
from services.runtime.times import timestamp
from services.runtime.users import Users

BUCKET_SECONDS = 300
SHARDS = 16
ENTRIES = 256


def document_key(user_id: str, task_id: str) -> str:
    """Key of a task's reminders."""
    return f"reminder:{user_part(user_id)}:{task_id}"


def index_key(user_id: str, bucket: int | None = None) -> str:
    """Key of a user's index: the newest tasks, or a bucket of 256 older ones."""
    return f"reminders:{user_part(user_id)}" + ("" if bucket is None else f":b{bucket}")


def due_key(bucket: int, shard: int, chunk: int | None = None) -> str:
    """Key of what may be due: the newest entries, or a chunk of 256 further ones."""
    return f"due:{bucket}:{shard}" + ("" if chunk is None else f":c{chunk}")


def bucket_of(moment: datetime) -> int:
    """Which five minutes since 1970 a time lies in."""
    return int(moment.timestamp() // BUCKET_SECONDS)


def shard_of(user_id: str, task_id: str) -> int:
    """Which of the sixteen documents of a bucket a task's reminders lie in."""
    return zlib.crc32(f"{user_id}\0{task_id}".encode()) % SHARDS


def put(key: str, value: bytes, item: Item | None) -> Put:
    """Write a document over what was read of it."""
    return Put(key, value, etag=item.etag if item else "", create=item is None)


class DueIndex:
    """Plans the entries that go with a change."""

    @staticmethod
    def keys(user_id: str, jobs: Sequence[Job], now: datetime) -> list[str]:
        """Give the documents that the jobs are entered in: what is late already, among what is due now."""
        return sorted({due_key(bucket_of(max(one.remind_at, now)), shard_of(user_id, one.task_id)) for one in jobs})

    @staticmethod
    def adding(user_id: str, jobs: Sequence[Job], now: datetime, found: dict[str, Item]) -> list[Put]:
        """Plan to enter jobs, whose documents have been read."""
        puts: list[Put] = []
        documents: dict[str, document_pb2.DueBucket] = {}
        for job in jobs:
            bucket, shard = bucket_of(max(job.remind_at, now)), shard_of(user_id, job.task_id)
            key = due_key(bucket, shard)
            if key not in documents:
                item = found.get(key)
                document = document_pb2.DueBucket.FromString(item.value) if item else document_pb2.DueBucket()
                if len(document.entries) >= ENTRIES:
                    chunk = document_pb2.DueBucket(entries=document.entries)
                    puts.append(Put(due_key(bucket, shard, document.chunks), chunk.SerializeToString(), create=True))
                    document.chunks += 1
                    del document.entries[:]
                documents[key] = document
            documents[key].entries.add(
                user_id=user_id,
                task_id=job.task_id,
                reminder_id=job.reminder_id,
                occurrence=job.occurrence,
                remind_at=timestamp(job.remind_at),
            )
        return puts + [put(key, one.SerializeToString(), found.get(key)) for key, one in documents.items()]


class UserIndex:
    """Reads a user's index, and plans the writes that go with a task's first reminder."""

    def __init__(self, state: StateStore) -> None:
        """`state` is the service's store."""
        self._state = state
        self.users = Users(state)

    async def read(self, user_id: str) -> tuple[document_pb2.ReminderIndex, Item | None]:
        """Read the newest entries."""
        item = await self._state.get(index_key(user_id))
        return (document_pb2.ReminderIndex.FromString(item.value) if item else document_pb2.ReminderIndex()), item

    async def adding(self, user_id: str, task_id: str) -> tuple[int, list[Put]]:
        """Plan to enter a task; gives its bucket. Raises FailedPreconditionError for an erased user."""
        index, item = await self.read(user_id)
        if index.HasField("erase_time"):
            raise FailedPreconditionError("the user has been erased", reason=error_reason_pb2.ERROR_REASON_USER_ERASED)
        puts = [] if item else await self.users.entering(user_id)
        if len(index.task_ids) >= ENTRIES:
            keys = [document_key(user_id, one) for one in index.task_ids]
            # Those whose reminders are all gone need no place among the older ones.
            there = await self._state.get_many(keys, confirm=keys)
            kept = [one for one, key in zip(index.task_ids, keys, strict=True) if key in there]
            bucket = document_pb2.ReminderIndexBucket(task_ids=kept)
            if kept:
                puts.append(Put(index_key(user_id, index.buckets), bucket.SerializeToString(), create=True))
            index.buckets += 1
            del index.task_ids[:]
        index.task_ids.append(task_id)
        puts.append(put(index_key(user_id), index.SerializeToString(), item))
        return index.buckets, puts

    async def close(self, user_id: str, write: Callable[[Sequence[Put]], Awaitable[None]]) -> None:
        """See that nothing is created any more for a user."""
        index, item = await self.read(user_id)
        if not index.HasField("erase_time"):
            index.erase_time.CopyFrom(timestamp(datetime.now(UTC)))
            await write([put(index_key(user_id), index.SerializeToString(), item)])

    async def newest_first(
        self, user_id: str, *, bucket: int | None = None, position: int | None = None
    ) -> AsyncIterator[tuple[int, int, str]]:
        """Walk a user's tasks from a place on: bucket, position in it, task."""
        index, _ = await self.read(user_id)
        current = index.buckets if bucket is None else bucket
        while current >= 0:
            task_ids: Sequence[str] = index.task_ids
            if current != index.buckets:
                item = await self._state.get(index_key(user_id, current))
                task_ids = document_pb2.ReminderIndexBucket.FromString(item.value).task_ids if item else []
            start = len(task_ids) - 1 if position is None else min(position, len(task_ids) - 1)
            for place in range(start, -1, -1):
                yield current, place, task_ids[place]
            current, position = current - 1, None
