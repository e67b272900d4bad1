"""Gives notifications and parked deliveries back."""

from gaggle.notification.v1 import notification_service_pb2 as api
from services.notification import domain
from services.notification.domain import PAGE, Edit, Notification
from services.notification.store import NotificationStore
from services.runtime import paging

_PAGE = 50
_MOST = 200
_PAGES_AT_ONCE = 8


class Reader:
    """Reads strongly."""

    def __init__(self, store: NotificationStore) -> None:
        """`store` has the inboxes."""
        self._store = store

    async def page(self, user_id: str, request: api.ListNotificationsRequest) -> api.ListNotificationsResponse:
        """List a user's, newest first. Raises InvalidArgumentError, INVALID_PAGE_TOKEN."""
        scope = ("ListNotifications", user_id, str(request.unread_only))
        cursor = paging.decode(request.page_token, *scope)
        size = paging.page_size(request.page_size, default=_PAGE, most=_MOST)
        document = await self._store.find(user_id)
        # The document's counts are asked for by way of a change that is never made.
        look = Edit(document, user_id, self._store.now())
        response = api.ListNotificationsResponse(unread_count=look.unread())
        before = int(cursor["s"]) if cursor else document.last_sequence + 1

        def add(found: "list[Notification]") -> bool:
            """Add what is wanted; False once the page is full."""
            for one in sorted(found, key=lambda each: -each.sequence):
                if one.sequence >= before or (request.unread_only and look.is_read(one)):
                    continue
                if len(response.notifications) == size:
                    last = response.notifications[-1].sequence
                    response.next_page_token = paging.encode({"s": last}, *scope)
                    return False
                response.notifications.add().CopyFrom(one)
                response.notifications[-1].read = look.is_read(one)
            return True

        if not add(list(document.notifications)):
            return response
        numbers = [one.page for one in document.pages if one.page * PAGE < before]
        if request.unread_only:
            numbers = [one.page for one in document.pages if one.page in numbers and one.unread]
        numbers.reverse()
        for start in range(0, len(numbers), _PAGES_AT_ONCE):
            wanted = numbers[start : start + _PAGES_AT_ONCE]
            pages = await self._store.pages(user_id, wanted)
            for number in wanted:
                if number in pages and not add(list(pages[number].notifications)):
                    return response
        return response

    async def unread(self, user_id: str) -> int:
        """Count what a user has not read."""
        return Edit(await self._store.find(user_id), user_id, self._store.now()).unread()

    async def preferences(self, user_id: str) -> domain.Preferences:
        """Read a user's preferences."""
        return domain.shown_preferences(await self._store.find(user_id))

    async def parked(self, request: api.ListParkedRequest) -> api.ListParkedResponse:
        """List parked deliveries of all users. Raises InvalidArgumentError, INVALID_PAGE_TOKEN."""
        size = paging.page_size(request.page_size, default=_PAGE, most=_MOST)
        first = int(paging.decode(request.page_token, "ListParked").get("k", 0))
        response = api.ListParkedResponse()
        while buckets := await self._store.parked.buckets(first):
            for number, _, document in buckets:
                if len(response.parked) >= size and document.parked:
                    response.next_page_token = paging.encode({"k": number}, "ListParked")
                    return response
                response.parked.extend(document.parked)
                first = number + 1
        return response
