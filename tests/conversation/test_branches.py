"""Forks, truncations and retention: what is shared, what is gone, and that sequences never come again."""

import asyncio
from typing import Any

import pytest

from gaggle.conversation.v1 import conversation_pb2, message_pb2
from tests.conditions import eventually
from tests.conversation.talking import Talker, numbered, pairs, refused, text_message
from tests.mesh_fixture import Mesh
from tests.stores.reading import conversation_keys

pytestmark = pytest.mark.mesh

_WITHIN = 30.0


def _texts(count: int, prefix: str = "m") -> list[str]:
    return [f"{prefix}{number}" for number in range(1, count + 1)]


FORKED_AT = {"none": 0, "first-page": 5, "page-end": 31, "page-start": 32, "old-page": 70, "window": 190, "all": 200}


@pytest.mark.parametrize("sequence", FORKED_AT.values(), ids=FORKED_AT.keys())
async def test_a_fork_shares_history_and_lives_apart(talker: Talker, sequence: int) -> None:
    """A fork holds the history up to its sequence; what either appends or drops later the other does not show."""
    texts = _texts(200)
    parent = await talker.create(*texts, title="first", metadata={"a": "1"})
    forked = await talker("ForkConversation", conversation_id=parent, sequence=sequence, title="second")
    child = forked.conversation_id
    assert forked.last_sequence == sequence
    described = await talker.get(child)
    assert (described.forked_from.conversation_id, described.forked_from.sequence) == (parent, sequence)
    assert (described.title, dict(described.metadata), described.message_count) == ("second", {"a": "1"}, sequence)
    assert (described.etag, described.create_time) == (forked.etag, forked.create_time)
    await talker.say(child, "child's")
    await talker.say(parent, "parent's")
    mine = numbered(*texts[:sequence], "child's")
    assert await talker.history(child) == mine
    assert await talker.history(parent) == numbered(*texts, "parent's")
    await talker("TruncateConversation", conversation_id=parent, all=True)
    assert await talker.history(child) == mine
    assert await talker.history(parent) == []


LAST = {"parent-first": (0, 1), "child-first": (1, 0)}


@pytest.mark.parametrize("order", LAST.values(), ids=LAST.keys())
async def test_parent_and_child_die_apart(mesh: Mesh, talker: Talker, user: str, order: tuple[int, int]) -> None:
    """Deleting one of two leaves the other whole; with the last of them all shared rows are gone."""
    texts = [*_texts(100), "x" * 50_000, *_texts(100, "n")]
    parent = await talker.create(*texts)
    child = (await talker("ForkConversation", conversation_id=parent, sequence=150)).conversation_id
    grandchild = (await talker("ForkConversation", conversation_id=child, sequence=101)).conversation_id
    await talker("DeleteConversation", conversation_id=grandchild)
    whole = {parent: numbered(*texts), child: numbered(*texts[:150])}
    first, last = ((parent, child)[index] for index in order)
    await talker("DeleteConversation", conversation_id=first)
    await _settled(mesh, user)
    assert await talker.history(last) == whole[last]
    await talker("DeleteConversation", conversation_id=last)

    async def nothing_left() -> bool:
        left = await asyncio.to_thread(_rows, mesh, user)
        return left == {f"chat:{user}:{one}" for one in (parent, child, grandchild)}

    await eventually(nothing_left, within=_WITHIN, what="nothing left but three tombstones")


async def test_forks_of_forks_share_without_copies(mesh: Mesh, talker: Talker, user: str) -> None:
    """A chain of forks reads the whole history, and a fork adds no page of messages to the store."""
    texts = _texts(200)
    source = await talker.create(*texts)
    before = {key for key in _rows(mesh, user) if ":p" in key}
    assert before
    for number in range(5):
        sequence = 200 - number * 30
        source = (await talker("ForkConversation", conversation_id=source, sequence=sequence)).conversation_id
        assert await talker.history(source) == numbered(*texts[:sequence])
    assert {key for key in _rows(mesh, user) if ":p" in key} == before


async def test_a_fork_has_its_own_id(talker: Talker) -> None:
    """A fork may be given an id, which must be free; a sequence beyond the end names the field."""
    source = await talker.create("one", conversation_id="source")
    await talker("ForkConversation", conversation_id=source, new_conversation_id="fork")
    for taken in ("fork", "source"):
        answer = await refused(talker("ForkConversation", conversation_id=source, new_conversation_id=taken))
        assert (answer.code, answer.facts["id"]) == ("ALREADY_EXISTS", taken)
    beyond = await refused(talker("ForkConversation", conversation_id=source, sequence=2))
    assert (beyond.code, beyond.fields) == ("INVALID_ARGUMENT", ("sequence",))
    listed = [one.id for one in (await talker("ListConversations")).conversations]
    assert listed == ["fork", "source"]


EXTENTS: dict[str, tuple[dict[str, Any], int, int]] = {
    "last": ({"drop_last": 1}, 120, 119),
    "none": ({"drop_last": 0}, 120, 120),
    "many": ({"drop_last": 100}, 120, 20),
    "too-many": ({"drop_last": 2**32 - 1}, 120, 0),
    "after": ({"after_sequence": 33}, 120, 33),
    "after-the-end": ({"after_sequence": 2**64 - 1}, 120, 120),
    "after-none": ({"after_sequence": 0}, 120, 0),
    "all": ({"all": True}, 120, 0),
    "all-of-few": ({"all": True}, 3, 0),
}


@pytest.mark.parametrize(("extent", "count", "kept"), EXTENTS.values(), ids=EXTENTS.keys())
async def test_a_truncation_drops_the_newest(talker: Talker, extent: dict[str, Any], count: int, kept: int) -> None:
    """The newest messages go, the range is told, and the next append goes on after the old last sequence."""
    texts = _texts(count)
    conversation_id = await talker.create(*texts)
    answer = await talker("TruncateConversation", conversation_id=conversation_id, **extent)
    assert answer.message_count == kept
    dropped = conversation_pb2.SequenceRange(first=kept + 1, last=count)
    if kept < count:
        assert answer.truncated == dropped
    else:
        assert not answer.HasField("truncated")
    assert await talker.history(conversation_id) == numbered(*texts[:kept])
    appended = await talker.say(conversation_id, "next")
    assert appended.first_sequence == count + 1
    page = await talker("ListMessages", conversation_id=conversation_id)
    assert pairs(page.messages)[-1] == (count + 1, "next")
    assert len(page.messages) == min(kept + 1, 50)
    gone = {number for one in page.truncated for number in range(one.first, one.last + 1)}
    assert gone == set(range(kept + 1, count + 1))
    now = await talker.get(conversation_id)
    assert (now.message_count, now.last_sequence) == (kept + 1, count + 1)


async def test_drop_last_counts_messages_not_sequences(talker: Talker) -> None:
    """Dropping the last k of a history with holes drops k messages."""
    conversation_id = await talker.create(*_texts(150))
    await talker("TruncateConversation", conversation_id=conversation_id, after_sequence=60)
    await talker.say(conversation_id, "x", "y")
    answer = await talker("TruncateConversation", conversation_id=conversation_id, drop_last=5)
    assert answer.message_count == 57
    assert await talker.history(conversation_id) == numbered(*_texts(57))


async def test_retention_keeps_the_newest(mesh: Mesh, talker: Talker, user: str) -> None:
    """With max_messages the newest so many are kept, sequences go on, and pages of the older ones are deleted."""
    conversation_id = await talker.create(retention=conversation_pb2.Retention(max_messages=70))
    for first in range(0, 400, 40):
        await talker.say(conversation_id, *(f"m{number}" for number in range(first + 1, first + 41)))
    assert await talker.history(conversation_id) == numbered(*_texts(400)[330:], first=331)
    now = await talker.get(conversation_id)
    assert (now.message_count, now.first_sequence, now.last_sequence) == (70, 331, 400)

    async def few_pages() -> bool:
        return len([key for key in await asyncio.to_thread(_rows, mesh, user) if ":p" in key]) <= 3

    await eventually(few_pages, within=_WITHIN, what="the pages of what was cut are gone")
    await talker(
        "UpdateConversation", conversation_id=conversation_id, retention=conversation_pb2.Retention(max_messages=3)
    )
    assert await talker.history(conversation_id) == numbered("m398", "m399", "m400", first=398)
    answer = await talker.say(conversation_id, *_texts(10, "n"))
    assert answer.last_sequence == 410
    assert await talker.history(conversation_id) == numbered("n8", "n9", "n10", first=408)


async def test_a_fork_keeps_what_its_parent_cuts(mesh: Mesh, talker: Talker, user: str) -> None:
    """Retention of a parent takes nothing from a fork that still shows it."""
    texts = _texts(150)
    parent = await talker.create(*texts)
    child = (await talker("ForkConversation", conversation_id=parent)).conversation_id
    await talker("UpdateConversation", conversation_id=parent, retention=conversation_pb2.Retention(max_messages=2))
    for number in range(3):
        await talker.say(parent, *_texts(50, f"n{number}-"))
    await _settled(mesh, user)
    assert await talker.history(child) == numbered(*texts)
    assert len(await talker.history(parent)) == 2


async def test_roles_survive_a_fork(talker: Talker) -> None:
    """A forked message is the parent's to the byte: id, role, times and sequence."""
    parent = await talker.create()
    roles = [role for role in message_pb2.Role.values() if role]
    messages = [text_message(str(role), role) for role in roles]
    await talker("AppendMessages", conversation_id=parent, messages=messages)
    child = (await talker("ForkConversation", conversation_id=parent)).conversation_id
    mine = (await talker("ListMessages", conversation_id=parent)).messages
    theirs = (await talker("ListMessages", conversation_id=child)).messages
    assert [one.role for one in mine] == roles
    assert list(mine) == list(theirs)


def _rows(mesh: Mesh, user: str) -> set[str]:
    return set(conversation_keys(mesh, user))


async def _settled(mesh: Mesh, user: str) -> None:
    """Return when the user's rows have not changed for ten looks: what was to be deleted had its chance."""
    seen: list[set[str]] = []

    async def same_twice() -> bool:
        seen.append(await asyncio.to_thread(_rows, mesh, user))
        return len(seen) > 10 and seen[-1] == seen[-10]

    await eventually(same_twice, within=_WITHIN, what="the rows stay as they are")
