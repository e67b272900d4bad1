"""What each owner of users' entities serves to the mesh's own services: gaggle.owner.v1.EntityOwnerService.

Reconciliation, rebuild and sweeps walk it. Who empties itself of a user: services/runtime/erasure.py.
"""

from collections.abc import Iterable
from typing import Any, Protocol

from gaggle.owner.v1 import owner_service_pb2 as api
from gaggle.owner.v1 import owner_service_pb2_grpc as api_grpc
from services.runtime.access import Access, only
from services.runtime.errors import InvalidArgumentError
from services.runtime.outbox import Number, Outbox

OWNER_ACCESS: dict[str, Access] = {"*": only("audit")}
MAX_REPUBLISHED = 1000
REVISIONS_PAGE = 100


class Owner(Protocol):
    """Walks what there is."""

    async def users(self, request: api.ListUsersRequest) -> api.ListUsersResponse:
        """List the users."""

    async def revisions(self, request: api.ListRevisionsRequest) -> api.ListRevisionsResponse:
        """List a user's entities with their revisions."""

    async def republish(self, request: api.RepublishEventsRequest) -> api.RepublishEventsResponse:
        """Publish the events of some revisions again."""


class OwnerServicer(api_grpc.EntityOwnerServiceServicer):
    """Serves an owner."""

    def __init__(self, owner: Owner) -> None:
        """`owner` walks what there is."""
        self._owner = owner

    async def ListUsers(self, request: Any, context: Any) -> api.ListUsersResponse:  # noqa: ARG002, N802
        """See the contract."""
        return await self._owner.users(request)

    async def ListRevisions(self, request: Any, context: Any) -> api.ListRevisionsResponse:  # noqa: ARG002, N802
        """See the contract."""
        return await self._owner.revisions(request)

    async def RepublishEvents(self, request: Any, context: Any) -> api.RepublishEventsResponse:  # noqa: ARG002, N802
        """See the contract."""
        check_span(request.first_revision, request.last_revision)
        return await self._owner.republish(request)


def check_span(first_revision: int, last_revision: int) -> None:
    """Hold how much is asked for at once against the limit. Raises InvalidArgumentError."""
    if not 0 < last_revision - first_revision + 1 <= MAX_REPUBLISHED:
        raise InvalidArgumentError({"last_revision": f"at most {MAX_REPUBLISHED} revisions at once"})


async def publish_again(outbox: Outbox, references: Iterable[Any], first: int, last: int) -> int:
    """Publish the events of revisions first..last whose rows are still there; gives how many.

    `references`: messages with `revision`, `slot`, `epoch` and `number`. Raises UnavailableError.
    """
    published = 0
    for one in references:
        if first <= one.revision <= last:
            row = await outbox.row(Number(one.slot, one.epoch, one.number))
            if row is not None:
                published += await outbox.publish_row(row)
    return published
