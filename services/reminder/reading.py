"""Gives reminders back."""

from collections.abc import Iterable

from gaggle.reminder.v1 import reminder_pb2
from gaggle.reminder.v1 import reminder_service_pb2 as api
from services.reminder import domain
from services.reminder.domain import Document
from services.reminder.store import ReminderStore
from services.runtime import paging
from services.runtime.errors import NotFoundError

_PAGE = 50
_MOST = 200
_TASKS_AT_ONCE = 50


class Reader:
    """Reads strongly."""

    def __init__(self, store: ReminderStore) -> None:
        """`store` has the reminders."""
        self._store = store

    async def get(self, user_id: str, task_id: str, reminder_id: str) -> reminder_pb2.Reminder:
        """Read one. Raises NotFoundError."""
        document = await self._store.find(user_id, task_id)
        for one in document.reminders if document is not None else ():
            if document is not None and one.reminder.id == reminder_id:
                return domain.describe(document, one)
        raise NotFoundError("reminder", reminder_id)

    async def page(self, user_id: str, request: api.ListRemindersRequest) -> api.ListRemindersResponse:
        """List a user's, or a task's. Raises InvalidArgumentError, INVALID_PAGE_TOKEN."""
        states = frozenset(request.states) or domain.LIVE
        scope = ("ListReminders", user_id, request.task_id, ",".join(map(str, sorted(states))))
        cursor = paging.decode(request.page_token, *scope)
        size = paging.page_size(request.page_size, default=_PAGE, most=_MOST)
        response = api.ListRemindersResponse()
        if request.task_id:
            document = await self._store.find(user_id, request.task_id)
            response.reminders.extend(_wanted(document, states) if document is not None else [])
            return response
        bucket = int(cursor["k"]) if cursor else None
        position = int(cursor["p"]) if cursor else None
        batch: list[tuple[int, int, str]] = []
        async for place in self._store.index.newest_first(user_id, bucket=bucket, position=position):
            if len(batch) == _TASKS_AT_ONCE:
                if (stopped := await self._add(user_id, batch, states, size, response)) is not None:
                    response.next_page_token = paging.encode({"k": stopped[0], "p": stopped[1]}, *scope)
                    return response
                batch = []
            batch.append(place)
        if (stopped := await self._add(user_id, batch, states, size, response)) is not None:
            response.next_page_token = paging.encode({"k": stopped[0], "p": stopped[1]}, *scope)
        return response

    async def _add(
        self,
        user_id: str,
        batch: list[tuple[int, int, str]],
        states: frozenset[int],
        size: int,
        response: api.ListRemindersResponse,
    ) -> tuple[int, int] | None:
        """Add the reminders of some tasks; gives the place at which the page was full."""
        documents = await self._store.find_many([(user_id, task_id) for _, _, task_id in batch])
        for bucket, position, task_id in batch:
            if len(response.reminders) >= size:
                return bucket, position
            document = documents.get((user_id, task_id))
            # A task whose reminders had run out, and came again, stands in the index twice.
            if document is not None and document.index_bucket == bucket:
                response.reminders.extend(_wanted(document, states))
        return None


def _wanted(document: Document, states: Iterable[int]) -> list[reminder_pb2.Reminder]:
    found = [domain.describe(document, one) for one in document.reminders if one.reminder.state in states]
    return sorted(found, key=lambda one: (one.remind_at.ToNanoseconds(), one.id))
