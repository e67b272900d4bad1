"""Owners of entities other than conversations, as the audit service asks them: one contract for all."""

from collections.abc import AsyncIterator

import grpc

from gaggle.owner.v1 import owner_service_pb2, owner_service_pb2_grpc
from services.audit.owner import TokenIssuer
from services.audit.store import Snapshot
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
        self._stub = owner_service_pb2_grpc.EntityOwnerServiceStub(sidecar.channel)

    async def users(self) -> AsyncIterator[str]:
        """Walk all users who have or had entities; the empty one, if what is shared has no user."""
        request = owner_service_pb2.ListUsersRequest()
        while True:
            try:
                response = await self._stub.ListUsers(
                    request, metadata=self._metadata(_ACTS_FOR_ITSELF), timeout=_TIMEOUT_SECONDS
                )
            except grpc.aio.AioRpcError as error:
                raise translate(error, self.app_id) from error
            for user_id in response.user_ids:
                yield user_id
            request.page_token = response.next_page_token
            if not request.page_token:
                return

    async def revisions(self, user_id: str) -> AsyncIterator[dict[str, list[Snapshot]]]:
        """Walk a user's entities by type, a page at a time; of each what the log is compared with."""
        request = owner_service_pb2.ListRevisionsRequest(user_id=user_id)
        while True:
            try:
                response = await self._stub.ListRevisions(
                    request, metadata=self._metadata(user_id), timeout=_TIMEOUT_SECONDS
                )
            except grpc.aio.AioRpcError as error:
                raise translate(error, self.app_id) from error
            found: dict[str, list[Snapshot]] = {}
            for one in response.revisions:
                snapshot = Snapshot(
                    user_id=user_id,
                    id=one.entity_id,
                    incarnation=one.incarnation,
                    revision=one.revision,
                    deleted=one.deleted,
                )
                found.setdefault(one.entity_type, []).append(snapshot)
            yield found
            request.page_token = response.next_page_token
            if not request.page_token:
                return

    async def republish(self, user_id: str, entity_type: str, entity_id: str, first: int, last: int) -> int:
        """Have the events of these revisions published again; give how many were."""
        request = owner_service_pb2.RepublishEventsRequest(
            user_id=user_id, entity_type=entity_type, entity_id=entity_id, first_revision=first, last_revision=last
        )
        try:
            response = await self._stub.RepublishEvents(
                request, metadata=self._metadata(user_id), timeout=_TIMEOUT_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return 0  # It has run out since.
            raise translate(error, self.app_id) from error
        return int(response.published)

    def _metadata(self, user_id: str) -> tuple[tuple[str, str], ...]:
        return self._sidecar.invocation(self.app_id, self._issue(user_id or _ACTS_FOR_ITSELF))
