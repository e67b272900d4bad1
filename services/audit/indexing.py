"""Brings the text of messages into the read model, from the owner, a moment after events told of them."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from gaggle.conversation.v1 import message_pb2
from services.audit.domain import message_text
from services.audit.owner import ConversationOwner
from services.audit.store import AuditStore, IndexedMessage, IndexWork, Snapshot
from services.runtime.errors import NotFoundError

_CLAIMED = 16
_LONGEST_RETRY_SECONDS = 300.0
_ROLE_PREFIX = "ROLE_"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class IndexPace:
    """How eagerly to index; see AuditSettings."""

    poll_seconds: float
    concurrency: int
    lease_seconds: float


class Indexer:
    """What is still to be fetched stands in goose.index_work, so that nothing is forgotten when a process ends."""

    def __init__(self, store: AuditStore, owner: ConversationOwner, pace: IndexPace) -> None:
        """Several may run at once: each conversation is handed out to one at a time."""
        self._store = store
        self._owner = owner
        self._pace = pace

    async def run(self) -> None:
        """Index what falls due, until cancelled."""
        while True:
            claimed = await self._store.claim_index_work(_CLAIMED, self._pace.lease_seconds)
            if not claimed:
                await asyncio.sleep(self._pace.poll_seconds)
                continue
            queue = iter(claimed)
            async with asyncio.TaskGroup() as group:
                for _ in range(self._pace.concurrency):
                    group.create_task(self._drain(queue))

    async def _drain(self, queue: Iterator[IndexWork]) -> None:
        for work in queue:
            try:
                await self._one(work)
            except Exception as error:  # noqa: BLE001 - one conversation must not stop the others; it is tried again
                _log.warning("indexing_failed", conversation=work.conversation_id, error=str(error))
                retry_seconds = min(2.0**work.attempts, _LONGEST_RETRY_SECONDS)
                await self._store.finish_index_work(work, error=str(error), retry_seconds=retry_seconds)

    async def _one(self, work: IndexWork) -> None:
        try:
            last_sequence = work.last_sequence
            if work.wants_snapshot:
                current = await self._owner.conversation(work.user_id, work.conversation_id, work.incarnation)
                await self._store.apply_snapshots([current])
                last_sequence = max(last_sequence, current.last_sequence)
            if last_sequence > work.indexed_sequence:
                await self.fetch(work)
        except NotFoundError:
            # The owner is read strongly: it is gone, and the event that says so is under way.
            gone = Snapshot(work.user_id, work.conversation_id, work.incarnation, 0, deleted=True)
            await self._store.apply_snapshots([gone])
        await self._store.finish_index_work(work)

    async def fetch(self, work: IndexWork) -> int:
        """Fetch and write all messages after the indexed sequence; give how many. Raises NotFoundError."""
        after, written = work.indexed_sequence, 0
        while True:
            page = await self._owner.messages(work.user_id, work.conversation_id, after)
            # The end of the conversation counts as fetched, even if its last messages were truncated.
            after = page.messages[-1].sequence if page.more and page.messages else max(after, page.last_sequence)
            await self._store.index_messages(work, [_indexed(one) for one in page.messages], after)
            written += len(page.messages)
            if not page.more or not page.messages:
                return written


def _indexed(message: message_pb2.Message) -> IndexedMessage:
    return IndexedMessage(
        sequence=message.sequence,
        message_id=message.id,
        role=message_pb2.Role.Name(message.role).removeprefix(_ROLE_PREFIX).lower(),
        create_time=message.create_time.ToJsonString() if message.HasField("create_time") else None,
        content=message_text(message),
    )
