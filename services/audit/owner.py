"""The conversation service, as the audit service asks it: through the own sidecar, by tokens of its own."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import grpc

from gaggle.conversation.v1 import (
    conversation_pb2,
    conversation_service_pb2,
    conversation_service_pb2_grpc,
    message_pb2,
    owner_service_pb2,
    owner_service_pb2_grpc,
)
from services.audit.store import Snapshot
from services.runtime.errors import NotFoundError
from services.runtime.sidecar import Sidecar, translate

_TIMEOUT_SECONDS = 10.0
_MESSAGES = 500
_ACTS_FOR_ITSELF = "audit"


@dataclass(frozen=True, slots=True)
class MessagePage:
    """Messages in ascending order, and whether there are more."""

    messages: list[message_pb2.Message]
    last_sequence: int
    more: bool


class TokenIssuer(Protocol):
    """Gives this service's tokens: `services.runtime.identity.ServiceTokens.issue`."""

    def __call__(self, user_id: str) -> str:
        """Give a token for acting for a user."""
        ...


class ConversationOwner:
    """Every call raises UnavailableError or DeadlineError if the conversation service can't be reached in time."""

    def __init__(self, sidecar: Sidecar, app_id: str, issue: TokenIssuer) -> None:
        """`app_id` is the conversation service's."""
        self._sidecar = sidecar
        self._app_id = app_id
        self._issue = issue
        self._conversations = conversation_service_pb2_grpc.ConversationServiceStub(sidecar.channel)
        self._owner = owner_service_pb2_grpc.OwnerServiceStub(sidecar.channel)

    async def conversation(self, user_id: str, conversation_id: str, incarnation: int) -> Snapshot:
        """Read a conversation. Raises NotFoundError."""
        request = conversation_service_pb2.GetConversationRequest(conversation_id=conversation_id)
        try:
            response = await self._conversations.GetConversation(
                request, metadata=self._metadata(user_id), timeout=_TIMEOUT_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise self._translate(error, conversation_id) from error
        return snapshot(user_id, response.conversation, incarnation)

    async def messages(self, user_id: str, conversation_id: str, after_sequence: int) -> MessagePage:
        """Read the next messages after a sequence. Raises NotFoundError."""
        request = conversation_service_pb2.ListMessagesRequest(
            conversation_id=conversation_id, after_sequence=after_sequence, page_size=_MESSAGES
        )
        try:
            response = await self._conversations.ListMessages(
                request, metadata=self._metadata(user_id), timeout=_TIMEOUT_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise self._translate(error, conversation_id) from error
        return MessagePage(list(response.messages), response.last_sequence, bool(response.next_page_token))

    async def users(self) -> AsyncIterator[str]:
        """Walk all users who have or had conversations."""
        token = ""
        while True:
            request = owner_service_pb2.ListUsersRequest(page_token=token)
            try:
                response = await self._owner.ListUsers(
                    request, metadata=self._metadata(_ACTS_FOR_ITSELF), timeout=_TIMEOUT_SECONDS
                )
            except grpc.aio.AioRpcError as error:
                raise self._translate(error, "") from error
            for user_id in response.user_ids:
                yield user_id
            token = response.next_page_token
            if not token:
                return

    async def snapshots(self, user_id: str) -> AsyncIterator[list[Snapshot]]:
        """Walk a user's conversations, a page at a time, deleted ones of the last days included."""
        token = ""
        while True:
            request = owner_service_pb2.ListRevisionsRequest(user_id=user_id, page_token=token)
            try:
                response = await self._owner.ListRevisions(
                    request, metadata=self._metadata(user_id), timeout=_TIMEOUT_SECONDS
                )
            except grpc.aio.AioRpcError as error:
                raise self._translate(error, "") from error
            yield [_revision(user_id, one) for one in response.revisions]
            token = response.next_page_token
            if not token:
                return

    async def republish(self, user_id: str, conversation_id: str, first: int, last: int) -> int:
        """Have the events of these revisions published again; give how many were."""
        request = owner_service_pb2.RepublishEventsRequest(
            user_id=user_id, conversation_id=conversation_id, first_revision=first, last_revision=last
        )
        try:
            response = await self._owner.RepublishEvents(
                request, metadata=self._metadata(user_id), timeout=_TIMEOUT_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise self._translate(error, conversation_id) from error
        return int(response.published)

    def _metadata(self, user_id: str) -> tuple[tuple[str, str], ...]:
        return self._sidecar.invocation(self._app_id, self._issue(user_id))

    def _translate(self, error: grpc.aio.AioRpcError, conversation_id: str) -> Exception:
        if error.code() == grpc.StatusCode.NOT_FOUND:
            return NotFoundError("conversation", conversation_id)
        return translate(error, self._app_id)


def snapshot(user_id: str, conversation: conversation_pb2.Conversation, incarnation: int) -> Snapshot:
    """Take what the read model keeps of a conversation."""
    forked = conversation.HasField("forked_from")
    return Snapshot(
        user_id=user_id,
        id=conversation.id,
        incarnation=incarnation,
        revision=int(conversation.etag or 0),
        title=conversation.title.replace("\0", "\ufffd"),
        metadata={
            name.replace("\0", "\ufffd"): value.replace("\0", "\ufffd") for name, value in conversation.metadata.items()
        },
        created_at=conversation.create_time.ToJsonString() if conversation.HasField("create_time") else None,
        updated_at=conversation.update_time.ToJsonString() if conversation.HasField("update_time") else None,
        last_sequence=conversation.last_sequence,
        message_count=conversation.message_count,
        first_sequence=max(conversation.first_sequence, 1),
        summary_sequence=conversation.summary_sequence,
        fence=conversation.fence,
        max_messages=conversation.retention.max_messages,
        ttl_seconds=(
            conversation.retention.ttl.ToNanoseconds() / 1e9 if conversation.retention.HasField("ttl") else None
        ),
        forked_from_id=conversation.forked_from.conversation_id if forked else None,
        forked_from_sequence=conversation.forked_from.sequence if forked else None,
    )


def _revision(user_id: str, one: owner_service_pb2.ConversationRevision) -> Snapshot:
    if one.deleted or not one.HasField("conversation"):
        return Snapshot(
            user_id=user_id, id=one.conversation_id, incarnation=one.incarnation, revision=one.revision, deleted=True
        )
    return snapshot(user_id, one.conversation, one.incarnation)
