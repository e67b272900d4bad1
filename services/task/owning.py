"""What the owner of tasks does for the mesh: revisions, events told again, erasure."""

from collections.abc import AsyncIterator

from gaggle.owner.v1 import owner_service_pb2 as owner_api
from gaggle.task.state.v1 import document_pb2
from gaggle.task.v1 import task_service_pb2 as api
from services.runtime import paging
from services.runtime.errors import InvalidArgumentError, NotFoundError
from services.runtime.owning import publish_again
from services.task.index import COMPLETED, DELETED, OPEN, Indexes
from services.task.store import ENTITY, TaskStore
from services.task.writing import Writer

_REVISIONS_PAGE = 100
_AT_ONCE = 50
_ORDER = (OPEN, COMPLETED, DELETED)


class Owner:
    """Walks what there is."""

    def __init__(self, store: TaskStore, indexes: Indexes, writer: Writer) -> None:
        """All on the same state."""
        self._store = store
        self._indexes = indexes
        self._writer = writer

    async def users(self, request: owner_api.ListUsersRequest) -> owner_api.ListUsersResponse:
        """List the users."""
        return await self._indexes.users.list(request)

    async def revisions(self, request: owner_api.ListRevisionsRequest) -> owner_api.ListRevisionsResponse:
        """List a user's tasks with their revisions, tombstones included."""
        if not request.user_id:
            raise InvalidArgumentError({"user_id": "must be set"})
        size = paging.page_size(request.page_size, default=_REVISIONS_PAGE, most=_REVISIONS_PAGE)
        scope = ("ListRevisions", request.user_id)
        cursor = paging.decode(request.page_token, *scope)
        last = (int(cursor["l"]), int(cursor["k"]), str(cursor["i"])) if cursor else (0, 0, "")
        response = owner_api.ListRevisionsResponse()
        wanted: list[str] = []
        async for place in self._walk(request.user_id, last):
            if len(wanted) == size:
                response.next_page_token = paging.encode(dict(zip("lki", last, strict=True)), *scope)
                break
            last = place
            wanted.append(place[2])
        for first in range(0, len(wanted), _AT_ONCE):
            for document in await self._store.load(request.user_id, wanted[first : first + _AT_ONCE]):
                response.revisions.append(_revision(document))
        return response

    async def _walk(self, user_id: str, start: tuple[int, int, str]) -> AsyncIterator[tuple[int, int, str]]:
        """Walk a user's tasks from a place on: number of the list, bucket counted from the newest, id."""
        index = await self._indexes.read(user_id)
        newest = (len(index.open) - 1, index.completed_bucket, index.deleted_bucket)
        for where in range(start[0], len(_ORDER)):
            for bucket in range(start[1] if where == start[0] else 0, newest[where] + 1):
                after = start[2] if (where, bucket) == start[:2] else ""
                entries = await self._indexes.bucket(user_id, _ORDER[where], newest[where] - bucket)
                if not entries and _ORDER[where] == DELETED:
                    break  # Older ones have run out too.
                for task_id in sorted(one.task_id for one in entries):
                    if task_id > after:
                        yield where, bucket, task_id

    async def republish(self, request: owner_api.RepublishEventsRequest) -> owner_api.RepublishEventsResponse:
        """Publish the events of some revisions again."""
        stored = await self._store.find(request.user_id, request.entity_id)
        if request.entity_type != ENTITY or stored is None:
            raise NotFoundError(request.entity_type, request.entity_id)
        published = await publish_again(
            self._store.outbox, stored.document.events, request.first_revision, request.last_revision
        )
        return owner_api.RepublishEventsResponse(published=published)

    async def empty(self, user_id: str) -> int:
        """Close a user and delete all tasks there are; gives how many those were."""
        await self._store.close(user_id)
        items = 0
        while True:
            left = [task_id async for where, _, task_id in self._walk(user_id, (0, 0, "")) if _ORDER[where] != DELETED]
            if not left:
                return items
            for task_id in left:
                await self._writer.delete(user_id, api.DeleteTaskRequest(task_id=task_id), cause="erased")
                items += 1


def _revision(document: document_pb2.TaskDocument) -> owner_api.EntityRevision:
    return owner_api.EntityRevision(
        entity_type=ENTITY,
        entity_id=document.task.id,
        revision=document.revision,
        incarnation=document.incarnation,
        deleted=document.HasField("delete_time"),
    )
