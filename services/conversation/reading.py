"""What callers read: windows, pages, contexts, lists."""

import contextlib
from datetime import UTC, datetime
from typing import Any

from gaggle.conversation.state.v1 import document_pb2
from gaggle.conversation.v1 import conversation_pb2, message_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as api
from services.conversation import domain
from services.conversation.index import UserIndexes
from services.conversation.settings import ConversationSettings
from services.conversation.store import ConversationStore, expired, head_key
from services.conversation.validation import MAX_RESPONSE_BYTES
from services.runtime import paging
from services.runtime.errors import InvalidArgumentError, StateMissingError

MAX_PAGE_MESSAGES = 1000
MAX_PAGE_CONVERSATIONS = 100
DEFAULT_PAGE_CONVERSATIONS = 20
DEFAULT_TOKEN_BUDGET = 8_000
MAX_TOKEN_BUDGET = 10_000_000
_HEADS_AT_ONCE = 25
_TRUNCATED_TOLD = 64


class Reader:
    """Answers reads; the messages of an answer are the bytes as they lie."""

    def __init__(self, store: ConversationStore, indexes: UserIndexes, settings: ConversationSettings) -> None:
        """`settings.window_messages` is the default page."""
        self._store = store
        self._indexes = indexes
        self._default = settings.window_messages

    async def messages(self, user_id: str, request: api.ListMessagesRequest) -> bytes:
        """Give a serialized ListMessagesResponse."""
        size = paging.page_size(request.page_size, default=self._default, most=MAX_PAGE_MESSAGES)
        newest = not (request.page_token or request.HasField("after_sequence") or request.HasField("before_sequence"))
        if not newest:
            cursor = self._cursor(user_id, request)
            return await self._store.reading(
                user_id, request.conversation_id, lambda head: self._page(user_id, head, request, cursor, size)
            )
        if request.HasField("min_sequence"):
            key = head_key(user_id, request.conversation_id)
            window = self._store.windows.get(key, request.min_sequence)
            if window is not None:
                answer = window.answers.get(size)
                if answer is None:
                    # Where a change let go of what the window names, the conversation is read anew.
                    with contextlib.suppress(StateMissingError):
                        answer = await self._newest(user_id, window.head, size)
                        self._store.windows.answered(key, window, size, answer)
                if answer is not None:
                    return answer
        return await self._store.reading(
            user_id, request.conversation_id, lambda head: self._newest(user_id, head, size)
        )

    async def _newest(self, user_id: str, head: document_pb2.Head, size: int) -> bytes:
        found = domain.default_window(head, size)
        if found is not None and len(found[0]) <= MAX_RESPONSE_BYTES:
            body, oldest = found
            more = oldest > head.first_sequence
        else:
            slots = await self._store.newest(
                user_id, head, before=head.next_sequence, limit=size, max_bytes=MAX_RESPONSE_BYTES
            )
            body = _join(slots)
            oldest = slots[0].sequence if slots else head.first_sequence
            more = oldest > head.first_sequence and len(slots) < head.message_count
        token = paging.encode({"b": oldest}, *_scope(user_id, head.conversation.id)) if more else ""
        return body + _trailer(head, token)

    def _cursor(self, user_id: str, request: api.ListMessagesRequest) -> dict[str, Any]:
        cursor = paging.decode(request.page_token, *_scope(user_id, request.conversation_id))
        if request.HasField("after_sequence") and request.HasField("before_sequence"):
            raise InvalidArgumentError({"after_sequence": "not together with before_sequence"})
        return cursor

    async def _page(
        self,
        user_id: str,
        head: document_pb2.Head,
        request: api.ListMessagesRequest,
        cursor: dict[str, Any],
        size: int,
    ) -> bytes:
        scope = _scope(user_id, request.conversation_id)
        if "a" in cursor or (not cursor and request.HasField("after_sequence")):
            after = int(cursor["a"]) if cursor else request.after_sequence
            slots = await self._store.after(user_id, head, after=after, limit=size, max_bytes=MAX_RESPONSE_BYTES)
            last = slots[-1].sequence if slots else domain.last_sequence(head)
            token = paging.encode({"a": last}, *scope) if slots and last < domain.last_sequence(head) else ""
        else:
            before = int(cursor["b"]) if cursor else request.before_sequence
            before = min(before, head.next_sequence)
            slots = await self._store.newest(user_id, head, before=before, limit=size, max_bytes=MAX_RESPONSE_BYTES)
            first = slots[0].sequence if slots else head.first_sequence
            token = paging.encode({"b": first}, *scope) if slots and first > head.first_sequence else ""
        return _join(slots) + _trailer(head, token)

    async def context(self, user_id: str, request: api.GetContextRequest) -> bytes:
        """Give a serialized GetContextResponse: the newest summary and the tail that fits the budget."""
        budget = request.token_budget or DEFAULT_TOKEN_BUDGET
        if not 0 < budget <= MAX_TOKEN_BUDGET:
            raise InvalidArgumentError({"token_budget": f"must be 1 to {MAX_TOKEN_BUDGET}"})
        return await self._store.reading(
            user_id, request.conversation_id, lambda head: self._context(user_id, head, request, budget)
        )

    async def _context(
        self, user_id: str, head: document_pb2.Head, request: api.GetContextRequest, budget: int
    ) -> bytes:
        summary, covered = b"", head.first_sequence - 1
        tokens = 0
        if head.summary_sequence and not request.ignore_summary:
            found = await self._store.after(
                user_id, head, after=head.summary_sequence - 1, limit=1, max_bytes=MAX_RESPONSE_BYTES
            )
            if found and found[0].sequence == head.summary_sequence and found[0].framed is not None:
                message = message_pb2.Message.FromString(domain.unframe(found[0].framed))
                summary, tokens = found[0].framed, _tokens(message, found[0].size)
                covered = message.content[0].summary.last_sequence
        tail, tokens, complete = await self._tail(user_id, head, covered, budget, tokens, len(summary))
        rest = api.GetContextResponse(tokens=tokens, last_sequence=domain.last_sequence(head), incomplete=not complete)
        return summary + b"".join(reversed(tail)) + rest.SerializeToString()

    async def _tail(
        self, user_id: str, head: document_pb2.Head, covered: int, budget: int, tokens: int, size: int
    ) -> tuple[list[bytes], int, bool]:
        tail: list[bytes] = []
        before = int(head.next_sequence)
        while before > covered + 1:
            found = await self._store.newest(user_id, head, before=before, limit=100, max_bytes=MAX_RESPONSE_BYTES)
            for slot in reversed(found):
                if slot.sequence <= covered:
                    return tail, tokens, True
                assert slot.framed is not None
                message = message_pb2.Message.FromString(domain.unframe(slot.framed))
                # Summaries stand for what they cover; of the older ones nothing is left to say.
                if message.hidden_from_agent or message.content[0].WhichOneof("kind") == "summary":
                    continue
                cost = _tokens(message, slot.size)
                if tokens + cost > budget or size + slot.size > MAX_RESPONSE_BYTES:
                    return tail, tokens, False
                tokens, size = tokens + cost, size + slot.size
                tail.append(slot.framed)
            if not found:
                break
            before = found[0].sequence
        return tail, tokens, True

    async def conversations(self, user_id: str, request: api.ListConversationsRequest) -> api.ListConversationsResponse:
        """List by creation, newest first, from the user's index and the heads themselves."""
        size = paging.page_size(request.page_size, default=DEFAULT_PAGE_CONVERSATIONS, most=MAX_PAGE_CONVERSATIONS)
        scope = ("ListConversations", user_id)
        cursor = paging.decode(request.page_token, *scope)
        response = api.ListConversationsResponse()
        batch: list[tuple[int, int, str]] = []
        bucket = int(cursor["k"]) if cursor else None
        position = int(cursor["p"]) if cursor else None
        async for current, place, entry in self._indexes.newest_first(user_id, bucket=bucket, position=position):
            if entry.HasField("delete_time"):
                continue
            if len(response.conversations) + len(batch) == size:
                response.next_page_token = paging.encode({"k": current, "p": place}, *scope)
                break
            batch.append((current, place, entry.conversation_id))
            if len(batch) == _HEADS_AT_ONCE:
                response.conversations.extend(await self.describe(user_id, [one for _, _, one in batch]))
                batch = []
        response.conversations.extend(await self.describe(user_id, [one for _, _, one in batch]))
        return response

    async def describe(self, user_id: str, conversation_ids: list[str]) -> list[conversation_pb2.Conversation]:
        """Read several conversations, in this order; those gone meanwhile are left out."""
        keys = [head_key(user_id, one) for one in conversation_ids]
        found = await self._store.state.get_many(keys, confirm=keys)
        heads = [document_pb2.Head.FromString(found[key].value) for key in keys if key in found]
        now = datetime.now(UTC)
        return [domain.describe(head) for head in heads if not head.HasField("delete_time") and not expired(head, now)]


def _scope(user_id: str, conversation_id: str) -> tuple[str, str, str]:
    return ("ListMessages", user_id, conversation_id)


def _join(slots: list[domain.Slot]) -> bytes:
    return b"".join(slot.framed for slot in slots if slot.framed is not None)


def _trailer(head: document_pb2.Head, token: str) -> bytes:
    rest = api.ListMessagesResponse(next_page_token=token, last_sequence=head.next_sequence - 1)
    if head.truncated or head.message_count != head.next_sequence - head.first_sequence:
        rest.truncated.extend(domain.holes(head)[-_TRUNCATED_TOLD:])
    return rest.SerializeToString()


def _tokens(message: message_pb2.Message, size: int) -> int:
    """Count a message: what the model counted for it, else a quarter of its bytes."""
    if message.usage.HasField("output_tokens"):
        return int(message.usage.output_tokens)
    return -(-size // 4)
