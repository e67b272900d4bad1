"""What a user's tasks are found by.

Each user has three lists of buckets of at most 256 entries: open tasks, completed ones in the order of their
completion, and deleted ones, which run out after seven days. An entry holds what lists filter and sort by, and is
written in the transaction of the change, so that a list is never behind. Open tasks are bounded in number, hence
all of them can be sorted; completed ones are not, and are walked newest first.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.message import Message

from gaggle.common.v1 import error_reason_pb2
from gaggle.task.state.v1 import document_pb2
from services.runtime.errors import FailedPreconditionError, TooLargeError
from services.runtime.keys import user_part
from services.runtime.state import Item, Put, Remove, StateStore
from services.runtime.times import timestamp
from services.runtime.users import Users
from services.task import domain

BUCKET_ENTRIES = 256
TOMBSTONE_SECONDS = 7 * 24 * 3600
OPEN = document_pb2.INDEX_LIST_OPEN
COMPLETED = document_pb2.INDEX_LIST_COMPLETED
DELETED = document_pb2.INDEX_LIST_DELETED
_LETTERS = {OPEN: "o", COMPLETED: "c", DELETED: "d"}


def index_key(user_id: str) -> str:
    """Key of a user's index."""
    return f"tasks:{user_part(user_id)}"


def bucket_key(user_id: str, index_list: int, bucket: int) -> str:
    """Key of one bucket of one of its lists."""
    return f"{index_key(user_id)}:{_LETTERS[index_list]}{bucket}"  # type: ignore[index]


class Indexes:
    """Reads indexes."""

    def __init__(self, state: StateStore, max_open_tasks: int) -> None:
        """A user may have so many open tasks."""
        self.state = state
        self.users = Users(state)
        self.max_open_tasks = max_open_tasks

    async def read(self, user_id: str) -> document_pb2.TaskIndex:
        """Read a user's index; an empty one if there is none."""
        item = await self.state.get(index_key(user_id))
        return document_pb2.TaskIndex.FromString(item.value) if item else document_pb2.TaskIndex()

    async def bucket(self, user_id: str, index_list: int, bucket: int) -> Sequence[document_pb2.IndexEntry]:
        """Read a bucket's entries; those of one that is not there are none."""
        item = await self.state.get(bucket_key(user_id, index_list, bucket))
        return document_pb2.IndexBucket.FromString(item.value).entries if item else []

    async def open(self, user_id: str, index: document_pb2.TaskIndex) -> list[document_pb2.IndexEntry]:
        """Read the entries of all open tasks."""
        keys = [bucket_key(user_id, OPEN, number) for number, count in enumerate(index.open) if count]
        found = await self.state.get_many(keys, confirm=keys)
        return [one for item in found.values() for one in document_pb2.IndexBucket.FromString(item.value).entries]

    def change(self, user_id: str, root: Item | None) -> "IndexChange":
        """Begin to plan the writes that go with one commit; `root` is the user's index as it was just read."""
        return IndexChange(self, user_id, root)


class IndexChange:
    """The writes to a user's index that go with one commit."""

    def __init__(self, indexes: Indexes, user_id: str, root: Item | None) -> None:
        """Buckets are read when they are needed."""
        self._indexes = indexes
        self._user_id = user_id
        self._root_item = root
        self._root_before = root.value if root else b""
        self._root = document_pb2.TaskIndex.FromString(self._root_before)
        self._entering: list[Put] = []
        self._buckets: dict[tuple[int, int], tuple[document_pb2.IndexBucket, Item | None]] = {}

    async def add(self, document: document_pb2.TaskDocument) -> None:
        """Enter an open task, new or reopened. Raises FailedPreconditionError (an erased user) and TooLargeError."""
        root = self._root
        if root.HasField("erase_time"):
            raise FailedPreconditionError("the user has been erased", reason=error_reason_pb2.ERROR_REASON_USER_ERASED)
        if self._root_item is None:
            self._entering = await self._indexes.users.entering(self._user_id)
        total = sum(root.open)
        if total >= self._indexes.max_open_tasks:
            raise TooLargeError("open tasks, with this one,", size=total + 1, limit=self._indexes.max_open_tasks)
        room = (number for number, count in enumerate(root.open) if count < BUCKET_ENTRIES)
        number = next(room, len(root.open))
        if number == len(root.open):
            root.open.append(0)
        root.open[number] += 1
        await self._put(document, OPEN, number)

    async def complete(self, document: document_pb2.TaskDocument) -> None:
        """Move a task from the open to the completed ones."""
        root = self._root
        await self._load((document.place.list, document.place.bucket), (COMPLETED, root.completed_bucket))
        await self.drop(document)
        root.completed_bucket = await self._append(document, COMPLETED, root.completed_bucket)

    async def bury(self, document: document_pb2.TaskDocument, tombstone: document_pb2.TaskDocument) -> None:
        """Move a task to the deleted ones."""
        root = self._root
        await self._load((document.place.list, document.place.bucket), (DELETED, root.deleted_bucket))
        await self.drop(document)
        self.wait(document.task.id, waits=False)
        root.deleted_bucket = await self._append(tombstone, DELETED, root.deleted_bucket)

    async def replace(self, document: document_pb2.TaskDocument) -> None:
        """Write what a task is found by anew."""
        bucket = await self._bucket(document.place.list, document.place.bucket)
        for number, one in enumerate(bucket.entries):
            if one.task_id == document.task.id:
                bucket.entries[number].CopyFrom(domain.entry(document))

    async def drop(self, document: document_pb2.TaskDocument) -> None:
        """Take a task out of the list in which it stands."""
        place = document.place
        bucket = await self._bucket(place.list, place.bucket)
        kept = [one for one in bucket.entries if one.task_id != document.task.id]
        if place.list == OPEN:
            self._root.open[place.bucket] -= len(bucket.entries) - len(kept)
        del bucket.entries[:]
        bucket.entries.extend(kept)

    def wait(self, task_id: str, *, waits: bool) -> None:
        """Note that a completed task waits for its next occurrence, or does no longer."""
        root = self._root
        if waits != (task_id in root.waiting):
            if waits:
                root.waiting.append(task_id)
            else:
                root.waiting.remove(task_id)

    def close(self) -> None:
        """Let nothing be created any more."""
        root = self._root
        if not root.HasField("erase_time"):
            root.erase_time.CopyFrom(timestamp(datetime.now(UTC)))

    async def _append(self, document: document_pb2.TaskDocument, index_list: int, newest: int) -> int:
        bucket = await self._bucket(index_list, newest)
        if len(bucket.entries) >= BUCKET_ENTRIES:
            newest += 1
        await self._put(document, index_list, newest)
        return newest

    async def _put(self, document: document_pb2.TaskDocument, index_list: int, number: int) -> None:
        document.place.list = index_list  # type: ignore[assignment]
        document.place.bucket = number
        (await self._bucket(index_list, number)).entries.append(domain.entry(document))

    async def _bucket(self, index_list: int, number: int) -> document_pb2.IndexBucket:
        await self._load((index_list, number))
        return self._buckets[index_list, number][0]

    async def _load(self, *places: tuple[int, int]) -> None:
        """Read buckets, together."""
        missing = {place: bucket_key(self._user_id, *place) for place in places if place not in self._buckets}
        keys = list(missing.values())
        found = await self._indexes.state.get_many(keys, confirm=keys)
        for place, key in missing.items():
            item = found.get(key)
            self._buckets[place] = (document_pb2.IndexBucket.FromString(item.value if item else b""), item)

    def operations(self) -> list[Put | Remove]:
        """Give the writes, for the commit."""
        planned: list[Put | Remove] = list(self._entering)
        if self._root.SerializeToString() != self._root_before:
            planned += _write(index_key(self._user_id), self._root, self._root_item)
        for (index_list, number), (bucket, item) in self._buckets.items():
            ttl = TOMBSTONE_SECONDS if index_list == DELETED else 0
            if item is None or bucket.SerializeToString() != item.value:
                planned += _write(bucket_key(self._user_id, index_list, number), bucket, item, ttl)
        return planned


def _write(key: str, document: Message, item: Item | None, ttl_seconds: int = 0) -> list[Put | Remove]:
    """Write a document over what was read; an empty one is not kept."""
    value = document.SerializeToString()
    etag = item.etag if item else ""
    if value:
        return [Put(key, value, etag=etag, create=item is None, ttl_seconds=ttl_seconds)]
    return [Remove(key, etag=etag)] if item else []
