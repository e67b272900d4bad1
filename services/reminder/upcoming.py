"""What fires next, whoever it is for: for operators. Read from the buckets of what may be due, as the sweep does."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from operator import itemgetter

from gaggle.reminder.state.v1 import document_pb2
from gaggle.reminder.v1 import reminder_service_pb2 as api
from services.reminder import domain
from services.reminder.firing import current
from services.reminder.index import SHARDS, bucket_of, due_key
from services.reminder.store import ReminderStore
from services.reminder.sweeping import SWEEP_KEY
from services.runtime import paging

_PAGE = 50
_MOST = 200
_HORIZON = timedelta(hours=1)
_MOST_HORIZON = timedelta(hours=24)
_BUCKETS_AT_ONCE = 16
_TASKS_AT_ONCE = 100
_KEYS_AT_ONCE = 512

_Place = tuple[int, str]
"""Nanoseconds of Unix time, and user, task, reminder and occurrence: the order of the list."""


class Upcoming:
    """Reads strongly."""

    def __init__(self, store: ReminderStore) -> None:
        """`store` has the reminders."""
        self._store = store

    async def page(self, request: api.ListDueRemindersRequest) -> api.ListDueRemindersResponse:
        """List what is overdue and what comes due. Raises InvalidArgumentError, INVALID_PAGE_TOKEN."""
        scope = ("ListDueReminders", str(request.horizon.seconds))
        cursor = paging.decode(request.page_token, *scope)
        size = paging.page_size(request.page_size, default=_PAGE, most=_MOST)
        after = (int(cursor["t"]), str(cursor["k"])) if cursor else (0, "")
        horizon = min(request.horizon.ToTimedelta() or _HORIZON, _MOST_HORIZON)
        response = api.ListDueRemindersResponse()
        ends = self._store.now() + horizon
        first, last = await self._oldest(), bucket_of(ends)
        # What was late when it was set lies in a later bucket than its time says: all up to now are read together.
        stop = bucket_of(self._store.now()) + 2
        while first <= last:
            entries = await self._entries(range(first, min(stop, last + 1)))
            places = sorted({_place(one): one for one in entries if _place(one) > after}.items(), key=itemgetter(0))
            first, stop = stop, stop + _BUCKETS_AT_ONCE
            for start in range(0, len(places), _TASKS_AT_ONCE):
                full = await self._add(places[start : start + _TASKS_AT_ONCE], ends, size, response)
                if full is not None:
                    response.next_page_token = paging.encode({"t": full[0], "k": full[1]}, *scope)
                    return response
        return response

    async def _oldest(self) -> int:
        item = await self._store.state.get(SWEEP_KEY)
        sweep = document_pb2.Sweep.FromString(item.value) if item else document_pb2.Sweep()
        latest = bucket_of(self._store.now()) - 1
        return min(sweep.low_bucket, latest) if sweep.low_bucket else latest

    async def _entries(self, buckets: Iterable[int]) -> list[document_pb2.DueEntry]:
        keys = [due_key(bucket, shard) for bucket in buckets for shard in range(SHARDS)]
        found: list[document_pb2.DueEntry] = []
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            for key, item in (await self._store.state.get_many(keys[start : start + _KEYS_AT_ONCE])).items():
                document = document_pb2.DueBucket.FromString(item.value)
                found += document.entries
                chunks = [f"{key}:c{number}" for number in range(document.chunks)]
                for chunk in (await self._store.state.get_many(chunks)).values():
                    found += document_pb2.DueBucket.FromString(chunk.value).entries
        return found

    async def _add(
        self,
        places: list[tuple[_Place, document_pb2.DueEntry]],
        ends: datetime,
        size: int,
        response: api.ListDueRemindersResponse,
    ) -> _Place | None:
        """Add those of some entries that are still to fire; gives the last one's place when the page is full."""
        documents = await self._store.find_many(list({(one.user_id, one.task_id) for _, one in places}))
        for place, one in places:
            document = documents.get((one.user_id, one.task_id))
            live = None if document is None else current(document, one.reminder_id, one.occurrence)
            if document is None or live is None or one.remind_at.ToDatetime(UTC) > ends:
                continue
            response.reminders.add(user_id=one.user_id, reminder=domain.describe(document, live))
            if len(response.reminders) == size:
                return place
        return None


def _place(one: document_pb2.DueEntry) -> _Place:
    return one.remind_at.ToNanoseconds(), "\0".join((one.user_id, one.task_id, one.reminder_id, str(one.occurrence)))
