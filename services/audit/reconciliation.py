"""Finds what a broker lost in silence, and has the owner publish it again."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial

import structlog

from services.audit.owner import ConversationOwner
from services.audit.revisions import EntityOwner
from services.audit.store import AuditStore, Gap, Snapshot
from services.runtime.errors import GaggleError

CONVERSATION = "conversation"
_AT_ONCE = 1000
_LEASE = "reconcile"

_log = structlog.get_logger()


class Reconciliation:
    """Compares the owner's revisions with those that the log has seen."""

    def __init__(
        self,
        store: AuditStore,
        owner: ConversationOwner,
        *,
        holder: str,
        interval_seconds: float,
        grace_seconds: float,
        others: Sequence[EntityOwner] = (),
    ) -> None:
        """One process does it at a time; `holder` names this one. A gap counts when it is as old as the grace.

        `others` own entities of which the read model keeps what their events tell.
        """
        self._store = store
        self._owner = owner
        self._holder = holder
        self._interval = interval_seconds
        self._grace = grace_seconds
        self._others = others

    async def run(self) -> None:
        """Reconcile at every interval, until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            if await self._store.take_lease(_LEASE, self._holder, self._interval * 2):
                await self.once()

    async def once(self) -> int:
        """Walk all users; give how many events were published again."""
        published = 0
        async for user_id in self._owner.users():
            async for snapshots in self._owner.snapshots(user_id):
                await self._store.apply_snapshots([one for one in snapshots if not one.deleted])
                published += await self._close_gaps(CONVERSATION, self._owner.republish, snapshots)
        for other in self._others:
            published += await self._walk(other)
        if published:
            _log.warning("events_republished", count=published)
        return published

    async def _walk(self, owner: EntityOwner) -> int:
        published = 0
        try:
            async for user_id in owner.users():
                async for by_type in owner.snapshots(user_id):
                    for entity_type, snapshots in by_type.items():
                        published += await self._close_gaps(
                            entity_type, partial(owner.republish, entity_type), snapshots
                        )
        except GaggleError as error:
            # A mesh may run without this service; the others' gaps are closed all the same.
            _log.info("owner_not_reconciled", owner=owner.app_id, error=str(error))
        return published

    async def _close_gaps(
        self, entity_type: str, republish: Callable[[str, str, int, int], Awaitable[int]], snapshots: list[Snapshot]
    ) -> int:
        if not await self._store.find_gaps(entity_type, snapshots):
            return 0
        # Whatever is on its way has arrived after this.
        await asyncio.sleep(self._grace)
        gaps = await self._store.find_gaps(entity_type, snapshots)
        published, lost = 0, []
        for gap in _pieces(gaps):
            count = await republish(gap.user_id, gap.id, gap.first, gap.last)
            published += count
            if not count:
                lost.append(gap)
        if lost:
            _log.error("events_lost", gaps=[(one.id, one.first, one.last) for one in lost])
            await self._store.mark_lost(entity_type, lost)
        return published


def _pieces(gaps: list[Gap]) -> Iterator[Gap]:
    for gap in gaps:
        for first in range(gap.first, gap.last + 1, _AT_ONCE):
            yield Gap(gap.user_id, gap.id, gap.incarnation, first, min(first + _AT_ONCE - 1, gap.last))
