"""Finds what a broker lost in silence, and has the owner publish it again."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import structlog

from services.audit.entities import EntityOwner
from services.audit.owner import ConversationOwner
from services.audit.store import AuditStore, Gap, Snapshot
from services.runtime.errors import GaggleError

CONVERSATION = "conversation"
_AT_ONCE = 1000
_LEASE = "reconcile"
_BEHIND_SECONDS = 60.0
"""More than owners' clocks differ by."""


_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Pace:
    """How often reconciliations are made, and by whom."""

    holder: str
    """Names this process: one at a time does the work."""

    interval_seconds: float
    grace_seconds: float
    """A gap counts when it is as old as this."""


class Reconciliation:
    """Compares an owner's revisions with those that the log has seen."""

    def __init__(self, store: AuditStore, owner: ConversationOwner, pace: Pace) -> None:
        """Of conversations; EntityReconciliation is that of all others."""
        self._store = store
        self._owner = owner
        self._pace = pace

    async def run(self) -> None:
        """Reconcile at every interval, until cancelled."""
        while True:
            await asyncio.sleep(self._pace.interval_seconds)
            if await self._store.take_lease(_LEASE, self._pace.holder, self._pace.interval_seconds * 2):
                await self.once()

    async def once(self) -> int:
        """Walk all users; give how many events were published again."""
        published = 0
        async for user_id in self._owner.users():
            async for snapshots in self._owner.snapshots(user_id):
                await self._store.apply_snapshots([one for one in snapshots if not one.deleted])
                published += await close_gaps(
                    self._store, CONVERSATION, snapshots, self._republish, self._pace.grace_seconds
                )
        if published:
            _log.warning("events_republished", count=published)
        return published

    async def _republish(self, gap: Gap) -> int:
        return await self._owner.republish(gap.user_id, gap.id, gap.first, gap.last)


class EntityReconciliation:
    """The same for the entities of another service, in a round of its own: it may be away, or not part of the mesh."""

    def __init__(self, store: AuditStore, owner: EntityOwner, pace: Pace) -> None:
        """See Reconciliation."""
        self._store = store
        self._owner = owner
        self._pace = pace

    @property
    def app_id(self) -> str:
        """The owner's."""
        return self._owner.app_id

    async def run(self) -> None:
        """Reconcile at every interval, until cancelled."""
        lease = f"{_LEASE}.{self._owner.app_id}"
        while True:
            await asyncio.sleep(self._pace.interval_seconds)
            try:
                if await self._store.take_lease(lease, self._pace.holder, self._pace.interval_seconds * 2):
                    await self.once()
            except GaggleError as error:
                _log.info("reconciliation_put_off", owner=self._owner.app_id, error=error.message)

    async def once(self, user_id: str | None = None) -> int:
        """Walk all users, or look at one; give how many events were published again."""
        published = 0
        async for one in self._users(user_id):
            async for found in self._owner.revisions(one):
                for entity_type, snapshots in found.items():

                    async def republish(gap: Gap, kind: str = entity_type) -> int:
                        return await self._owner.republish(gap.user_id, kind, gap.id, gap.first, gap.last)

                    grace = self._pace.grace_seconds
                    published += await close_gaps(self._store, entity_type, snapshots, republish, grace)
        if published:
            _log.warning("events_republished", owner=self._owner.app_id, count=published)
        return published

    async def _users(self, user_id: str | None) -> AsyncIterator[str]:
        if user_id is not None:
            yield user_id
            return
        async for one in self._owner.users():
            yield one


async def close_gaps(
    store: AuditStore,
    entity_type: str,
    snapshots: list[Snapshot],
    republish: Callable[[Gap], Awaitable[int]],
    grace_seconds: float,
) -> int:
    """Have published again what these entities have told and the log has not; give how many events that were.

    Nothing while the log is behind: what it lacks is still queued, and a second copy of it would only come later.
    """
    if not await store.find_gaps(entity_type, snapshots):
        return 0
    head = await store.head()
    # Whatever is on its way has arrived after this, unless the log is behind.
    await asyncio.sleep(grace_seconds)
    if (seconds := await store.lag(head)) > _BEHIND_SECONDS:
        _log.info("reconciliation_put_off", entity_type=entity_type, seconds_behind=round(seconds))
        return 0
    gaps = await store.find_gaps(entity_type, snapshots)
    published, lost = 0, []
    for gap in _pieces(gaps):
        count = await republish(gap)
        published += count
        if not count:
            lost.append(gap)
    if lost:
        _log.error("events_lost", gaps=[(one.id, one.first, one.last) for one in lost])
        await store.mark_lost(entity_type, lost)
    return published


def _pieces(gaps: list[Gap]) -> Iterator[Gap]:
    for gap in gaps:
        for first in range(gap.first, gap.last + 1, _AT_ONCE):
            yield Gap(gap.user_id, gap.id, gap.incarnation, first, min(first + _AT_ONCE - 1, gap.last))
