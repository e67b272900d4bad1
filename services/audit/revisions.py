"""Other services that own entities with revisions, as reconciliation asks them: all serve EntityOwnerService."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from gaggle.owner.v1 import owner_service_pb2, owner_service_pb2_grpc
from services.audit.owner import TokenIssuer
from services.audit.store import Snapshot
from services.runtime.errors import NotFoundError
from services.runtime.sidecar import Sidecar, translate

_TIMEOUT_SECONDS = 10.0
_ACTS_FOR_ITSELF = "audit"


class EntityOwner:
    """Every call raises UnavailableError or DeadlineError if the service can't be reached in time."""

    def __init__(self, sidecar: Sidecar, app_id: str, issue: TokenIssuer) -> None:
        """`app_id` is the owner's."""
        self.app_id = app_id
        self._sidecar = sidecar
        self._issue = issue
        self._stub: Any = owner_service_pb2_grpc.EntityOwnerServiceStub(sidecar.channel)

    async def users(self) -> AsyncIterator[str]:
        """Walk all users who have or had entities; the empty one, if what is shared has no user."""
        request = owner_service_pb2.ListUsersRequest()
        while True:
            response = await self._call("ListUsers", request, "", "")
            for user_id in response.user_ids:
                yield user_id
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def snapshots(self, user_id: str) -> AsyncIterator[dict[str, list[Snapshot]]]:
        """Walk a user's entities with their revisions by type, a page at a time, deleted ones included."""
        request = owner_service_pb2.ListRevisionsRequest(user_id=user_id)
        while True:
            response = await self._call("ListRevisions", request, user_id, "")
            found: dict[str, list[Snapshot]] = {}
            for one in response.revisions:
                found.setdefault(one.entity_type, []).append(
                    Snapshot(user_id, one.entity_id, one.incarnation, one.revision, deleted=one.deleted)
                )
            yield found
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    async def republish(self, entity_type: str, user_id: str, entity_id: str, first: int, last: int) -> int:
        """Have the events of these revisions published again; give how many were."""
        request = owner_service_pb2.RepublishEventsRequest(
            user_id=user_id, entity_type=entity_type, entity_id=entity_id, first_revision=first, last_revision=last
        )
        return int((await self._call("RepublishEvents", request, user_id, entity_id)).published)

    async def _call(self, method: str, request: Any, user_id: str, entity_id: str) -> Any:
        token = self._issue(user_id or _ACTS_FOR_ITSELF)
        try:
            return await getattr(self._stub, method)(
                request, metadata=self._sidecar.invocation(self.app_id, token), timeout=_TIMEOUT_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise NotFoundError("entity", entity_id) from error
            raise translate(error, self.app_id) from error
