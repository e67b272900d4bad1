"""The conversation service's methods: read the request, call the domain, shape the answer."""

from collections.abc import AsyncIterator
from typing import Any

from gaggle.audit.v1 import audit_service_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as api
from gaggle.conversation.v1 import conversation_service_pb2_grpc as api_grpc
from gaggle.conversation.v1 import owner_service_pb2 as owner_api
from gaggle.conversation.v1 import owner_service_pb2_grpc as owner_grpc
from services.conversation import domain, validation
from services.conversation.owning import Owner
from services.conversation.reading import Reader
from services.conversation.store import ConversationStore
from services.conversation.validation import named
from services.conversation.watching import Watcher
from services.conversation.writing import Writer
from services.runtime.access import Access, only, user_or
from services.runtime.errors import PermissionDeniedError
from services.runtime.identity import Caller, current_caller
from services.runtime.invocation import Peer
from services.runtime.requests import valid_id
from services.runtime.validation import Violations

_WORKERS = ("agent", "recipe")

CONVERSATION_ACCESS: dict[str, Access] = {
    "ListMessages": user_or("audit", *_WORKERS),
    "GetConversation": user_or("audit", *_WORKERS),
    "GetContext": user_or(*_WORKERS),
    "AppendMessages": user_or(*_WORKERS),
    "CreateConversation": user_or(*_WORKERS),
    "RaiseFence": user_or(*_WORKERS),
    "CompactConversation": user_or(*_WORKERS),
}
OWNER_ACCESS: dict[str, Access] = {"*": only("audit")}
MAX_METADATA_FILTERS = 8
MAX_QUERY_BYTES = 1024


class ConversationServicer(api_grpc.ConversationServiceServicer):
    """Serves gaggle.conversation.v1.ConversationService."""

    def __init__(
        self, store: ConversationStore, writer: Writer, reader: Reader, watcher: Watcher, owner: Owner, audit: Peer
    ) -> None:
        """`audit` has the read model."""
        self._store = store
        self._writer = writer
        self._reader = reader
        self._watcher = watcher
        self._owner = owner
        self._audit = audit

    async def CreateConversation(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = Violations()
        violations.id("conversation_id", request.conversation_id, required=False)
        violations.id("request_id", request.request_id, required=False)
        validation.title(violations, request.title)
        validation.metadata(violations, "metadata", request.metadata)
        validation.retention(violations, request.retention)
        violations.raise_if_any()
        return await self._writer.create(_user(), request)

    async def GetConversation(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        named(request.conversation_id).raise_if_any()
        head = await self._store.head(_user(), request.conversation_id)
        return api.GetConversationResponse(conversation=domain.describe(head))

    async def ListConversations(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = Violations()
        violations.check(ok=len(request.metadata) <= MAX_METADATA_FILTERS, field="metadata", what="at most 8 entries")
        violations.check(ok=request.page_size >= 0, field="page_size", what="must not be negative")
        violations.raise_if_any()
        by_update = request.order_by == api.CONVERSATION_ORDER_UPDATE_TIME
        if not by_update and not request.metadata:
            return await self._reader.conversations(_user(), request)
        query = audit_service_pb2.QueryConversationsRequest(
            metadata=request.metadata,
            order_by_update_time=by_update,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        found = await self._audit.call("QueryConversations", query, current_caller().token)
        return api.ListConversationsResponse(conversations=found.conversations, next_page_token=found.next_page_token)

    async def UpdateConversation(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = named(request.conversation_id, request.request_id)
        validation.title(violations, request.title)
        validation.metadata(violations, "metadata", request.metadata.entries)
        validation.retention(violations, request.retention)
        violations.raise_if_any()
        return await self._writer.update(_user(), request)

    async def DeleteConversation(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        named(request.conversation_id, request.request_id).raise_if_any()
        return await self._writer.delete(_user(), request)

    async def AppendMessages(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.append(request)
        return await self._writer.append(_user(), request)

    async def ListMessages(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        if not valid_id(request.conversation_id):
            named(request.conversation_id).raise_if_any()
        return await self._reader.messages(_user(), request)

    async def GetContext(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        named(request.conversation_id).raise_if_any()
        return await self._reader.context(_user(), request)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002
        """See the contract."""
        named(request.conversation_id).raise_if_any()
        async for response in self._watcher.watch(_user(), request):
            yield response

    async def ForkConversation(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = named(request.conversation_id, request.request_id)
        violations.id("new_conversation_id", request.new_conversation_id, required=False)
        validation.title(violations, request.title)
        violations.raise_if_any()
        return await self._writer.fork(_user(), request)

    async def TruncateConversation(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = named(request.conversation_id, request.request_id)
        violations.check(
            ok=request.WhichOneof("extent") is not None, field="extent", what="say drop_last, after_sequence or all"
        )
        violations.check(ok=request.WhichOneof("extent") != "all" or request.all, field="all", what="must be true")
        violations.raise_if_any()
        return await self._writer.truncate(_user(), request)

    async def CompactConversation(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = named(request.conversation_id, request.request_id)
        size = len(request.summary.encode())
        violations.check(ok=0 < size <= validation.MAX_SUMMARY_BYTES, field="summary", what="must be 1 byte to 256 KiB")
        violations.raise_if_any()
        return await self._writer.compact(_user(), request)

    async def RaiseFence(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        named(request.conversation_id, request.request_id).raise_if_any()
        return await self._writer.raise_fence(_user(), request)

    async def SearchMessages(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = Violations()
        violations.id("conversation_id", request.conversation_id, required=False)
        size = len(request.query.encode())
        violations.check(ok=0 < size <= MAX_QUERY_BYTES, field="query", what="must be 1 to 1024 bytes")
        violations.check(ok=request.page_size >= 0, field="page_size", what="must not be negative")
        violations.raise_if_any()
        query = audit_service_pb2.SearchRequest.FromString(request.SerializeToString())
        found = await self._audit.call("Search", query, current_caller().token)
        return api.SearchMessagesResponse.FromString(found.SerializeToString())

    async def EraseUser(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        return api.EraseUserResponse(erasure_id=await self._owner.request_erasure(_subject(request.user_id)))

    async def GetErasure(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        return await self._owner.erasure(_subject(request.user_id))


class OwnerServicer(owner_grpc.OwnerServiceServicer):
    """Serves gaggle.conversation.v1.OwnerService to the mesh's own services."""

    def __init__(self, owner: Owner) -> None:
        """`owner` walks the state."""
        self._owner = owner

    async def ListUsers(self, request: Any, context: Any) -> owner_api.ListUsersResponse:  # noqa: ARG002
        """See the contract."""
        return await self._owner.users(request)

    async def ListRevisions(self, request: Any, context: Any) -> owner_api.ListRevisionsResponse:  # noqa: ARG002
        """See the contract."""
        return await self._owner.revisions(request)

    async def RepublishEvents(self, request: Any, context: Any) -> owner_api.RepublishEventsResponse:  # noqa: ARG002
        """See the contract."""
        return await self._owner.republish(request)


def _user() -> str:
    return current_caller().user_id


def _subject(user_id: str) -> str:
    """Whom an erasure is about: the caller, or for an admin anyone."""
    caller: Caller = current_caller()
    if user_id and user_id != caller.user_id and not caller.is_admin:
        raise PermissionDeniedError("only an admin may name another user", metadata={"role": "admin"})
    return user_id or caller.user_id
