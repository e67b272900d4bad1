"""What the owner of reminders does for the mesh: revisions, events told again, erasure."""

from gaggle.owner.v1 import owner_service_pb2 as api
from services.reminder.store import ReminderStore
from services.runtime import paging
from services.runtime.errors import ConflictError, InvalidArgumentError, NotFoundError
from services.runtime.owning import publish_again
from services.runtime.state import CommitFailedError

ENTITY = "reminder"
_REVISIONS_PAGE = 100
_ATTEMPTS = 12


class Owner:
    """Walks what there is. The entity is all reminders of a task, by the task's id."""

    def __init__(self, store: ReminderStore) -> None:
        """`store` has the reminders."""
        self._store = store

    async def users(self, request: api.ListUsersRequest) -> api.ListUsersResponse:
        """List the users."""
        return await self._store.index.users.list(request)

    async def revisions(self, request: api.ListRevisionsRequest) -> api.ListRevisionsResponse:
        """List what a user has, with its revision."""
        if not request.user_id:
            raise InvalidArgumentError({"user_id": "must be set"})
        size = paging.page_size(request.page_size, default=_REVISIONS_PAGE, most=_REVISIONS_PAGE)
        scope = ("ListRevisions", request.user_id)
        cursor = paging.decode(request.page_token, *scope)
        bucket = int(cursor["k"]) if cursor else None
        position = int(cursor["p"]) if cursor else None
        response = api.ListRevisionsResponse()
        places: dict[str, int] = {}
        walk = self._store.index.newest_first(request.user_id, bucket=bucket, position=position)
        async for current, place, task_id in walk:
            if len(places) == size:
                response.next_page_token = paging.encode({"k": current, "p": place}, *scope)
                break
            places.setdefault(task_id, current)
        documents = await self._store.find_many([(request.user_id, one) for one in places])
        for (_, task_id), document in documents.items():
            if document.index_bucket == places[task_id]:
                response.revisions.add(
                    entity_type=ENTITY,
                    entity_id=task_id,
                    revision=document.revision,
                    incarnation=document.incarnation,
                )
        return response

    async def republish(self, request: api.RepublishEventsRequest) -> api.RepublishEventsResponse:
        """Publish the events of some revisions again. References to the newest 64 revisions are kept."""
        document = await self._store.find(request.user_id, request.entity_id)
        if document is None or request.entity_type not in ("", ENTITY):
            raise NotFoundError(request.entity_type or ENTITY, request.entity_id)
        published = await publish_again(
            self._store.outbox, document.events, request.first_revision, request.last_revision
        )
        return api.RepublishEventsResponse(published=published)

    async def empty(self, user_id: str) -> int:
        """Close a user and take away all there is; gives of how many tasks there were reminders."""
        for _ in range(_ATTEMPTS):
            try:
                await self._store.index.close(user_id, self._store.state.commit)
            except CommitFailedError:
                continue
            break
        else:
            raise ConflictError("other writers kept winning; try again")
        items = 0
        async for _, _, task_id in self._store.index.newest_first(user_id):
            items += await self._store.remove(user_id, task_id)
        return items
