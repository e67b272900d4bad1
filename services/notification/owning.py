"""What the owner of inboxes does for the mesh: revisions, events told again, erasure."""

from typing import Any

from gaggle.owner.v1 import owner_service_pb2 as api
from gaggle.owner.v1 import owner_service_pb2_grpc as api_grpc
from services.notification.domain import ENTITY, ENTITY_ID
from services.notification.store import NotificationStore
from services.runtime.access import Access, only
from services.runtime.errors import InvalidArgumentError, NotFoundError
from services.runtime.outbox import Number

OWNER_ACCESS: dict[str, Access] = {"*": only("audit")}
MAX_REPUBLISHED = 1000


class Owner(api_grpc.EntityOwnerServiceServicer):
    """Serves gaggle.owner.v1.EntityOwnerService. The entity is a user's whole inbox."""

    def __init__(self, store: NotificationStore) -> None:
        """`store` has the inboxes."""
        self._store = store

    async def ListUsers(self, request: Any, context: Any) -> api.ListUsersResponse:  # noqa: ARG002, N802
        """See the contract."""
        return await self._store.users.list(request)

    async def ListRevisions(self, request: Any, context: Any) -> api.ListRevisionsResponse:  # noqa: ARG002, N802
        """See the contract."""
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

    async def RepublishEvents(self, request: Any, context: Any) -> api.RepublishEventsResponse:  # noqa: ARG002, N802
        """See the contract. References to the newest 64 revisions are kept."""
        count = request.last_revision - request.first_revision + 1
        if not 0 < count <= MAX_REPUBLISHED:
            raise InvalidArgumentError({"last_revision": f"at most {MAX_REPUBLISHED} revisions at once"})
        document = await self._store.find(request.user_id)
        if not document.revision or request.entity_type not in ("", ENTITY) or request.entity_id != ENTITY_ID:
            raise NotFoundError(request.entity_type or ENTITY, request.entity_id)
        published = 0
        for one in document.events:
            if request.first_revision <= one.revision <= request.last_revision:
                row = await self._store.outbox.row(Number(one.slot, one.epoch, one.number))
                if row is not None:
                    published += await self._store.outbox.publish_row(row)
        return api.RepublishEventsResponse(published=published)

    async def empty(self, user_id: str) -> int:
        """Close a user and take away all there is; gives how many notifications there were."""
        items = await self._store.erase(user_id)
        await self._store.unpark_all(user_id)
        return items
