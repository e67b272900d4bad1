"""A Session of openai-agents: its items are the messages of a conversation."""

import asyncio
import random
import re
import uuid
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio

from gaggle.conversation.v1 import conversation_service_pb2 as api
from gaggle.conversation.v1.conversation_pb2 import Retention
from gaggle_client._items import to_items, to_message

if TYPE_CHECKING:
    from agents.items import TResponseInputItem
    from agents.memory import SessionSettings

    from gaggle.conversation.v1.message_pb2 import Message
    from gaggle_client._connection import Gaggle

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PAGE_MESSAGES = 1000
_APPEND_MESSAGES = 500
_APPEND_BYTES = 2 * 1024 * 1024
_RACES = 20


class GaggleSession:
    """Keeps a session's items in the conversation of the same id. Made for one user: the connection's token says whose.

    Its methods raise grpc.aio.AioRpcError: refused, or no answer within the connection's time.
    """

    def __init__(
        self,
        session_id: str,
        gaggle: "Gaggle",
        *,
        session_settings: "SessionSettings | None" = None,
        max_messages: int | None = None,
    ) -> None:
        """`session_settings.limit`: how many items are given where nobody says; None: all.

        `max_messages`: what the conversation keeps if it is made here, 0 for all; None: the deployment's own number.
        Raises ValueError if the id is not [A-Za-z0-9._-]{1,64}.
        """
        if not _ID.fullmatch(session_id):
            raise ValueError(f"a session's id is [A-Za-z0-9._-]{{1,64}}, not {session_id!r}")
        self.session_id = session_id
        self.session_settings = session_settings
        self._gaggle = gaggle
        self._max_messages = max_messages

    async def get_items(self, limit: int | None = None) -> "list[TResponseInputItem]":
        """Give the newest items, oldest of them first; all without a limit."""
        settings = self.session_settings
        most = limit if limit is not None else (settings.limit if settings is not None else None)
        if most is not None and most <= 0:
            return []
        items: list[dict[str, Any]] = []
        request = api.ListMessagesRequest(
            conversation_id=self.session_id, page_size=min(most or _PAGE_MESSAGES, _PAGE_MESSAGES)
        )
        while most is None or len(items) < most:
            page = await self._list(request)
            if page is None:
                break
            items = [*(item for message in page.messages for item in to_items(message)), *items]
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        return cast("list[TResponseInputItem]", items if most is None else items[-most:])

    async def add_items(self, items: "list[TResponseInputItem]") -> None:
        """Add items, all or none if they are at most 500 and 2 MiB; else in several such steps."""
        batch: list[Message] = []
        size = 0
        for message in [to_message(cast("dict[str, Any]", item)) for item in items]:
            if batch and (len(batch) == _APPEND_MESSAGES or size + message.ByteSize() > _APPEND_BYTES):
                await self._append(batch)
                batch, size = [], 0
            batch.append(message)
            size += message.ByteSize()
        if batch:
            await self._append(batch)

    async def pop_item(self) -> "TResponseInputItem | None":
        """Take the newest item away and give it; None if there is none.

        A message of another writer that stands for several items goes as a whole, and its last item is given.
        """
        for _ in range(_RACES):
            etag = await self._etag()
            page = await self._list(api.ListMessagesRequest(conversation_id=self.session_id, page_size=1))
            if not etag or page is None or not page.messages:
                return None
            newest = page.messages[-1]
            if not await self._truncate(etag=etag, after_sequence=newest.sequence - 1):
                await asyncio.sleep(random.uniform(0, 0.05))  # noqa: S311 - so that rivals part
                continue
            if items := to_items(newest):
                return cast("TResponseInputItem", items[-1])
        raise RuntimeError(f"other writers of {self.session_id} were faster {_RACES} times")

    async def clear_session(self) -> None:
        """Take all items away. The conversation stays, and its sequences are not given again."""
        await self._truncate(all=True)

    # -- the service

    async def _list(self, request: api.ListMessagesRequest) -> Any:
        """Give a page; None if there is no such conversation yet."""
        try:
            return await self._gaggle.call("ListMessages", request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise

    async def _append(self, messages: "list[Message]") -> None:
        request = api.AppendMessagesRequest(
            conversation_id=self.session_id, messages=messages, request_id=str(uuid.uuid4())
        )
        try:
            await self._gaggle.call("AppendMessages", request)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            await self._create()
            await self._gaggle.call("AppendMessages", request)

    async def _create(self) -> None:
        kept = None if self._max_messages is None else Retention(max_messages=self._max_messages)
        request = api.CreateConversationRequest(
            conversation_id=self.session_id, request_id=str(uuid.uuid4()), retention=kept
        )
        try:
            await self._gaggle.call("CreateConversation", request)
        except grpc.aio.AioRpcError as error:
            # Someone else was faster, which is as well; one that was deleted lately makes the append say so.
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise

    async def _etag(self) -> str:
        request = api.GetConversationRequest(conversation_id=self.session_id)
        try:
            return str((await self._gaggle.call("GetConversation", request)).conversation.etag)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return ""
            raise

    async def _truncate(self, **fields: Any) -> bool:
        """Truncate; False if someone else changed the conversation since the etag."""
        request = api.TruncateConversationRequest(
            conversation_id=self.session_id, request_id=str(uuid.uuid4()), **fields
        )
        try:
            await self._gaggle.call("TruncateConversation", request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return True
            if error.code() is grpc.StatusCode.ABORTED and request.etag:
                return False
            raise
        return True
