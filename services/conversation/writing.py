"""The changes that callers may make, each as one commit."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message as ProtoMessage

from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.state.v1 import document_pb2
from gaggle.conversation.v1 import conversation_pb2, event_pb2, message_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as api
from services.conversation import domain
from services.conversation.index import UserIndexes
from services.conversation.settings import ConversationSettings
from services.conversation.store import (
    TOMBSTONE_SECONDS,
    ConversationStore,
    Draft,
    created,
    gone,
    head_key,
    lineage_key,
    page_key,
    timestamp,
)
from services.runtime import topics
from services.runtime.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TooLargeError,
)
from services.runtime.ids import new_id
from services.runtime.requests import body_hash, first_answer, new_row, row_key
from services.runtime.state import Put

_ATTEMPTS = 12
_SCAN_BYTES = 8 * 1024 * 1024
_SERVICE = "gaggle.conversation.v1.ConversationService"


def _hash(method: str, request: ProtoMessage) -> bytes:
    return body_hash(f"/{_SERVICE}/{method}", request) if request.request_id else b""  # type: ignore[attr-defined]


def _payload(message: ProtoMessage) -> dict[str, Any]:
    return json_format.MessageToDict(message)


class Writer:
    """Creates, changes and deletes conversations."""

    def __init__(self, store: ConversationStore, indexes: UserIndexes, settings: ConversationSettings) -> None:
        """`indexes` lists what each user has."""
        self._store = store
        self._indexes = indexes
        self._settings = settings

    async def create(self, user_id: str, request: api.CreateConversationRequest) -> api.CreateConversationResponse:
        """Create a conversation. Raises AlreadyExistsError, FailedPreconditionError (an erased user)."""
        digest = _hash("CreateConversation", request)
        now = datetime.now(UTC)
        head = document_pb2.Head(revision=1, next_sequence=1, first_sequence=1, incarnation=int(now.timestamp()))
        conversation = head.conversation
        conversation.id = request.conversation_id or new_id()
        conversation.title = request.title
        conversation.metadata.update(request.metadata)
        if request.HasField("retention"):
            conversation.retention.CopyFrom(request.retention)
        else:
            conversation.retention.max_messages = self._settings.default_max_messages
        conversation.create_time.CopyFrom(timestamp(now))
        conversation.update_time.CopyFrom(conversation.create_time)
        head.window.lengths.append(0)  # Sequence 0 is never given; pages begin at multiples of the stride.
        # The answer holds no text: a repeated request brings it along.
        answer = conversation_pb2.Conversation(id=conversation.id, create_time=conversation.create_time)
        draft = Draft(head, answer.SerializeToString(), {topics.CONVERSATION_CREATED: created(head)})
        first = await self._add(user_id, request.request_id, digest, draft)
        if first is not None:
            earlier = conversation_pb2.Conversation.FromString(first)
            conversation.id = earlier.id
            conversation.create_time.CopyFrom(earlier.create_time)
            conversation.update_time.CopyFrom(earlier.create_time)
        return api.CreateConversationResponse(conversation=domain.describe(head))

    async def _add(self, user_id: str, request_id: str, digest: bytes, draft: Draft) -> bytes | None:
        """Commit a new head and its place in the index; gives an earlier answer instead, if there is one."""
        conversation_id = draft.head.conversation.id
        key = head_key(user_id, conversation_id)
        request_key = row_key(user_id, request_id) if request_id else ""
        planned = list(draft.operations)
        async with self._store.locks.alone(self._indexes.key(user_id)):
            for _ in range(_ATTEMPTS):
                found = await self._store.state.get_many([key, *([request_key] if request_id else [])])
                if (answer := first_answer(found.get(request_key), digest)) is not None:
                    return answer
                if (item := found.get(key)) is not None:
                    taken = document_pb2.Head.FromString(item.value)
                    raise AlreadyExistsError(
                        "conversation",
                        conversation_id,
                        why="was deleted less than seven days ago" if gone(taken) else "exists already",
                    )
                bucket, operations = await self._indexes.adding(user_id, draft.head)
                draft.head.index_bucket = bucket
                draft.operations = [*planned, *operations]
                if request_id:
                    draft.operations.append(new_row(request_key, digest, draft.answer))
                try:
                    await self._store.save(user_id, draft, "")
                except ConflictError:
                    continue
                return None
        raise ConflictError("other writers kept winning; try again")

    async def update(self, user_id: str, request: api.UpdateConversationRequest) -> bytes:
        """Change title, metadata or retention. Raises ConflictError, STALE_ETAG."""

        async def apply(head: document_pb2.Head) -> Draft | bytes:
            _check_etag(head, request.etag)
            changed = []
            conversation = head.conversation
            if request.HasField("title"):
                conversation.title = request.title
                changed.append("title")
            if request.HasField("metadata"):
                conversation.metadata.clear()
                conversation.metadata.update(request.metadata.entries)
                changed.append("metadata")
            draft = Draft(head, b"")
            before = document_pb2.Head()
            before.CopyFrom(head)
            if request.HasField("retention"):
                conversation.retention.CopyFrom(request.retention)
                changed.append("retention")
                await self._cut(user_id, before, head, draft)
                draft.operations += await self._indexes.marking(user_id, before, head)
            if not changed:
                return api.UpdateConversationResponse(
                    etag=str(head.revision), update_time=conversation.update_time
                ).SerializeToString()
            now = _advance(head)
            draft.answer = api.UpdateConversationResponse(
                etag=str(head.revision), update_time=timestamp(now)
            ).SerializeToString()
            draft.events = _updated(head, changed)
            return draft

        digest = _hash("UpdateConversation", request)
        return await self._store.change(user_id, request.conversation_id, request.request_id, digest, apply)

    async def append(self, user_id: str, request: api.AppendMessagesRequest) -> bytes:
        """Add messages. Raises ConflictError (STALE_SEQUENCE, STALE_FENCE)."""

        async def apply(head: document_pb2.Head) -> Draft:
            _check_append(head, request)
            now = _advance(head)
            first = head.next_sequence
            stamp = timestamp(now)
            serialized, ids = _stamped(request.messages, first, stamp)
            draft = Draft(head, b"", _appended(head, request.messages, ids, serialized, first))
            await self._append(user_id, head, serialized, draft)
            draft.answer = api.AppendMessagesResponse(
                first_sequence=first,
                last_sequence=domain.last_sequence(head),
                message_ids=ids,
                create_time=stamp,
                etag=str(head.revision),
            ).SerializeToString()
            return draft

        digest = _hash("AppendMessages", request)
        return await self._store.change(
            user_id, request.conversation_id, request.request_id, digest, apply, unread=True
        )

    async def truncate(self, user_id: str, request: api.TruncateConversationRequest) -> bytes:
        """Drop the newest messages. Raises ConflictError, STALE_ETAG."""

        async def apply(head: document_pb2.Head) -> Draft | bytes:
            _check_etag(head, request.etag)
            last = domain.last_sequence(head)
            after = await self._extent(user_id, head, request)
            kept = await self._count_through(user_id, head, after)
            if after >= last or kept == head.message_count:
                return api.TruncateConversationResponse(
                    etag=str(head.revision), message_count=head.message_count
                ).SerializeToString()
            before = document_pb2.Head()
            before.CopyFrom(head)
            rows = domain.truncate(head, after)
            if len(head.truncated) > domain.MAX_TRUNCATED_RANGES:
                raise FailedPreconditionError(
                    f"more than {domain.MAX_TRUNCATED_RANGES} truncated ranges; fork the conversation and go on there"
                )
            head.message_count = kept
            draft = Draft(head, b"")
            base_page = before.window.base // domain.STRIDE
            first_free = min(-(-(after + 1) // domain.STRIDE), base_page)
            lost = list(rows.dropped)
            if after < before.window.base - 1 and not before.lineage_id:
                lost += await self._blank(user_id, head, after, draft)
            if lost or first_free < base_page:
                await self._store.release(user_id, before, head, (first_free, base_page), lost, draft)
            _advance(head)
            dropped = conversation_pb2.SequenceRange(first=after + 1, last=last)
            draft.answer = api.TruncateConversationResponse(
                etag=str(head.revision), truncated=dropped, message_count=head.message_count
            ).SerializeToString()
            draft.events = _updated(head, ["truncated"], truncated=dropped)
            return draft

        digest = _hash("TruncateConversation", request)
        return await self._store.change(user_id, request.conversation_id, request.request_id, digest, apply)

    async def _extent(self, user_id: str, head: document_pb2.Head, request: api.TruncateConversationRequest) -> int:
        """Give the last sequence that stays."""
        extent = request.WhichOneof("extent")
        last = domain.last_sequence(head)
        if extent == "all":
            return head.first_sequence - 1
        if extent == "after_sequence":
            return max(min(request.after_sequence, last), head.first_sequence - 1)
        if request.drop_last >= head.message_count:
            return head.first_sequence - 1
        if head.message_count == head.next_sequence - head.first_sequence:
            return last - request.drop_last
        # With holes, the sequence has to be looked for.
        left, before = request.drop_last + 1, head.next_sequence
        while True:
            found = await self._store.newest(user_id, head, before=before, limit=min(left, 1000), max_bytes=_SCAN_BYTES)
            left -= len(found)
            before = found[0].sequence
            if left == 0:
                return before

    async def _count_through(self, user_id: str, head: document_pb2.Head, last: int) -> int:
        """Count the messages up to a sequence."""
        if last < head.first_sequence:
            return 0
        if head.message_count == head.next_sequence - head.first_sequence:
            return min(last, domain.last_sequence(head)) - head.first_sequence + 1
        count, after = int(head.message_count), last
        while True:
            found = await self._store.after(user_id, head, after=after, limit=1000, max_bytes=_SCAN_BYTES)
            if not found:
                return count
            count -= len(found)
            after = found[-1].sequence

    async def _blank(self, user_id: str, head: document_pb2.Head, after: int, draft: Draft) -> list[domain.Slot]:
        """Rewrite the page in which a truncation begins without what it dropped; gives what that was."""
        number = (after + 1) // domain.STRIDE
        if (after + 1) % domain.STRIDE == 0 or after < head.first_sequence:
            return []
        key = page_key(user_id, head.conversation.id, number)
        run = document_pb2.Page.FromString((await self._store.state.require([key]))[key].value).run
        live = list(domain.slots(run))
        kept = [slot for slot in live if slot.sequence <= after]
        page = document_pb2.Page(run=domain.build_run(run.base, run.base + domain.STRIDE, kept))
        draft.operations.append(Put(key, page.SerializeToString()))
        return live[len(kept) :]

    async def compact(self, user_id: str, request: api.CompactConversationRequest) -> bytes:
        """Append a summary of all up to a sequence."""

        async def apply(head: document_pb2.Head) -> Draft:
            last = domain.last_sequence(head)
            through = request.through_sequence if request.HasField("through_sequence") else last
            if not head.message_count or not head.first_sequence <= through <= last:
                raise FailedPreconditionError("there are no messages up to that sequence")
            now = _advance(head)
            covered = conversation_pb2.SequenceRange(first=head.first_sequence, last=through)
            message = message_pb2.Message(
                id=new_id(), role=message_pb2.ROLE_SYSTEM, hidden_from_user=True, sequence=head.next_sequence
            )
            message.create_time.CopyFrom(timestamp(now))
            summary = message.content.add().summary
            summary.text, summary.first_sequence, summary.last_sequence = request.summary, covered.first, through
            if request.HasField("usage"):
                message.usage.CopyFrom(request.usage)
            serialized = message.SerializeToString()
            draft = Draft(head, b"", _appended(head, [message], [message.id], [serialized], message.sequence))
            await self._append(user_id, head, [serialized], draft)
            head.summary_sequence = message.sequence
            draft.events |= _updated(head, ["summary"])
            draft.answer = api.CompactConversationResponse(
                sequence=message.sequence, covered=covered, etag=str(head.revision)
            ).SerializeToString()
            return draft

        digest = _hash("CompactConversation", request)
        return await self._store.change(user_id, request.conversation_id, request.request_id, digest, apply)

    async def raise_fence(self, user_id: str, request: api.RaiseFenceRequest) -> bytes:
        """Give a fence higher than all before."""

        def apply(head: document_pb2.Head) -> Draft:
            head.fence += 1
            _advance(head)
            answer = api.RaiseFenceResponse(
                fence=head.fence, last_sequence=domain.last_sequence(head), etag=str(head.revision)
            )
            return Draft(head, answer.SerializeToString(), _updated(head, ["fence"]))

        digest = _hash("RaiseFence", request)
        return await self._store.change(
            user_id, request.conversation_id, request.request_id, digest, apply, unread=True
        )

    async def fork(self, user_id: str, request: api.ForkConversationRequest) -> bytes:
        """Make a conversation that shares the history of another. One commit changes both heads and the lineage."""
        digest = _hash("ForkConversation", request)
        new = request.new_conversation_id or new_id()

        async def apply(head: document_pb2.Head) -> Draft | bytes:
            last = domain.last_sequence(head)
            sequence = request.sequence if request.HasField("sequence") else last
            if sequence > last:
                raise InvalidArgumentError({"sequence": f"the conversation ends at {last}"})
            if await self._store.find(user_id, new) is not None:
                raise AlreadyExistsError("conversation", new)
            number = (sequence + 1) // domain.STRIDE
            page = None
            needed = sequence < head.window.base and (sequence + 1) % domain.STRIDE
            if needed and domain.reads_page(head.first_sequence, head.truncated, number):
                key = page_key(user_id, domain.page_owner(head.conversation.id, head.segments, number), number)
                page = document_pb2.Page.FromString((await self._store.state.require([key]))[key].value)
            child, _ = domain.fork(head, sequence, new, page)
            child.message_count = await self._count_through(user_id, head, sequence)
            now = datetime.now(UTC)
            child.revision, child.incarnation = 1, int(now.timestamp())
            if request.HasField("title"):
                child.conversation.title = request.title
            child.conversation.create_time.CopyFrom(timestamp(now))
            child.conversation.update_time.CopyFrom(timestamp(now))
            draft = Draft(head, b"")
            draft.operations += await self._join(user_id, head, child)
            bucket, operations = await self._indexes.adding(user_id, child)
            child.index_bucket = bucket
            draft.operations += operations
            _advance(head)
            draft.events = _updated(head, ["forks"], fork_id=new)
            draft.answer = api.ForkConversationResponse(
                conversation_id=new, last_sequence=sequence, etag="1", create_time=timestamp(now)
            ).SerializeToString()
            draft.born = child
            return draft

        async with self._store.locks.alone(self._indexes.key(user_id)):
            return await self._store.change(user_id, request.conversation_id, request.request_id, digest, apply)

    async def _join(self, user_id: str, head: document_pb2.Head, child: document_pb2.Head) -> list[Put]:
        """Enter both into the lineage, which is made with the first fork."""
        etag = ""
        lineage = document_pb2.Lineage()
        if head.lineage_id:
            key = lineage_key(user_id, head.lineage_id)
            item = (await self._store.state.require([key]))[key]
            lineage, etag = document_pb2.Lineage.FromString(item.value), item.etag
        else:
            head.lineage_id = new_id()
            lineage.members.append(domain.member(head))
        child.lineage_id = head.lineage_id
        lineage.members.append(domain.member(child))
        key = lineage_key(user_id, head.lineage_id)
        return [Put(key, lineage.SerializeToString(), etag=etag, create=not etag)]

    async def delete(self, user_id: str, request: api.DeleteConversationRequest, *, cause: str = "deleted") -> bytes:
        """Take a conversation away; one that was deleted lately is OK. Raises NotFoundError."""

        async def apply(head: document_pb2.Head) -> Draft:
            _check_etag(head, request.etag)
            return await self._burying(user_id, head, cause)

        digest = _hash("DeleteConversation", request)
        try:
            return await self._store.change(
                user_id, request.conversation_id, request.request_id, digest, apply, expired_too=True
            )
        except NotFoundError:
            stored = await self._store.find(user_id, request.conversation_id)
            if stored is None:
                raise
            return b""

    async def _burying(self, user_id: str, head: document_pb2.Head, cause: str) -> Draft:
        now = datetime.now(UTC)
        tombstone = document_pb2.Head(
            revision=head.revision + 1,
            incarnation=head.incarnation,
            next_sequence=head.next_sequence,
            delete_time=timestamp(now),
            index_bucket=head.index_bucket,
        )
        tombstone.conversation.id = head.conversation.id
        payload = event_pb2.ConversationDeletedEvent(cause=cause)
        draft = Draft(tombstone, b"", {topics.CONVERSATION_DELETED: _payload(payload)}, ttl_seconds=TOMBSTONE_SECONDS)
        pages = (head.first_sequence // domain.STRIDE, head.window.base // domain.STRIDE)
        await self._store.release(user_id, head, None, pages, list(domain.slots(head.window)), draft)
        draft.operations += await self._indexes.removing(user_id, tombstone)
        return draft

    async def _cut(
        self, user_id: str, before: document_pb2.Head, head: document_pb2.Head, draft: Draft, *, incoming: int = 0
    ) -> bool:
        """Let go of the oldest messages that retention no longer wants once `incoming` more are there.

        Comes before an append, which then writes no page of what is gone. Tells whether it cut.
        """
        most = int(head.conversation.retention.max_messages)
        excess = int(head.message_count) + incoming - most
        if not most or excess <= 0:
            return False
        held = int(head.message_count)
        if held == head.next_sequence - head.first_sequence:
            first = int(head.first_sequence) + excess
        elif excess >= held:
            first = int(head.next_sequence) + excess - held
        else:
            first = await self._skip(user_id, before, excess)
        head.first_sequence = first
        head.message_count = max(held - excess, 0)
        for one in [one for one in head.truncated if one.last < first]:
            head.truncated.remove(one)
        base_page = before.window.base // domain.STRIDE
        pages = (before.first_sequence // domain.STRIDE, min(first // domain.STRIDE, base_page))
        if pages[0] < pages[1]:
            await self._store.release(user_id, before, head, pages, (), draft)
        return True

    async def _append(self, user_id: str, head: document_pb2.Head, serialized: Sequence[bytes], draft: Draft) -> None:
        """Put messages at the end, and let go of what retention no longer wants."""
        before = document_pb2.Head()
        most = head.conversation.retention.max_messages
        if most:
            before.CopyFrom(head)
        cut = await self._cut(user_id, before, head, draft, incoming=len(serialized))
        rows = domain.append(head, serialized)
        if cut:
            head.message_count = most
        lost = [slot for slot in rows.dropped if slot.framed is None]
        unwritten = [slot for slot in lost if rows.external.pop(slot.sequence, None) is None]
        if unwritten:
            # Nothing was cut now, maybe: retention that has been lifted since may have cut what the window lets go of.
            await self._store.release(user_id, head, head, (0, 0), unwritten, draft)
        draft.operations += self._store.rows(user_id, head, rows)

    async def _skip(self, user_id: str, head: document_pb2.Head, excess: int) -> int:
        """Find the sequence after the oldest `excess` messages, where holes forbid to compute it."""
        after = int(head.first_sequence) - 1
        while excess:
            found = await self._store.after(user_id, head, after=after, limit=min(excess, 1000), max_bytes=_SCAN_BYTES)
            excess -= len(found)
            after = found[-1].sequence
        return after + 1


def _check_etag(head: document_pb2.Head, etag: str) -> None:
    if etag and etag != str(head.revision):
        raise ConflictError(
            "the conversation has changed since that etag",
            reason=error_reason_pb2.ERROR_REASON_STALE_ETAG,
            metadata={"etag": etag, "current": str(head.revision)},
        )


def _check_append(head: document_pb2.Head, request: api.AppendMessagesRequest) -> None:
    last = domain.last_sequence(head)
    if request.HasField("fence") and request.fence != head.fence:
        if request.fence > head.fence:
            raise InvalidArgumentError({"fence": "was not given by RaiseFence"})
        raise ConflictError(
            "another worker has taken the conversation over",
            reason=error_reason_pb2.ERROR_REASON_STALE_FENCE,
            metadata={"fence": str(request.fence), "current": str(head.fence)},
        )
    if request.HasField("expected_sequence") and request.expected_sequence != last:
        raise ConflictError(
            f"the conversation is at {last}",
            reason=error_reason_pb2.ERROR_REASON_STALE_SEQUENCE,
            metadata={"expected_sequence": str(request.expected_sequence), "last_sequence": str(last)},
        )


def _advance(head: document_pb2.Head) -> datetime:
    """Take the next revision, now."""
    now = datetime.now(UTC)
    head.revision += 1
    head.conversation.update_time.CopyFrom(timestamp(now))
    return now


def _stamped(messages: Sequence[message_pb2.Message], first: int, stamp: Any) -> tuple[list[bytes], list[str]]:
    """Serialize messages with their sequence, time and id."""
    serialized, ids = [], []
    for sequence, given in enumerate(messages, start=first):
        message = message_pb2.Message()
        message.CopyFrom(given)
        message.sequence = sequence
        message.create_time.CopyFrom(stamp)
        message.id = message.id or new_id()
        data = message.SerializeToString()
        if len(data) > _MOST_BYTES:
            raise TooLargeError(f"messages[{sequence - first}] in bytes", size=len(data), limit=_MOST_BYTES)
        serialized.append(data)
        ids.append(message.id)
    return serialized, ids


_MOST_BYTES = 1024 * 1024 + 128
"""What the server adds to a message may pass the limit that callers are held to."""


def _appended(
    head: document_pb2.Head,
    messages: Sequence[message_pb2.Message],
    ids: Sequence[str],
    serialized: Sequence[bytes],
    first: int,
) -> dict[str, dict[str, Any]]:
    """Build the payloads of an append: assistant messages are sent, all others received.

    As JSON by hand, like the envelope: this is on the path of every append.
    """
    told: dict[str, list[dict[str, Any]]] = {}
    for index, message in enumerate(messages):
        assistant = message.role == message_pb2.ROLE_ASSISTANT
        topic = topics.MESSAGE_SENT if assistant else topics.MESSAGE_RECEIVED
        entry: dict[str, Any] = {
            "id": ids[index],
            "sequence": str(first + index),
            "role": message_pb2.Role.Name(message.role),
            "size": len(serialized[index]),
        }
        if message.HasField("usage"):
            entry["usage"] = _payload(message.usage)
        told.setdefault(topic, []).append(entry)
    return {
        topic: {
            "conversationId": head.conversation.id,
            "messages": entries,
            "firstSequence": str(first),
            "lastSequence": str(first + len(messages) - 1),
        }
        for topic, entries in sorted(told.items())
    }


def _updated(head: document_pb2.Head, changed: Sequence[str], **facts: Any) -> dict[str, dict[str, Any]]:
    payload = event_pb2.ConversationUpdatedEvent(
        changed=changed,
        title=head.conversation.title,
        metadata=head.conversation.metadata,
        summary_sequence=head.summary_sequence,
        last_sequence=domain.last_sequence(head),
        message_count=head.message_count,
        **facts,
    )
    return {topics.CONVERSATION_UPDATED: _payload(payload)}
