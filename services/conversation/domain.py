"""How a conversation is laid out, and what may be done to it. Knows neither gRPC nor Dapr.

A head holds what is always needed and the newest messages, as the bytes that a response is made of. Older messages
lie in pages of 32 sequences; one over 16 KiB lies in a row of its own. So the newest 50 are one read and a slice, and
both that and an append cost the same at 50 messages and at 50,000. docs/state.md draws it.

The stride is 32 and not a larger number because the head, rewritten by each append and read by each call, holds
between 50 and 81 messages; with 64 it would be up to 113 (bench/README.md has both).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from gaggle.conversation.state.v1 import document_pb2
from gaggle.conversation.v1 import conversation_pb2

STRIDE = 32
"""Sequences a page."""

WINDOW = 50
"""Messages that the head keeps at least; what ListMessages gives by default."""

MAX_WINDOW_BYTES = 256 * 1024
MAX_WINDOW_SLOTS = 512
MAX_INLINE_BYTES = 16 * 1024
"""A larger message lies in a row of its own."""

MAX_TRUNCATED_RANGES = 512
_MESSAGES_TAG = 0x0A


def frame(message: bytes) -> bytes:
    """Write a serialized message as field 1 of a response: tag, length, bytes."""
    size = len(message)
    head = bytearray((_MESSAGES_TAG,))
    while size > 0x7F:  # noqa: PLR2004 - seven bits a byte
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + message


def unframe(framed: bytes) -> bytes:
    """Give the serialized message of a frame."""
    index = 1
    while framed[index] & 0x80:
        index += 1
    return framed[index + 1 :]


@dataclass(frozen=True, slots=True)
class Slot:
    """A message's place: its bytes, or the row that has them."""

    sequence: int
    framed: bytes | None
    """None: in a row of its own."""

    size: int
    """Of the framed message."""


@dataclass(slots=True)
class Rows:
    """What a change writes and leaves beside the head, by key relative to the conversation."""

    pages: dict[int, document_pb2.Page] = field(default_factory=dict)
    external: dict[int, bytes] = field(default_factory=dict)
    """Sequence to framed message."""

    dropped: list[Slot] = field(default_factory=list)
    """Slots of the window that are gone and whose rows, if they have any, are to be deleted."""


def slots(run: document_pb2.Run) -> Iterator[Slot]:
    """Walk the messages of a run, ascending; holes are left out."""
    external = dict(zip(run.external, run.external_sizes, strict=True))
    body = run.body
    offset = 0
    for sequence, length in enumerate(run.lengths, start=run.base):
        if length:
            yield Slot(sequence, body[offset : offset + length], length)
            offset += length
        elif sequence in external:
            yield Slot(sequence, None, external[sequence])


def live_count(run: document_pb2.Run, start: int = 0) -> int:
    """Count the messages at or after a sequence."""
    inline = sum(1 for sequence, length in enumerate(run.lengths, start=run.base) if length and sequence >= start)
    return inline + sum(1 for sequence in run.external if sequence >= start)


def build_run(base: int, end: int, live: Iterable[Slot]) -> document_pb2.Run:
    """Lay slots out as a run of [base, end)."""
    lengths = [0] * (end - base)
    run = document_pb2.Run(base=base)
    body = []
    for slot in live:
        if slot.framed is None:
            run.external.append(slot.sequence)
            run.external_sizes.append(slot.size)
        else:
            lengths[slot.sequence - base] = slot.size
            body.append(slot.framed)
    run.lengths.extend(lengths)
    run.body = b"".join(body)
    return run


def last_sequence(head: document_pb2.Head) -> int:
    """Give the newest sequence that was ever given; 0: none."""
    return head.next_sequence - 1


def append(head: document_pb2.Head, messages: Sequence[bytes]) -> Rows:
    """Put serialized messages, sequences already in them, at the end; move what no longer fits to pages."""
    rows = Rows()
    window = head.window
    body = [window.body]
    for message in messages:
        framed = frame(message)
        sequence = head.next_sequence
        head.next_sequence += 1
        head.message_count += 1
        if len(framed) > MAX_INLINE_BYTES:
            rows.external[sequence] = framed
            window.external.append(sequence)
            window.external_sizes.append(len(framed))
            window.lengths.append(0)
        else:
            body.append(framed)
            window.lengths.append(len(framed))
    window.body = b"".join(body)
    _evict(head, rows)
    return rows


def _evict(head: document_pb2.Head, rows: Rows) -> None:
    """Move strides from the front of the window to pages, as long as enough stays and while it is too large."""
    run = head.window
    if len(run.lengths) < STRIDE + WINDOW and len(run.body) <= MAX_WINDOW_BYTES:
        return
    kept = list(slots(run))
    base, end = run.base, run.base + len(run.lengths)
    while end - base >= STRIDE:
        edge = base + STRIDE
        after = [slot for slot in kept if slot.sequence >= edge]
        fits = sum(slot.size for slot in kept if slot.framed is not None) <= MAX_WINDOW_BYTES
        if fits and end - base <= MAX_WINDOW_SLOTS and len(after) < WINDOW:
            break
        if edge > head.first_sequence:
            rows.pages[base // STRIDE] = _page(base, kept[: len(kept) - len(after)], rows)
        else:
            rows.dropped.extend(kept[: len(kept) - len(after)])
        kept, base = after, edge
    kept = _spill(kept, rows)
    run.CopyFrom(build_run(base, end, kept))


def _page(base: int, live: list[Slot], rows: Rows) -> document_pb2.Page:
    return document_pb2.Page(run=build_run(base, base + STRIDE, _spill(live, rows)))


def _spill(live: list[Slot], rows: Rows) -> list[Slot]:
    """Move the largest messages to rows of their own until the rest fits."""
    inline = sum(slot.size for slot in live if slot.framed is not None)
    if inline <= MAX_WINDOW_BYTES:
        return live
    spilled = set()
    for slot in sorted((one for one in live if one.framed is not None), key=lambda one: -one.size):
        if inline <= MAX_WINDOW_BYTES:
            break
        assert slot.framed is not None
        rows.external[slot.sequence] = slot.framed
        spilled.add(slot.sequence)
        inline -= slot.size
    return [Slot(one.sequence, None, one.size) if one.sequence in spilled else one for one in live]


def truncate(head: document_pb2.Head, after: int) -> Rows:
    """Drop all messages after a sequence. `head.message_count` is the caller's to set when pages are concerned."""
    rows = Rows()
    run = head.window
    if after >= run.base - 1:
        live = list(slots(run))
        rows.dropped = [slot for slot in live if slot.sequence > after]
        head.message_count -= len(rows.dropped)
        end = run.base + len(run.lengths)
        run.CopyFrom(build_run(run.base, end, [slot for slot in live if slot.sequence <= after]))
    else:
        rows.dropped = list(slots(run))
        base = head.next_sequence // STRIDE * STRIDE
        run.CopyFrom(build_run(base, head.next_sequence, ()))
        kept = [one for one in head.truncated if one.first <= after]
        del head.truncated[:]
        head.truncated.extend(kept)
        if kept and kept[-1].last >= after:
            head.truncated[-1].last = max(kept[-1].last, base - 1)
        else:
            head.truncated.add(first=after + 1, last=base - 1)
    if head.summary_sequence > after:
        head.summary_sequence = 0
    return rows


def holes(head: document_pb2.Head) -> list[conversation_pb2.SequenceRange]:
    """Give the ranges that hold nothing any more, as far as the head knows of them; ascending."""
    found = [conversation_pb2.SequenceRange(first=one.first, last=one.last) for one in head.truncated]
    run = head.window
    external = set(run.external)
    for sequence, length in enumerate(run.lengths, start=run.base):
        if length or sequence in external or sequence == 0:
            continue
        if found and found[-1].last == sequence - 1:
            found[-1].last = sequence
        else:
            found.append(conversation_pb2.SequenceRange(first=sequence, last=sequence))
    return found


def visible(head: document_pb2.Head, sequence: int) -> bool:
    """Tell whether a message that a page still holds may be shown."""
    if sequence < head.first_sequence:
        return False
    return not any(one.first <= sequence <= one.last for one in head.truncated)


def page_owner(conversation_id: str, segments: Iterable[document_pb2.Segment], page: int) -> str:
    """Whose page it is: another conversation's of the lineage, or one's own."""
    for segment in segments:
        if page < segment.end_page:
            return str(segment.owner_id)
    return conversation_id


def row_owner(conversation_id: str, segments: Iterable[document_pb2.Segment], sequence: int) -> str:
    """Whose row a message over the inline limit lies in."""
    for segment in segments:
        if sequence <= segment.last_sequence:
            return str(segment.owner_id)
    return conversation_id


def member(head: document_pb2.Head, earlier: document_pb2.LineageMember | None = None) -> document_pb2.LineageMember:
    """Write what a conversation shows of its lineage's pages and rows.

    Holes that have moved to pages are no longer known to the head, so those noted `earlier` are kept.
    """
    noted = document_pb2.LineageMember(
        conversation_id=head.conversation.id,
        segments=head.segments,
        first_sequence=head.first_sequence,
        truncated=head.truncated,
    )
    known = sorted((one.first, one.last) for one in (*holes(head), *(earlier.gone if earlier else ())))
    for first, last in known:
        if last < head.first_sequence:
            continue
        if noted.gone and first <= noted.gone[-1].last + 1:
            noted.gone[-1].last = max(noted.gone[-1].last, last)
        else:
            noted.gone.add(first=first, last=last)
    return noted


def released(
    head: document_pb2.Head,
    pages: tuple[int, int],
    others: Sequence[document_pb2.LineageMember],
) -> list[document_pb2.PageRange]:
    """Of this conversation's pages [first, end), find those that no other member of the lineage shows, by owner."""
    free: list[document_pb2.PageRange] = []
    for page in range(*pages):
        owner = page_owner(head.conversation.id, head.segments, page)
        if any(_shows_page(one, owner, page) for one in others):
            continue
        if free and free[-1].owner_id == owner and free[-1].end_page == page:
            free[-1].end_page = page + 1
        else:
            free.append(document_pb2.PageRange(owner_id=owner, first_page=page, end_page=page + 1))
    return free


def _shows_page(one: document_pb2.LineageMember, owner: str, page: int) -> bool:
    return page_owner(one.conversation_id, one.segments, page) == owner and reads_page(
        one.first_sequence, one.truncated, page
    )


def reads_page(first_sequence: int, truncated: Iterable[conversation_pb2.SequenceRange], page: int) -> bool:
    """Tell whether a page has to be there: one cut off or truncated as a whole need not."""
    first, last = max(page * STRIDE, 1), (page + 1) * STRIDE - 1
    return last >= first_sequence and not any(one.first <= first and last <= one.last for one in truncated)


def row_kept(others: Iterable[document_pb2.LineageMember], owner: str, sequence: int) -> bool:
    """Tell whether a member of the lineage still shows a single message's row."""
    return any(
        row_owner(one.conversation_id, one.segments, sequence) == owner
        and sequence >= one.first_sequence
        and not any(gone.first <= sequence <= gone.last for gone in one.gone)
        for one in others
    )


def fork(
    source: document_pb2.Head, sequence: int, new_id: str, page: document_pb2.Page | None
) -> tuple[document_pb2.Head, int]:
    """Make a head that shares everything up to `sequence`; also gives how many of the window's messages it holds.

    `page` is the source's page that holds `sequence`, if that lies before its window. `message_count` is the
    caller's to set where pages are cut.
    """
    child = document_pb2.Head()
    child.conversation.CopyFrom(source.conversation)
    child.conversation.id = new_id
    child.conversation.forked_from.conversation_id = source.conversation.id
    child.conversation.forked_from.sequence = sequence
    child.next_sequence = sequence + 1
    child.first_sequence = min(source.first_sequence, sequence + 1)
    child.summary_sequence = source.summary_sequence if source.summary_sequence <= sequence else 0
    run = source.window
    base = run.base if sequence >= run.base else (sequence + 1) // STRIDE * STRIDE
    held = run if sequence >= run.base else (page.run if page is not None else document_pb2.Run())
    live = [slot for slot in slots(held) if base <= slot.sequence <= sequence and visible(source, slot.sequence)]
    child.window.CopyFrom(build_run(base, sequence + 1, live))
    for one in source.truncated:
        if one.first <= sequence:
            child.truncated.add(first=one.first, last=min(one.last, sequence))
    end_page = base // STRIDE
    owned = [
        *source.segments,
        document_pb2.Segment(owner_id=source.conversation.id, last_sequence=sequence, end_page=end_page),
    ]
    for segment in owned:
        child.segments.add(
            owner_id=segment.owner_id,
            last_sequence=min(segment.last_sequence, sequence),
            end_page=min(segment.end_page, end_page),
        )
        if segment.last_sequence >= sequence:
            break
    return child, len(live)


def default_window(head: document_pb2.Head, size: int) -> tuple[bytes, int] | None:
    """Give the newest `size` messages as they lie, and the sequence of the oldest of them.

    None if they are not all in the head: then pages or rows have to be read.
    """
    run = head.window
    lengths = run.lengths
    first = max(run.base, 1)
    whole = head.message_count == head.next_sequence - head.first_sequence and not head.truncated
    if whole and first >= head.first_sequence:
        # No holes: the common case, without a loop in Python.
        count = min(size, head.next_sequence - first)
        if count < min(size, head.message_count):
            return None
        oldest = head.next_sequence - count
        total = sum(lengths[-count:]) if count else 0
    else:
        wanted = min(size, head.message_count)
        taken = total = 0
        oldest = head.next_sequence
        for index in range(len(lengths) - 1, -1, -1):
            if taken == wanted or run.base + index < head.first_sequence:
                break
            if lengths[index]:
                taken += 1
                total += lengths[index]
                oldest = run.base + index
        if taken < wanted:
            return None
    if run.external and run.external[-1] >= oldest:
        return None
    body = run.body
    return (body if total == len(body) else body[len(body) - total :]), oldest


def describe(head: document_pb2.Head) -> conversation_pb2.Conversation:
    """Write the conversation as callers see it."""
    conversation = conversation_pb2.Conversation()
    conversation.CopyFrom(head.conversation)
    conversation.etag = str(head.revision)
    conversation.last_sequence = last_sequence(head)
    conversation.message_count = head.message_count
    conversation.first_sequence = head.first_sequence
    conversation.fence = head.fence
    conversation.summary_sequence = head.summary_sequence
    return conversation
