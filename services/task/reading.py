"""Lists of tasks: what the index cannot rule out is read and looked at, so that every filter is strongly consistent."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from gaggle.task.state.v1 import document_pb2
from gaggle.task.v1 import task_pb2
from gaggle.task.v1 import task_service_pb2 as api
from services.runtime import paging
from services.task import domain
from services.task.domain import SortKey
from services.task.index import COMPLETED, Indexes
from services.task.store import TaskStore

DEFAULT_PAGE = 50
MAX_PAGE = 200
MAX_EXAMINED = 500
"""Tasks that one call reads."""

MAX_BUCKETS = 20
"""Buckets of completed tasks that one call reads."""

MAX_RESPONSE_BYTES = 3 * 1024 * 1024
_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a list goes on: after this key, in the open ones or in a bucket of completed ones."""

    bucket: int | None
    """None: in the open ones."""

    key: SortKey | None
    """None: from the beginning."""


class Reader:
    """Answers ListTasks."""

    def __init__(self, store: TaskStore, indexes: Indexes) -> None:
        """Both stand on the same state."""
        self._store = store
        self._indexes = indexes

    async def tasks(self, user_id: str, request: api.ListTasksRequest) -> api.ListTasksResponse:
        """Give a page. At most MAX_EXAMINED tasks are read for it, or MAX_BUCKETS buckets of completed ones."""
        size = paging.page_size(request.page_size, default=DEFAULT_PAGE, most=MAX_PAGE)
        scope = _scope(user_id, request)
        wanted = domain.Filter(request)
        response = api.ListTasksResponse()
        examined = total = 0
        async for place, batch in self._batches(user_id, request, _place(paging.decode(request.page_token, *scope))):
            if not batch:
                response.next_page_token = _token(place, scope)
                return response
            documents = await self._store.load(user_id, [one.task_id for _, one in batch])
            found = {one.task.id: one for one in documents}
            for key, one in batch:
                document = found.get(one.task_id)
                examined += 1
                taken = document is not None and wanted.takes(document)
                if taken and document is not None:
                    task = domain.describe(document)
                    if response.tasks and (len(response.tasks) == size or total + task.ByteSize() > MAX_RESPONSE_BYTES):
                        return response
                    total += task.ByteSize()
                    response.tasks.append(task)
                response.next_page_token = _token(_Place(place.bucket, key), scope)
                if examined == MAX_EXAMINED:
                    return response
        response.next_page_token = ""
        return response

    async def _batches(
        self, user_id: str, request: api.ListTasksRequest, start: _Place
    ) -> AsyncIterator[tuple[_Place, Sequence[tuple[SortKey, document_pb2.IndexEntry]]]]:
        """Walk what the index does not rule out, a few at a time; an empty batch says that one call has read enough."""
        index = await self._indexes.read(user_id)
        wanted = domain.Filter(request)
        if start.bucket is None and request.status != task_pb2.TASK_STATUS_COMPLETED:
            entries = [one for one in await self._indexes.open(user_id, index) if wanted.may(one)]
            keyed = sorted(((domain.sort_key(request.order_by, one), one) for one in entries), key=lambda one: one[0])
            for batch in _after(keyed, start.key):
                yield _Place(None, None), batch
        if request.status == task_pb2.TASK_STATUS_OPEN:
            return
        newest = index.completed_bucket if start.bucket is None else start.bucket
        for count, bucket in enumerate(range(newest, -1, -1)):
            if count == MAX_BUCKETS:
                yield _Place(bucket, None), ()
                return
            entries = [one for one in await self._indexes.bucket(user_id, COMPLETED, bucket) if wanted.may(one)]
            keyed = sorted(((domain.completed_key(one), one) for one in entries), key=lambda one: one[0])
            for batch in _after(keyed, start.key if bucket == start.bucket else None):
                yield _Place(bucket, None), batch


_Keyed = list[tuple[SortKey, document_pb2.IndexEntry]]


def _after(keyed: _Keyed, key: SortKey | None) -> list[_Keyed]:
    """Cut what comes after a key into batches."""
    left = keyed if key is None else [one for one in keyed if one[0] > key]
    return [left[start : start + _AT_ONCE] for start in range(0, len(left), _AT_ONCE)]


def _scope(user_id: str, request: api.ListTasksRequest) -> tuple[str, ...]:
    """Bind a page token to all that is asked for, page size apart."""
    asked = api.ListTasksRequest()
    asked.CopyFrom(request)
    asked.ClearField("page_token")
    asked.ClearField("page_size")
    return ("ListTasks", user_id, asked.SerializeToString(deterministic=True).hex())


def _token(place: _Place, scope: tuple[str, ...]) -> str:
    cursor: paging.Cursor = {} if place.bucket is None else {"k": place.bucket}
    if place.key is not None:
        cursor |= dict(zip("abci", place.key, strict=True))
    return paging.encode(cursor, *scope)


def _place(cursor: paging.Cursor) -> _Place:
    bucket = int(cursor["k"]) if "k" in cursor else None
    if "i" not in cursor:
        return _Place(bucket, None)
    return _Place(bucket, (int(cursor["a"]), int(cursor["b"]), int(cursor["c"]), str(cursor["i"])))
