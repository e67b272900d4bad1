"""The audit service's methods: read the request, ask the store, shape the answer."""

import time
from collections.abc import AsyncIterator
from typing import Any

from gaggle.audit.v1 import audit_service_pb2 as api
from gaggle.audit.v1 import audit_service_pb2_grpc as api_grpc
from gaggle.audit.v1 import log_service_pb2 as log_api
from gaggle.audit.v1 import log_service_pb2_grpc as log_api_grpc
from services.audit.publishing import EventPublisher
from services.audit.rebuilding import Rebuild
from services.audit.requests import (
    counted_by,
    event_filter,
    filter_scope,
    metadata_filter,
    search_query,
    user_of,
)
from services.audit.shapes import conversation, count, dead_letter, hit, log_entry
from services.audit.store import AuditStore, Page
from services.audit.tail import LogTail
from services.runtime import paging
from services.runtime.access import ADMIN, Access, only, user_or
from services.runtime.errors import InvalidArgumentError
from services.runtime.identity import current_caller

_READERS = user_or("agent", "conversation", "recipe", "sync", "task")
AUDIT_ACCESS: dict[str, Access] = {
    "Search": _READERS,
    "QueryConversations": _READERS,
    "ListEvents": _READERS,
    "CountEvents": _READERS,
    "WatchEvents": _READERS,
    "Rebuild": ADMIN,
    "ListDeadLetters": ADMIN,
}
LOG_ACCESS: dict[str, Access] = {"*": only("sync")}
_EVENTS, _MOST_EVENTS = 100, 1000
_LOG_EVENTS = 500
_HITS, _MOST_HITS = 20, 100
_MOST_COUNTS = 10_000


class AuditServicer(api_grpc.AuditServiceServicer):
    """Serves gaggle.audit.v1.AuditService."""

    def __init__(
        self, store: AuditStore, tail: LogTail, publisher: EventPublisher, rebuild: Rebuild, *, heartbeat_seconds: float
    ) -> None:
        """`heartbeat_seconds`: a stream that has nothing to say says so after so long."""
        self._store = store
        self._tail = tail
        self._publisher = publisher
        self._rebuild = rebuild
        self._heartbeat = heartbeat_seconds

    async def PublishEvent(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        event_id = await self._publisher.publish(current_caller(), request.event, request.topic)
        return api.PublishEventResponse(event_id=event_id)

    async def ListEvents(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        chosen = event_filter(current_caller(), request.filter)
        scope = ("ListEvents", str(request.descending), filter_scope(chosen))
        size = paging.page_size(request.page_size, default=_EVENTS, most=_MOST_EVENTS)
        cursor = paging.decode(request.page_token, *scope)
        if cursor:
            chosen["before" if request.descending else "after"] = cursor["p"]
        page = await self._store.list_events(chosen, limit=size, descending=request.descending)
        entries = [log_entry(one) for one in page.items]
        token = paging.encode({"p": entries[-1].position}, *scope) if page.more and entries else ""
        return api.ListEventsResponse(entries=entries, next_page_token=token)

    async def CountEvents(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        chosen = event_filter(current_caller(), request.filter)
        counts, total = await self._store.count_events(chosen, by=counted_by(request.by), limit=_MOST_COUNTS)
        return api.CountEventsResponse(counts=[count(one) for one in counts], total=total)

    async def WatchEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002
        """See the contract."""
        chosen = event_filter(current_caller(), request.filter)
        given = request.HasField("after_position")
        position = request.after_position if given else await self._store.head()
        while True:
            page = await self._store.list_events(chosen | {"after": position}, limit=_EVENTS)
            entries = [log_entry(one) for one in page.items]
            # A filter passes over what is not wanted: resume behind that, too.
            position = entries[-1].position if page.more and entries else max(position, page.head)
            if entries:
                yield api.WatchEventsResponse(entries=entries, position=position)
            if not page.more:
                while not await self._tail.wait_beyond(position, self._heartbeat):
                    yield api.WatchEventsResponse(position=position)

    async def Search(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        asked = {"user_id": user_of(current_caller(), request.user_id), "query": search_query(request.query)}
        if request.conversation_id:
            asked["conversation_id"] = request.conversation_id
        scope = ("Search", *asked.values(), str(len(asked)))
        size = paging.page_size(request.page_size, default=_HITS, most=_MOST_HITS)
        cursor = paging.decode(request.page_token, *scope)
        after = (
            {"rank": float(cursor["r"]), "conversation_id": cursor["c"], "sequence": cursor["s"]} if cursor else None
        )
        page = await self._store.search(asked | {"limit": size, "after": after})
        token = ""
        if page.more and page.items:
            last = page.items[-1]
            # As text: a float in JSON keeps its value, and the token's parts are text or whole numbers.
            place = {"r": repr(last["rank"]), "c": last["conversation_id"], "s": last["sequence"]}
            token = paging.encode(place, *scope)
        return api.SearchResponse(hits=[hit(one) for one in page.items], next_page_token=token)

    async def QueryConversations(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        asked: dict[str, Any] = {
            "user_id": user_of(current_caller(), request.user_id),
            "metadata": metadata_filter(request.metadata),
            "by_update_time": request.order_by_update_time,
        }
        scope = ("QueryConversations", filter_scope(asked))
        size = paging.page_size(request.page_size, default=_HITS, most=_MOST_HITS)
        cursor = paging.decode(request.page_token, *scope)
        after = {"time": cursor["t"], "id": cursor["i"]} if cursor else None
        page = await self._store.query_conversations(asked | {"limit": size, "after": after})
        found = [conversation(one) for one in page.items]
        ordered_by = "updated_at" if request.order_by_update_time else "created_at"
        token = paging.encode({"t": page.items[-1][ordered_by], "i": found[-1].id}, *scope) if page.more else ""
        return api.QueryConversationsResponse(conversations=found, next_page_token=token)

    async def Rebuild(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002
        """See the contract."""
        started = time.monotonic()
        async for progress in self._rebuild.run(request.user_id or None):
            response = api.RebuildResponse(
                users=progress.users,
                conversations=progress.conversations,
                messages=progress.messages,
                entities=progress.entities,
                done=progress.done,
            )
            response.elapsed.FromNanoseconds(int((time.monotonic() - started) * 1e9))
            yield response

    async def ListDeadLetters(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        size = paging.page_size(request.page_size, default=_EVENTS, most=_MOST_EVENTS)
        cursor = paging.decode(request.page_token, "ListDeadLetters")
        page = await self._store.list_dead_letters(int(cursor.get("p", 0)), size)
        letters = [dead_letter(one) for one in page.items]
        token = paging.encode({"p": letters[-1].position}, "ListDeadLetters") if page.more and letters else ""
        return api.ListDeadLettersResponse(dead_letters=letters, next_page_token=token)


def _place(found: dict[str, Any]) -> paging.Cursor:
    # The rank as text: a token's parts are text or whole numbers, and repr keeps a float's value.
    return {"r": repr(found["rank"]), "c": found["conversation_id"], "s": found["sequence"]}


def _after(cursor: paging.Cursor) -> dict[str, Any] | None:
    return {"rank": float(cursor["r"]), "conversation_id": cursor["c"], "sequence": cursor["s"]} if cursor else None


class LogServicer(log_api_grpc.LogServiceServicer):
    """Serves gaggle.audit.v1.LogService."""

    def __init__(self, store: AuditStore, tail: LogTail, *, heartbeat_seconds: float) -> None:
        """`heartbeat_seconds`: a stream that has nothing to say says so after so long."""
        self._store = store
        self._tail = tail
        self._heartbeat = heartbeat_seconds

    async def FollowLog(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002
        """See the contract."""
        given = request.HasField("after_position")
        position = request.after_position if given else await self._store.head()
        begun = False
        while True:
            page = await self._page({}, position)
            entries = [log_entry(one) for one in page.items]
            position = _end(page, position)
            if entries or not begun:
                begun = True
                yield log_api.FollowLogResponse(entries=entries, position=position)
            if not page.more:
                while not await self._tail.wait_beyond(position, self._heartbeat):
                    yield log_api.FollowLogResponse(position=position)

    async def ReadLog(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        page = await self._page({"user_id": current_caller().user_id}, request.after_position)
        entries = [log_entry(one) for one in page.items]
        return log_api.ReadLogResponse(entries=entries, position=_end(page, request.after_position), more=page.more)

    async def _page(self, chosen: dict[str, Any], after: int) -> Page:
        page = await self._store.list_events(chosen | {"after": after}, limit=_LOG_EVENTS)
        if after > page.head:
            raise InvalidArgumentError({"after_position": f"is beyond the end of the log, {page.head}"})
        return page


def _end(page: Page, after: int) -> int:
    """Give the position up to which a page tells everything."""
    return int(page.items[-1]["position"]) if page.more and page.items else max(after, page.head)
