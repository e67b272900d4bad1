"""Finds again whom something is due for: by a restart, a death, a pause, the end of quiet hours, a digest's time.

Every process looks whose turn it is; a lease lets one of them work. It reads the buckets of what is due, from the
oldest that is not settled to the present one, and hands over whoever's time has come. An entry is settled when its
user's inbox names another time, or none.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import structlog

from gaggle.notification.state.v1 import document_pb2
from services.notification.delivering import Delivery
from services.notification.domain import Inbox
from services.notification.index import SHARDS, bucket_of, due_key, inbox_key, put
from services.notification.settings import NotificationSettings
from services.notification.store import NotificationStore
from services.runtime.errors import GaggleError
from services.runtime.state import CommitFailedError, Item, Put, Remove
from services.runtime.times import timestamp

SWEEP_KEY = "sweep"
_BUCKETS_AT_ONCE = 16
_USERS_AT_ONCE = 16

_log = structlog.get_logger()


class Sweep:
    """One at a time, by the lease."""

    def __init__(self, store: NotificationStore, delivery: Delivery, settings: NotificationSettings) -> None:
        """`delivery` has the process's name."""
        self._store = store
        self._delivery = delivery
        self._settings = settings
        self._renew_after = 0.0
        self._low = 0

    async def run(self) -> None:
        """Sweep again and again, until cancelled."""
        while True:
            try:
                await self.once()
            except (GaggleError, CommitFailedError) as error:
                _log.warning("sweep_put_off", error=str(error))
                self._renew_after = 0.0
            await asyncio.sleep(self._settings.sweep_seconds)

    async def once(self) -> bool:
        """Sweep; False if another process does. Raises UnavailableError, DeadlineError."""
        now = asyncio.get_running_loop().time()
        if now >= self._renew_after:
            held = await self._take_lease()
            self._renew_after = now + self._settings.sweep_lease_seconds / 3
            if not held:
                self._low = 0
                return False
        if not self._low:
            return False
        await self._look()
        return True

    async def _take_lease(self) -> bool:
        item = await self._store.state.get(SWEEP_KEY)
        document = document_pb2.Sweep.FromString(item.value) if item else document_pb2.Sweep()
        now = self._store.now()
        lease = timedelta(seconds=self._settings.sweep_lease_seconds)
        other = document.holder not in ("", self._delivery.holder)
        # A lease beyond any that is given was taken by a clock that was ahead.
        if other and now < document.expire_time.ToDatetime(UTC) <= now + lease:
            return False
        low = self._low or document.low_bucket or bucket_of(now) - 1
        # A clock that was set back leaves what is due before where it had come to.
        document.low_bucket = min(low, bucket_of(now) - 1)
        document.holder = self._delivery.holder
        document.expire_time.CopyFrom(timestamp(now + lease))
        try:
            await self._store.state.commit([put(SWEEP_KEY, document.SerializeToString(), item)])
        except CommitFailedError:
            return False
        self._low = document.low_bucket
        return True

    async def _look(self) -> None:
        present = bucket_of(self._store.now())
        low, settled_so_far = self._low, True
        for first in range(self._low, present + 1, _BUCKETS_AT_ONCE):
            buckets = range(first, min(first + _BUCKETS_AT_ONCE, present + 1))
            unsettled = await self._buckets(buckets)
            if settled_so_far:
                settled_so_far = not unsettled
                # Never past what writers may still be about to enter.
                low = min([*unsettled, buckets.stop, bucket_of(self._store.now()) - 1])
        self._low = max(self._low, low)

    async def _buckets(self, buckets: range) -> set[int]:
        """Look through some buckets; gives those that still hold something."""
        keys = {due_key(bucket, shard): bucket for bucket in buckets for shard in range(SHARDS)}
        found = await self._store.state.get_many(list(keys))
        # A read that breaks off looks empty. The present minutes are read again soon, what is over now.
        if over := [key for key, bucket in keys.items() if self._is_over(bucket) and key not in found]:
            found |= await self._store.state.get_many(over)
        unsettled = set()
        for key, item in found.items():
            document = document_pb2.DueBucket.FromString(item.value)
            chunks = [f"{key}:c{number}" for number in range(document.chunks)]
            settled = True
            for chunk, one in (await self._store.state.get_many(chunks, confirm=chunks)).items():
                settled &= await self._page(chunk, one, document_pb2.DueBucket.FromString(one.value), goes=True)
            # The first document counts the chunks: it goes last, and while its time lasts only if it counts none.
            goes = settled and (self._is_over(keys[key]) or not document.chunks)
            settled &= await self._page(key, item, document, goes=goes)
            if not settled:
                unsettled.add(keys[key])
        return unsettled

    def _is_over(self, bucket: int) -> bool:
        """Tell whether nobody enters anything in a bucket any more."""
        return bucket < bucket_of(self._store.now()) - 1

    async def _page(self, key: str, item: Item, document: document_pb2.DueBucket, *, goes: bool) -> bool:
        """Look through a document of entries and take out what is settled; True if nothing is left in it."""
        now = self._store.now()
        due = [one for one in document.entries if one.time.ToDatetime(UTC) <= now]
        left = [one for one in document.entries if one.time.ToDatetime(UTC) > now]
        for start in range(0, len(due), _USERS_AT_ONCE):
            left += await self._users(due[start : start + _USERS_AT_ONCE], now)
        goes = goes and not left
        if len(left) == len(document.entries) and not goes:
            return not left
        operation: Put | Remove = Remove(key, etag=item.etag)
        if not goes:
            del document.entries[:]
            document.entries.extend(left)
            operation = Put(key, document.SerializeToString(), etag=item.etag)
        try:
            await self._store.state.commit([operation])
        except CommitFailedError:
            return False  # Somebody has entered something: next time.
        return not left

    async def _users(self, entries: Sequence[document_pb2.DueEntry], now: datetime) -> list[document_pb2.DueEntry]:
        """Hand over whose entries hold; gives those."""
        keys = [inbox_key(one.user_id) for one in entries]
        found = await self._store.state.get_many(keys, confirm=keys)
        left = []
        for key, one in zip(keys, entries, strict=True):
            inbox = Inbox.FromString(found[key].value) if key in found else Inbox()
            if inbox.HasField("wake_time") and inbox.wake_time == one.time:
                left.append(one)
                if inbox.wake_time.ToDatetime(UTC) <= now:
                    self._delivery.look(one.user_id)
        return left
