"""What the owner of inboxes does for the mesh: revisions, events told again, erasure."""

from gaggle.owner.v1 import owner_service_pb2 as api
from services.notification.domain import ENTITY, ENTITY_ID
from services.notification.store import NotificationStore
from services.runtime.errors import InvalidArgumentError, NotFoundError
from services.runtime.owning import publish_again


class Owner:
    """Walks what there is. The entity is a user's whole inbox."""

    def __init__(self, store: NotificationStore) -> None:
        """`store` has the inboxes."""
        self._store = store

    async def users(self, request: api.ListUsersRequest) -> api.ListUsersResponse:
        """List the users."""
        return await self._store.users.list(request)

    async def revisions(self, request: api.ListRevisionsRequest) -> api.ListRevisionsResponse:
        """List what a user has, with its revision."""
        if not request.user_id:
            raise InvalidArgumentError({"user_id": "must be set"})
        response = api.ListRevisionsResponse()
        document = await self._store.find(request.user_id)
        if document.revision and not document.HasField("erase_time"):
            response.revisions.add(
                entity_type=ENTITY,
                entity_id=ENTITY_ID,
                revision=document.revision,
                incarnation=document.incarnation,
            )
        return response

    async def republish(self, request: api.RepublishEventsRequest) -> api.RepublishEventsResponse:
        """Publish the events of some revisions again. References to the newest 64 revisions are kept."""
        document = await self._store.find(request.user_id)
        if not document.revision or request.entity_type not in ("", ENTITY) or request.entity_id != ENTITY_ID:
            raise NotFoundError(request.entity_type or ENTITY, request.entity_id)
        published = await publish_again(
            self._store.outbox, document.events, request.first_revision, request.last_revision
        )
        return api.RepublishEventsResponse(published=published)

    async def empty(self, user_id: str) -> int:
        """Close a user and take away all there is; gives how many notifications there were."""
        items = await self._store.erase(user_id)
        await self._store.unpark_all(user_id)
        return items
