"""Makes the read model again from what the owners say. The log is left as it is.

Conversations are read from their owner. Recipes, executions, extensions and sessions are what their events tell, so
their rows are made from the log, once it has had published again what their owners know and it lacks.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import structlog

from services.audit.indexing import Indexer
from services.audit.owner import ConversationOwner
from services.audit.reconciliation import EntityReconciliation
from services.audit.store import AuditStore, IndexWork, RefusedError, Snapshot
from services.runtime.errors import ConflictError, GaggleError, NotFoundError

_LEASE = "rebuild"
_LEASE_SECONDS = 120.0
# The background indexer leaves fresh rows to the rebuild for so long; if that ends early, it goes on from there.
_HEAD_START_SECONDS = 120.0
_EVENTS_AT_ONCE = 2000

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a rebuild has come."""

    users: int = 0
    conversations: int = 0
    messages: int = 0
    entities: int = 0
    """Recipes, executions, extensions and sessions."""

    done: bool = False


class Rebuild:
    """One at a time."""

    def __init__(
        self,
        store: AuditStore,
        owner: ConversationOwner,
        indexer: Indexer,
        others: Sequence[EntityReconciliation] = (),
        *,
        holder: str,
    ) -> None:
        """`others` reconcile what is made from the log; `holder` names this process."""
        self._store = store
        self._owner = owner
        self._indexer = indexer
        self._others = others
        self._holder = holder

    async def run(self, user_id: str | None) -> AsyncIterator[Progress]:
        """Make the rows of one user again, or of all. Raises ConflictError while another process does."""
        if not await self._store.take_lease(_LEASE, self._holder, _LEASE_SECONDS):
            raise ConflictError("another rebuild is under way")
        try:
            async for progress in self._run(user_id):
                yield progress
        finally:
            await self._store.take_lease(_LEASE, self._holder, 0)

    async def _run(self, user_id: str | None) -> AsyncIterator[Progress]:
        # Rows that nobody writes from here on belong to nothing that exists.
        started = await self._store.now()
        progress = Progress()
        async for user in self._users(user_id):
            progress = replace(progress, users=progress.users + 1)
            async for snapshots in self._owner.snapshots(user):
                for one in snapshots:
                    # One at a time: emptying holds the log's lock, and events must not wait for long.
                    await self._store.apply_snapshots([one], again=True, delay_seconds=_HEAD_START_SECONDS)
                    if not one.deleted:
                        messages = progress.messages + await self._index(one)
                        progress = replace(progress, conversations=progress.conversations + 1, messages=messages)
                await self._store.take_lease(_LEASE, self._holder, _LEASE_SECONDS)
                yield progress
        await self._store.prune_conversations(started, user_id)
        for other in self._others:
            try:
                await other.once(user_id)
            except GaggleError as error:
                # Its service is away, or no part of this mesh: what the log has is all there is.
                _log.info("reconciliation_put_off", owner=other.app_id, error=error.message)
            yield progress
        await self._store.begin_entities(user_id)
        position, more = 0, True
        while more:
            position, more = await self._store.refold_entities(position, _EVENTS_AT_ONCE)
            await self._store.take_lease(_LEASE, self._holder, _LEASE_SECONDS)
            yield progress
        yield replace(progress, entities=await self._store.prune_entities(user_id), done=True)

    async def _users(self, user_id: str | None) -> AsyncIterator[str]:
        if user_id is not None:
            yield user_id
            return
        async for user in self._owner.users():
            yield user

    async def _index(self, one: Snapshot) -> int:
        work = IndexWork(one.user_id, one.id, one.incarnation, 0, one.last_sequence, 0, wants_snapshot=False)
        try:
            written = await self._indexer.fetch(work)
        except (NotFoundError, RefusedError):
            # Deleted or erased a moment ago; that takes the row away.
            return 0
        await self._store.finish_index_work(work)
        return written
