"""Conversations in the state store: keys, reads, and commits that survive races.

Every change reads head and request row, judges, and commits head, rows, request row and events in one transaction
with the ETag just read. That transaction also makes the row of its revision, only if there is none: of two that follow
on the same head, one comes to be. An append may therefore do without the read, and follow on the head last seen.
docs/state.md lists every key.
"""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, TypeVar

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.conversation.state.v1 import document_pb2
from gaggle.conversation.v1 import event_pb2
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from services.conversation import domain
from services.runtime import topics
from services.runtime.call import trace_metadata
from services.runtime.errors import ConflictError, GaggleError, NotFoundError, StateMissingError, UnavailableError
from services.runtime.events import Change, build_events
from services.runtime.keys import user_part
from services.runtime.locks import KeyedLocks
from services.runtime.outbox import ROW_TTL_SECONDS, Number, Outbox
from services.runtime.requests import first_answer, new_row, row_key
from services.runtime.state import Item, Put, Remove, StateStore

T = TypeVar("T")

INDEX_BUCKET_ENTRIES = 256
TOMBSTONE_SECONDS = 7 * 24 * 3600
PAGE_CLEAN_UP = "conversation.pages"
_ATTEMPTS = 12
_ANSWERS = 4
# Far below the time that revisions' rows stay, and short for a store that falls back to an older state.
_FOLLOWED_SECONDS = 60.0
# Longer than a commit may take.
_WRITTEN_SECONDS = 10.0
_RIVALS_SECONDS = 10.0
_REMEMBERED = 32
_WORTH_TRYING = 0.75
_TRIED_ANYWAY = 32
_PAGES_AT_ONCE = 8
_ROWS_AT_ONCE = 6


def head_key(user_id: str, conversation_id: str) -> str:
    """Key of a conversation's head."""
    return f"chat:{user_part(user_id)}:{conversation_id}"


def page_key(user_id: str, owner_id: str, page: int) -> str:
    """Key of a page of 32 messages."""
    return f"chat:{user_part(user_id)}:{owner_id}:p{page}"


def message_key(user_id: str, owner_id: str, sequence: int) -> str:
    """Key of a message in a row of its own."""
    return f"chat:{user_part(user_id)}:{owner_id}:m{sequence}"


def revision_key(user_id: str, conversation_id: str, incarnation: int, revision: int) -> str:
    """Key of a revision's row, which names the outbox row that tells of it."""
    return f"chat:{user_part(user_id)}:{conversation_id}:r{incarnation}-{revision}"


def lineage_key(user_id: str, lineage_id: str) -> str:
    """Key of the document of conversations that share pages."""
    return f"chat-lineage:{user_part(user_id)}:{lineage_id}"


def index_key(user_id: str, bucket: int | None = None) -> str:
    """Key of a user's index: the newest entries, or a bucket of 256 older ones."""
    return f"chats:{user_part(user_id)}" + ("" if bucket is None else f":b{bucket}")


@dataclass(frozen=True, slots=True)
class Stored:
    """A head as it was read."""

    head: document_pb2.Head
    etag: str


@dataclass(slots=True)
class Draft:
    """A change in the making: what will be committed together."""

    head: document_pb2.Head
    answer: bytes
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Topic to payload."""

    operations: list[Put | Remove] = field(default_factory=list)
    clean_ups: list[runtime_pb2.CleanUp] = field(default_factory=list)
    ttl_seconds: int = 0
    born: document_pb2.Head | None = None
    """A fork that comes to be in the same commit."""


Apply: TypeAlias = "Callable[[document_pb2.Head], Draft | bytes | Awaitable[Draft | bytes]]"
"""Makes a change to a head of its own."""


@dataclass(slots=True)
class Window:
    """A head as it was seen, for reads that name a sequence and for appends."""

    value: bytes
    incarnation: int
    revision: int
    next_sequence: int
    seen_at: float
    rivals_until: float = 0.0
    """Till then somebody else may well have written since."""

    answers: dict[int, bytes] = field(default_factory=dict)
    """Page size to answer."""

    @property
    def head(self) -> document_pb2.Head:
        """A copy of one's own."""
        return document_pb2.Head.FromString(self.value)

    def outdates(self, head: document_pb2.Head, seen_at: float) -> bool:
        """Tell whether `head` was read while this one was being written, and is the older one.

        For a while only: a store that fell back to an older state has the last word.
        """
        newer = self.incarnation == head.incarnation and self.revision > head.revision
        return newer and seen_at < self.seen_at + _WRITTEN_SECONDS

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return len(self.value) + sum(map(len, self.answers.values()))


class Odds:
    """Whether it pays to follow on heads that may be old.

    One that is still the newest saves a call of the sidecar, one that is not costs three: the commit that fails, and
    two that make sure of it. Where a balancer spreads callers over replicas most are not, and nearly all appends read.
    """

    def __init__(self) -> None:
        """At first it does."""
        self._won = 1.0
        self._unlikely = 0

    def note(self, *, won: bool) -> None:
        """Count one that was tried."""
        self._won += (won - self._won) / _REMEMBERED

    def good(self) -> bool:
        """Tell whether to try; where it rarely went well, now and then to see whether that has changed."""
        if self._won >= _WORTH_TRYING:
            return True
        self._unlikely += 1
        return self._unlikely % _TRIED_ANYWAY == 0


class WindowCache:
    """Heads kept in memory. Never used for a strong read, nor for a write that nothing else keeps from being lost."""

    def __init__(self, most_bytes: int, staleness_seconds: float) -> None:
        """Keep at most so many bytes, none if it is 0; `staleness_seconds` is for reads."""
        self._most = most_bytes
        self._staleness = staleness_seconds
        self._windows: OrderedDict[str, Window] = OrderedDict()
        self._bytes = 0
        self._odds = Odds()

    @staticmethod
    def now() -> float:
        """Seconds that go on while the machine sleeps, and that nobody can set."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def put(self, key: str, head: document_pb2.Head, value: bytes, seen_at: float) -> None:
        """Keep a head, serialized as `value`, that was current at `seen_at`."""
        former = self._windows.get(key)
        if former is not None and former.outdates(head, seen_at):
            return
        self.drop(key)
        rivals_until = former.rivals_until if former else 0.0
        window = Window(value, head.incarnation, head.revision, head.next_sequence, seen_at, rivals_until)
        self._windows[key] = window
        self._bytes += window.size
        self._evict()

    def _evict(self) -> None:
        while self._bytes > self._most:
            _, window = self._windows.popitem(last=False)
            self._bytes -= window.size

    def get(self, key: str, min_sequence: int) -> Window | None:
        """Give a window that reaches the sequence and is recent enough to be read."""
        window = self._windows.get(key)
        if window is None or window.next_sequence <= min_sequence or self.now() - window.seen_at > self._staleness:
            return None
        return window

    def latest(self, key: str) -> document_pb2.Head | None:
        """Give the head to append to, unless it is old or somebody else is likely to have written since.

        It need not be the newest. Who commits over it must claim its next revision, for as long as claims stay, and
        tell what came of it (`followed`).
        """
        window = self._windows.get(key)
        if window is None:
            return None
        now = self.now()
        if now - window.seen_at > _FOLLOWED_SECONDS or now < window.rivals_until or not self._odds.good():
            return None
        return window.head

    def followed(self, key: str, *, won: bool) -> None:
        """Note what came of a commit over `latest`. After a lost one its conversation is read first for a while."""
        self._odds.note(won=won)
        if not won and (window := self._windows.get(key)) is not None:
            window.rivals_until = self.now() + _RIVALS_SECONDS

    def answered(self, key: str, window: Window, count: int, answer: bytes) -> None:
        """Keep what was made of a window for a page size; a few sizes are."""
        if self._windows.get(key) is window and len(window.answers) < _ANSWERS:
            window.answers[count] = answer
            self._bytes += len(answer)
            self._windows.move_to_end(key)
            self._evict()

    def drop(self, key: str) -> None:
        """Forget one."""
        if (window := self._windows.pop(key, None)) is not None:
            self._bytes -= window.size

    def clear(self) -> None:
        """Forget all: a store that was away may have come back as another."""
        self._windows.clear()
        self._bytes = 0


class ConversationStore:
    """Reads and changes conversations."""

    def __init__(self, state: StateStore, outbox: Outbox, windows: WindowCache) -> None:
        """All three are shared by the whole process."""
        self.state = state
        self.outbox = outbox
        self.windows = windows
        self.changed: Callable[[str], None] = lambda _key: None
        """Called after each commit with the head's key: wakes watchers."""
        self.locks = KeyedLocks()

    # -- reading

    async def find(self, user_id: str, conversation_id: str) -> Stored | None:
        """Read a head, tombstones included; None if there is none. Strong."""
        item = await self.state.get(head_key(user_id, conversation_id))
        return None if item is None else Stored(document_pb2.Head.FromString(item.value), item.etag)

    async def head(self, user_id: str, conversation_id: str) -> document_pb2.Head:
        """Read the head of a conversation that is there. Raises NotFoundError. Strong."""
        key = head_key(user_id, conversation_id)
        read_at = self.windows.now()
        try:
            item = await self.state.get(key)
        except UnavailableError:
            self.windows.clear()
            raise
        head = None if item is None else document_pb2.Head.FromString(item.value)
        if item is None or head is None or gone(head):
            self.windows.drop(key)
            raise NotFoundError("conversation", conversation_id)
        self.windows.put(key, head, item.value, read_at)
        return head

    async def reading(self, user_id: str, conversation_id: str, read: Callable[[document_pb2.Head], Awaitable[T]]) -> T:
        """Read by a conversation's head; by a newer one if a change since then took away what that names. Strong.

        Raises NotFoundError, StateMissingError, and what `read` raises.
        """
        head = await self.head(user_id, conversation_id)
        while True:
            try:
                return await read(head)
            except StateMissingError:
                newer = await self.head(user_id, conversation_id)
                if newer.revision == head.revision:
                    raise
                head = newer

    async def newest(
        self, user_id: str, head: document_pb2.Head, *, before: int, limit: int, max_bytes: int
    ) -> list[domain.Slot]:
        """Read up to `limit` messages just before a sequence, ascending; at least one, whatever its size."""
        taken: list[domain.Slot] = []
        total = 0
        async for slot in self._walk(user_id, head, head.first_sequence, before, newest_first=True):
            if len(taken) == limit or (taken and total + slot.size > max_bytes):
                break
            taken.append(slot)
            total += slot.size
        taken.reverse()
        return await self.load(user_id, head, taken)

    async def after(
        self, user_id: str, head: document_pb2.Head, *, after: int, limit: int, max_bytes: int
    ) -> list[domain.Slot]:
        """Read up to `limit` messages after a sequence, ascending; at least one, whatever its size."""
        taken: list[domain.Slot] = []
        total = 0
        first = max(after + 1, head.first_sequence)
        async for slot in self._walk(user_id, head, first, head.next_sequence, newest_first=False):
            if len(taken) == limit or (taken and total + slot.size > max_bytes):
                break
            taken.append(slot)
            total += slot.size
        return await self.load(user_id, head, taken)

    async def _walk(
        self, user_id: str, head: document_pb2.Head, first: int, end: int, *, newest_first: bool
    ) -> AsyncIterator[domain.Slot]:
        """Go through the visible messages of [first, end), reading pages a few at a time."""
        base = head.window.base
        window = [slot for slot in domain.slots(head.window) if first <= slot.sequence < end]
        window = [slot for slot in window if slot.sequence >= head.first_sequence]
        if newest_first:
            for slot in reversed(window):
                yield slot
        stop = min(end, base)
        pages = [
            page
            for page in range(first // domain.STRIDE, -(-stop // domain.STRIDE))
            if domain.reads_page(head.first_sequence, head.truncated, page)
        ]
        if newest_first:
            pages.reverse()
        for index in range(0, len(pages), _PAGES_AT_ONCE):
            for run in await self._pages(user_id, head, pages[index : index + _PAGES_AT_ONCE]):
                live = [
                    one
                    for one in domain.slots(run)
                    if first <= one.sequence < end and domain.visible(head, one.sequence)
                ]
                for slot in reversed(live) if newest_first else live:
                    yield slot
        if not newest_first:
            for slot in window:
                yield slot

    async def _pages(self, user_id: str, head: document_pb2.Head, pages: Sequence[int]) -> list[document_pb2.Run]:
        keys = [page_key(user_id, domain.page_owner(head.conversation.id, head.segments, page), page) for page in pages]
        found = await self.state.require(keys)
        return [document_pb2.Page.FromString(found[key].value).run for key in keys]

    async def load(self, user_id: str, head: document_pb2.Head, found: list[domain.Slot]) -> list[domain.Slot]:
        """Read the bytes of messages that lie in rows of their own."""
        missing = [slot for slot in found if slot.framed is None]
        if not missing:
            return found
        loaded: dict[int, bytes] = {}
        for index in range(0, len(missing), _ROWS_AT_ONCE):
            chunk = missing[index : index + _ROWS_AT_ONCE]
            owners = [domain.row_owner(head.conversation.id, head.segments, slot.sequence) for slot in chunk]
            keys = [message_key(user_id, owner, slot.sequence) for owner, slot in zip(owners, chunk, strict=True)]
            rows = await self.state.require(keys)
            for slot, key in zip(chunk, keys, strict=True):
                loaded[slot.sequence] = rows[key].value
        return [
            slot if slot.framed is not None else domain.Slot(slot.sequence, loaded[slot.sequence], slot.size)
            for slot in found
        ]

    # -- changing

    async def change(
        self,
        user_id: str,
        conversation_id: str,
        request_id: str,
        body_hash: bytes,
        apply: Apply,
        *,
        expired_too: bool = False,
        unread: bool = False,
    ) -> bytes:
        """Change a conversation that is there, once for each request_id; give the serialized answer.

        `apply` gets a head of its own to change and gives a Draft, or an answer if there is nothing to do, or
        awaits one of these. It may be called several times. With `unread` it gets the head last seen, if there is one
        that may do: for changes that are made often.
        Raises NotFoundError, ConflictError, and what `apply` raises.
        """
        key = head_key(user_id, conversation_id)
        request_key = row_key(user_id, request_id) if request_id else ""
        keys = [key, request_key] if request_id else [key]
        async with self.locks.alone(key):
            if unread and (draft := await self._follow(user_id, key, request_key, body_hash, apply)) is not None:
                return draft.answer
            for attempt in range(_ATTEMPTS):
                found = await self._read(keys)
                if (answer := first_answer(found.get(request_key), body_hash)) is not None:
                    return answer
                item = found.get(key)
                head = None if item is None else document_pb2.Head.FromString(item.value)
                if item is None or head is None or head.HasField("delete_time") or (gone(head) and not expired_too):
                    raise NotFoundError("conversation", conversation_id)
                try:
                    changed = await _applied(apply, head)
                except StateMissingError:
                    # Another replica's change since the head was read may have let go of it.
                    now = await self.state.get(key)
                    if now is not None and now.etag == item.etag:
                        raise
                    continue
                if isinstance(changed, bytes):
                    return changed
                if request_id:
                    changed.operations.append(new_row(request_key, body_hash, changed.answer))
                try:
                    await self.save(user_id, changed, item.etag)
                except ConflictError:
                    await _pause(attempt)
                    continue
                return changed.answer
        raise ConflictError("other writers kept winning; try again")

    async def _follow(self, user_id: str, key: str, request_key: str, body_hash: bytes, apply: Apply) -> Draft | None:
        """Commit a change of the head last seen; None if nothing came of it, and it has to be made to what is there.

        A head that is not the newest any more loses against the row of its next revision, and a request that was
        answered before against its own. What `apply` objects to may hold for the newest no longer, or it may be such a
        request: that is judged by what is read.
        """
        head = self.windows.latest(key)
        if head is None or gone(head):
            return None
        try:
            draft = await _applied(apply, head)
        except GaggleError:
            return None
        if isinstance(draft, bytes):
            return None
        if request_key:
            draft.operations.append(new_row(request_key, body_hash, draft.answer))
        try:
            await self.save(user_id, draft, None)
        except ConflictError:
            self.windows.followed(key, won=False)
            return None
        self.windows.followed(key, won=True)
        return draft

    async def _read(self, keys: Sequence[str]) -> dict[str, Item]:
        if len(keys) == 1:
            item = await self.state.get(keys[0])
            return {} if item is None else {keys[0]: item}
        return await self.state.get_many(keys, confirm=keys[:1])

    async def save(self, user_id: str, draft: Draft, etag: str | None) -> None:
        """Commit a draft over the head last read (`etag`), or as a new one (""), or over the head last seen (None).

        Raises ConflictError.
        """
        head = draft.head
        key = head_key(user_id, head.conversation.id)
        value = head.SerializeToString()
        number = await self.outbox.reserve()
        operations = draft.operations
        operations.append(Put(key, value, etag=etag or "", create=etag == "", ttl_seconds=draft.ttl_seconds))
        operations.append(_revision_row(user_id, head, number))
        now = datetime.now(UTC)
        events = build_events(_change(user_id, head, now), draft.events)
        if (child := draft.born) is not None:
            operations.append(Put(head_key(user_id, child.conversation.id), child.SerializeToString(), create=True))
            operations.append(_revision_row(user_id, child, number))
            events += build_events(_change(user_id, child, now), {topics.CONVERSATION_CREATED: created(child)})
        row = runtime_pb2.OutboxRow(events=events, clean_ups=draft.clean_ups)
        seen_at = self.windows.now()
        try:
            await self.outbox.commit_reserved(number, row, operations)
        except ConflictError:
            raise
        except UnavailableError:
            self.windows.clear()
            raise
        except BaseException:
            # Given up by its caller: whether it came to be is not known here.
            self.windows.drop(key)
            raise
        if head.HasField("delete_time"):
            self.windows.drop(key)
        else:
            self.windows.put(key, head, value, seen_at)
        self.changed(key)

    def rows(self, user_id: str, head: document_pb2.Head, rows: domain.Rows) -> list[Put | Remove]:
        """Give the writes of what a change leaves beside the head."""
        conversation_id = head.conversation.id
        found: list[Put | Remove] = [
            Put(message_key(user_id, conversation_id, sequence), framed) for sequence, framed in rows.external.items()
        ]
        for number, page in rows.pages.items():
            found.append(Put(page_key(user_id, conversation_id, number), page.SerializeToString()))
        return found

    # -- taking away what nobody shows any more

    async def release(
        self,
        user_id: str,
        before: document_pb2.Head,
        after: document_pb2.Head | None,
        pages: tuple[int, int],
        dropped: Sequence[domain.Slot],
        draft: Draft,
    ) -> None:
        """Plan the deletion of pages [first, end) and of dropped slots' rows, as far as no fork shows them.

        `after` is the head as it will be; None: the conversation goes.
        """
        others: list[document_pb2.LineageMember] = []
        if before.lineage_id:
            key = lineage_key(user_id, before.lineage_id)
            item = (await self.state.require([key]))[key]
            own: document_pb2.LineageMember | None = None
            for one in document_pb2.Lineage.FromString(item.value).members:
                if one.conversation_id == before.conversation.id:
                    own = one
                else:
                    others.append(one)
            members = others if after is None else [*others, domain.member(after, own)]
            renewed = document_pb2.Lineage(members=members).SerializeToString()
            # A change that lets go of things twice writes the lineage once, as it is in the end; without members it
            # would be empty, and a store need not keep empty values.
            draft.operations = [one for one in draft.operations if one.key != key]
            draft.operations.append(Put(key, renewed, etag=item.etag) if members else Remove(key, etag=item.etag))
        work = document_pb2.PageCleanUp(
            user_id=user_id,
            pages=domain.released(before, pages, others),
            kept=others,
            conversation_id=before.conversation.id,
            segments=before.segments,
        )
        for slot in dropped:
            owner = domain.row_owner(before.conversation.id, before.segments, slot.sequence)
            if slot.framed is None and not domain.row_kept(others, owner, slot.sequence):
                work.rows.add(owner_id=owner, sequence=slot.sequence)
        if work.pages or work.rows:
            draft.clean_ups.append(runtime_pb2.CleanUp(kind=PAGE_CLEAN_UP, argument=work.SerializeToString()))

    async def clean_up(self, argument: bytes) -> None:
        """Delete pages and rows; repeating it does no harm."""
        work = document_pb2.PageCleanUp.FromString(argument)
        keys = [message_key(work.user_id, row.owner_id, row.sequence) for row in work.rows]
        for one in work.pages:
            for first in range(one.first_page, one.end_page, _PAGES_AT_ONCE):
                pages = range(first, min(first + _PAGES_AT_ONCE, one.end_page))
                page_keys = [page_key(work.user_id, one.owner_id, page) for page in pages]
                for item in (await self.state.get_many(page_keys)).values():
                    for sequence in document_pb2.Page.FromString(item.value).run.external:
                        owner = domain.row_owner(work.conversation_id, work.segments, sequence)
                        if not domain.row_kept(work.kept, owner, sequence):
                            keys.append(message_key(work.user_id, owner, sequence))
                keys += page_keys
        for start in range(0, len(keys), 100):
            await self.state.commit([Remove(key) for key in keys[start : start + 100]])


async def _applied(apply: Apply, head: document_pb2.Head) -> Draft | bytes:
    applied = apply(head)
    return applied if isinstance(applied, Draft | bytes) else await applied


def _revision_row(user_id: str, head: document_pb2.Head, number: Number) -> Put:
    """Claim a head's revision, and say where its events are."""
    key = revision_key(user_id, head.conversation.id, head.incarnation, head.revision)
    reference = runtime_pb2.EventReference(
        revision=head.revision, slot=number.slot, epoch=number.epoch, number=number.number
    )
    return Put(key, reference.SerializeToString(), create=True, ttl_seconds=ROW_TTL_SECONDS)


def _change(user_id: str, head: document_pb2.Head, now: datetime) -> Change:
    return Change(
        entity_type="conversation",
        entity_id=head.conversation.id,
        user_id=user_id,
        revision=head.revision,
        incarnation=head.incarnation,
        time=now,
        traceparent=next((value for _, value in trace_metadata()), ""),
    )


def created(head: document_pb2.Head) -> dict[str, Any]:
    """Build the payload that tells of a new conversation."""
    conversation = head.conversation
    payload = event_pb2.ConversationCreatedEvent(title=conversation.title, metadata=conversation.metadata)
    if conversation.HasField("forked_from"):
        payload.forked_from.CopyFrom(conversation.forked_from)
    return json_format.MessageToDict(payload)


def gone(head: document_pb2.Head) -> bool:
    """Tell whether a head is a tombstone, or past its time to live and soon to be one."""
    return head.HasField("delete_time") or expired(head, datetime.now(UTC))


def expired(head: document_pb2.Head, now: datetime) -> bool:
    """Tell whether a conversation has been unchanged for longer than its time to live."""
    retention = head.conversation.retention
    if not retention.HasField("ttl"):
        return False
    until: datetime = head.conversation.update_time.ToDatetime(UTC) + timedelta(seconds=retention.ttl.seconds)
    return until <= now


def timestamp(moment: datetime) -> Timestamp:
    """Write a time as protobuf's."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


async def _pause(attempt: int) -> None:
    """Wait a moment, longer each time and never twice the same, so that rivals part."""
    await asyncio.sleep(random.uniform(0, 0.005 * 2 ** min(attempt, 6)))  # noqa: S311 - not a secret
