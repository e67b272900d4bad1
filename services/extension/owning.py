"""What the owner of extensions does for the mesh: revisions, events told again, erasure."""

from collections.abc import Callable
from datetime import UTC, datetime

from gaggle.extension.state.v1 import document_pb2
from gaggle.owner.v1 import owner_service_pb2 as owner_api
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from services.extension import domain
from services.extension.connections import Connections
from services.extension.registry import Registry
from services.extension.store import ATTEMPTS, ENTITY, ExtensionStore, index_put
from services.runtime import paging
from services.runtime.errors import ConflictError, NotFoundError
from services.runtime.owning import REVISIONS_PAGE, publish_again

_HEADS_AT_ONCE = 25


class Owner:
    """Walks what there is."""

    def __init__(self, store: ExtensionStore, registry: Registry, connections: Connections) -> None:
        """All of one process."""
        self._store = store
        self._registry = registry
        self._connections = connections

    async def users(self, request: owner_api.ListUsersRequest) -> owner_api.ListUsersResponse:
        """List the users."""
        return await self._store.users.list(request)

    async def revisions(self, request: owner_api.ListRevisionsRequest) -> owner_api.ListRevisionsResponse:
        """List what lies under a user with its revisions, tombstones included."""
        size = paging.page_size(request.page_size, default=REVISIONS_PAGE, most=REVISIONS_PAGE)
        scope = ("ListRevisions", request.user_id)
        cursor = paging.decode(request.page_token, *scope)
        index, _ = await self._store.index(request.user_id)
        # Entries are added at the end, and only what was deleted long ago goes.
        wanted = [one.extension_id for one in index.entries]
        if "i" in cursor and cursor["i"] in wanted:
            wanted = wanted[wanted.index(str(cursor["i"])) + 1 :]
        response = owner_api.ListRevisionsResponse()
        if len(wanted) > size:
            response.next_page_token = paging.encode({"i": wanted[size - 1]}, *scope)
        for start in range(0, min(len(wanted), size), _HEADS_AT_ONCE):
            chunk = wanted[start : min(start + _HEADS_AT_ONCE, size)]
            for head in await self._store.heads(request.user_id, chunk):
                response.revisions.add(
                    entity_type=ENTITY,
                    entity_id=head.extension_id,
                    revision=head.revision,
                    incarnation=head.incarnation,
                    deleted=head.HasField("delete_time"),
                )
        return response

    async def republish(self, request: owner_api.RepublishEventsRequest) -> owner_api.RepublishEventsResponse:
        """Publish the events of some revisions again."""
        head, _ = await self._store.head(request.user_id, request.entity_id)
        if head is None:
            raise NotFoundError(ENTITY, request.entity_id)
        published = await publish_again(self._store.outbox, head.events, request.first_revision, request.last_revision)
        return owner_api.RepublishEventsResponse(published=published)

    # -- erasure

    async def empty(self, user_id: str) -> int:
        """Close a user and take away all there is; gives how many extensions that were."""

        def close(index: document_pb2.UserIndex) -> None:
            if not index.HasField("erase_time"):
                index.erase_time.CopyFrom(domain.timestamp(datetime.now(UTC)))

        def forget_names(index: document_pb2.UserIndex) -> None:
            for entry in index.entries:
                entry.ClearField("key")

        index = await self._changed(user_id, close)
        for entry in index.entries:
            head, _ = await self._store.head(user_id, entry.extension_id)
            if head is None or head.HasField("delete_time"):
                continue
            try:
                await self._registry.remove(user_id, user_id, entry.extension_id, "erased")
            except NotFoundError:
                await self._registry.forget(user_id, entry.extension_id)
            await self._connections.close((user_id, entry.extension_id))
        return len((await self._changed(user_id, forget_names)).entries)

    async def _changed(self, user_id: str, change: Callable[[document_pb2.UserIndex], None]) -> document_pb2.UserIndex:
        for _ in range(ATTEMPTS):
            index, item = await self._store.index(user_id)
            change(index)
            try:
                await self._store.outbox.commit([index_put(user_id, index, item)], runtime_pb2.OutboxRow())
            except ConflictError:
                continue
            return index
        raise ConflictError("other writers kept winning")
