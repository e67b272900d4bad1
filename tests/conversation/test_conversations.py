"""Conversations themselves: created, read, listed, changed and deleted."""

import re
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from gaggle.conversation.v1 import conversation_pb2, message_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as api
from tests.conditions import eventually
from tests.conversation.talking import Talker, numbered, refused, text_message
from tests.mesh_fixture import Mesh
from tests.stores.reading import conversation_keys

pytestmark = pytest.mark.mesh

_WITHIN = 30.0
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


async def test_a_new_conversation_is_there_at_once(talker: Talker) -> None:
    """What was created is read back as it was answered, with an id of the server, revision 1 and no message."""
    before = datetime.now(UTC)
    retention = conversation_pb2.Retention(max_messages=7)
    retention.ttl.FromTimedelta(timedelta(hours=1))
    created = (
        await talker("CreateConversation", title="Söme títle", metadata={"a": "1", "b": ""}, retention=retention)
    ).conversation
    assert _UUID7.fullmatch(created.id)
    assert (created.title, dict(created.metadata), created.retention) == ("Söme títle", {"a": "1", "b": ""}, retention)
    assert (created.etag, created.last_sequence, created.message_count, created.first_sequence) == ("1", 0, 0, 1)
    assert created.create_time == created.update_time
    assert abs(created.create_time.ToDatetime(UTC) - before) < timedelta(minutes=1)
    assert await talker.get(created.id) == created


async def test_a_repeated_create_gives_the_first_answer(talker: Talker) -> None:
    """The same request_id creates one conversation, whose first answer is given again, title and all."""
    first = await talker("CreateConversation", request_id="r-1", title="once", metadata={"k": "v"})
    again = await talker("CreateConversation", request_id="r-1", title="once", metadata={"k": "v"})
    assert again == first
    assert len((await talker("ListConversations")).conversations) == 1
    other = await refused(talker("CreateConversation", request_id="r-1", title="twice"))
    assert (other.code, other.reason, other.fields) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED", ("request_id",))


async def test_request_ids_belong_to_a_user(talker: Talker, stranger: Talker) -> None:
    """Two users may use one request_id and one conversation id without knowing of each other."""
    for one in (talker, stranger):
        await one("CreateConversation", request_id="r-1", conversation_id="mine", title=one.metadata[0][1][-8:])
    assert (await talker.get("mine")).title != (await stranger.get("mine")).title


async def test_an_id_is_given_once(talker: Talker) -> None:
    """An id that is taken, or was deleted lately, can't be created; the answer tells which of the two it is."""
    await talker.create(conversation_id="Mine_1.x-y")
    taken = await refused(talker("CreateConversation", conversation_id="Mine_1.x-y"))
    assert (taken.code, taken.reason) == ("ALREADY_EXISTS", "ALREADY_EXISTS")
    assert taken.facts == {"type": "conversation", "id": "Mine_1.x-y"}
    await talker("DeleteConversation", conversation_id="Mine_1.x-y")
    deleted = await refused(talker("CreateConversation", conversation_id="Mine_1.x-y"))
    assert deleted.code == "ALREADY_EXISTS"
    assert "exists already" in taken.message
    assert "deleted" in deleted.message


async def test_the_list_is_newest_first_and_never_behind(talker: Talker, stranger: Talker) -> None:
    """Each conversation stands first in the list as soon as its create was answered, and leaves it when deleted."""
    created: list[str] = []
    for _ in range(4):
        created.insert(0, await talker.create())
        listed = await talker("ListConversations")
        assert [one.id for one in listed.conversations] == created
    await talker.say(created[2], "changes nothing in the order")
    await talker("DeleteConversation", conversation_id=created.pop(1))
    assert [one.id for one in (await talker("ListConversations")).conversations] == created
    assert not (await stranger("ListConversations")).conversations


async def test_the_list_has_pages(talker: Talker) -> None:
    """Pages of a list hold each conversation once, even if some are created and deleted between two of them."""
    ids = [await talker.create() for _ in range(7)][::-1]
    first = await talker("ListConversations", page_size=3)
    assert [one.id for one in first.conversations] == ids[:3]
    await talker.create()
    await talker("DeleteConversation", conversation_id=ids[4])
    second = await talker("ListConversations", page_size=3, page_token=first.next_page_token)
    assert [one.id for one in second.conversations] == [ids[3], ids[5], ids[6]]
    assert not second.next_page_token
    lowered = await talker("ListConversations", page_size=2**31 - 1)
    assert len(lowered.conversations) == 7


async def test_a_long_list_is_whole(talker: Talker) -> None:
    """A user's 270 conversations are listed once each, newest first, across the documents they lie in."""
    ids = [await talker.create(conversation_id=f"c{number}") for number in range(270)][::-1]
    found: list[str] = []
    token = ""
    while True:
        page = await talker("ListConversations", page_size=100, page_token=token)
        found += [one.id for one in page.conversations]
        token = page.next_page_token
        if not token:
            break
    assert found == ids
    await talker("DeleteConversation", conversation_id="c3")
    await talker("DeleteConversation", conversation_id="c269")
    newest = await talker("ListConversations", page_size=2)
    assert [one.id for one in newest.conversations] == ["c268", "c267"]


async def test_the_list_by_last_change(talker: Talker, stranger: Talker) -> None:
    """By update time the conversation changed last comes first, soon after; filters take those that have all of it."""
    old = await talker.create("one", metadata={"team": "blue", "state": "open"})
    new = await talker.create("two", metadata={"team": "blue"})
    await talker.say(old, "three")

    async def listed(**fields: object) -> list[str]:
        return [one.id for one in (await talker("ListConversations", **fields)).conversations]

    async def in_order() -> bool:
        return await listed(order_by=api.CONVERSATION_ORDER_UPDATE_TIME) == [old, new]

    await eventually(in_order, within=_WITHIN, what="both, the one changed last first")
    assert sorted(await listed(metadata={"team": "blue"})) == sorted([old, new])
    assert await listed(metadata={"team": "blue", "state": "open"}) == [old]
    assert await listed(metadata={"team": "red"}) == []
    assert not (await stranger("ListConversations", metadata={"team": "blue"})).conversations
    first = await talker("ListConversations", order_by=api.CONVERSATION_ORDER_UPDATE_TIME, page_size=1)
    assert await listed(order_by=api.CONVERSATION_ORDER_UPDATE_TIME, page_size=1, page_token=first.next_page_token) == [
        new
    ]


async def test_an_update_changes_what_it_names(talker: Talker) -> None:
    """Only the fields that are set change; an empty one clears; each update has a new etag and a later time."""
    conversation_id = await talker.create("hello", title="before", metadata={"a": "1"})
    renamed = await talker("UpdateConversation", conversation_id=conversation_id, title="after")
    now = await talker.get(conversation_id)
    assert (now.title, dict(now.metadata), now.etag) == ("after", {"a": "1"}, renamed.etag)
    assert now.update_time == renamed.update_time
    await talker("UpdateConversation", conversation_id=conversation_id, metadata=api.MetadataUpdate(entries={"b": "2"}))
    await talker(
        "UpdateConversation", conversation_id=conversation_id, retention=conversation_pb2.Retention(max_messages=5)
    )
    now = await talker.get(conversation_id)
    assert (now.title, dict(now.metadata), now.retention.max_messages) == ("after", {"b": "2"}, 5)
    await talker("UpdateConversation", conversation_id=conversation_id, title="", metadata=api.MetadataUpdate())
    cleared = await talker.get(conversation_id)
    assert (cleared.title, dict(cleared.metadata)) == ("", {})
    nothing = await talker("UpdateConversation", conversation_id=conversation_id)
    assert nothing.etag == cleared.etag
    assert await talker.history(conversation_id) == numbered("hello")


CHANGES = {
    "update": ("UpdateConversation", {"title": "mine"}),
    "truncate": ("TruncateConversation", {"drop_last": 1}),
    "delete": ("DeleteConversation", {}),
}


@pytest.mark.parametrize(("method", "fields"), CHANGES.values(), ids=CHANGES.keys())
async def test_a_stale_etag_changes_nothing(talker: Talker, method: str, fields: dict[str, object]) -> None:
    """A change with an etag from before another change is ABORTED, says both, and leaves all as it was."""
    conversation_id = await talker.create("one", "two")
    stale = (await talker.get(conversation_id)).etag
    await talker.say(conversation_id, "three")
    before = await talker.get(conversation_id)
    answer = await refused(talker(method, conversation_id=conversation_id, etag=stale, **fields))
    assert (answer.code, answer.reason) == ("ABORTED", "STALE_ETAG")
    assert answer.facts == {"etag": stale, "current": before.etag}
    assert await talker.get(conversation_id) == before
    await talker(method, conversation_id=conversation_id, etag=before.etag, **fields)


REPLAYED = {
    "update": ("UpdateConversation", {"title": "mine"}, {"title": "other"}),
    "append": ("AppendMessages", {"messages": [text_message("x")]}, {"messages": [text_message("y")]}),
    "truncate": ("TruncateConversation", {"drop_last": 1}, {"drop_last": 2}),
    "compact": ("CompactConversation", {"summary": "x"}, {"summary": "y"}),
    "fence": ("RaiseFence", {}, None),
    "fork": ("ForkConversation", {"sequence": 2}, {"sequence": 3}),
    "delete": ("DeleteConversation", {}, {"etag": "4"}),
}


@pytest.mark.parametrize(("method", "fields", "other"), REPLAYED.values(), ids=REPLAYED.keys())
async def test_a_request_id_has_one_effect(
    talker: Talker, method: str, fields: dict[str, object], other: dict[str, object] | None
) -> None:
    """A repeated change gives its first answer and has no second effect; another body under its id is refused."""
    conversation_id = await talker.create("one", "two", "three", "four")
    call = {"conversation_id": conversation_id, "request_id": f"r-{uuid.uuid4().hex[:8]}"}
    first = await talker(method, **call, **fields)
    after = [await talker("ListConversations"), await talker("SearchMessages", query="nothing")]
    assert await talker(method, **call, **fields) == first
    assert [await talker("ListConversations"), await talker("SearchMessages", query="nothing")] == after
    if method != "DeleteConversation":
        assert (await talker.get(conversation_id)).etag == after[0].conversations[-1].etag
    if other is not None:
        answer = await refused(talker(method, **call, **other))
        assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")


async def test_a_deleted_conversation_is_gone(mesh: Mesh, talker: Talker, user: str) -> None:
    """Deleting takes every row of the conversation but a tombstone; repeating it is OK, all else is NOT_FOUND."""
    conversation_id = await talker.create(conversation_id="doomed")
    for first in range(0, 300, 50):
        await talker.say(conversation_id, *(f"{first + number} {'x' * 800}" for number in range(50)))
    await talker.say(conversation_id, "y" * 100_000, "z" * 700_000)

    def rows() -> list[str]:
        return conversation_keys(mesh, user)

    assert len(rows()) > 8
    await talker("DeleteConversation", conversation_id=conversation_id)

    async def tombstone_alone() -> bool:
        return rows() == [f"chat:{user}:doomed"]

    await eventually(tombstone_alone, within=_WITHIN, what="nothing left but the tombstone")
    await talker("DeleteConversation", conversation_id=conversation_id)
    for method, fields in ON_A_CONVERSATION.items():
        if method != "DeleteConversation":
            assert (await refused(talker(method, conversation_id=conversation_id, **fields))).code == "NOT_FOUND"


ON_A_CONVERSATION: dict[str, dict[str, object]] = {
    "GetConversation": {},
    "UpdateConversation": {"title": "x"},
    "DeleteConversation": {},
    "AppendMessages": {"messages": [text_message("x", message_pb2.ROLE_SYSTEM)]},
    "ListMessages": {},
    "GetContext": {},
    "ForkConversation": {},
    "TruncateConversation": {"all": True},
    "CompactConversation": {"summary": "x"},
    "RaiseFence": {},
}


@pytest.mark.parametrize(("method", "fields"), ON_A_CONVERSATION.items(), ids=ON_A_CONVERSATION.keys())
async def test_another_users_conversation_is_not_there(
    talker: Talker, stranger: Talker, method: str, fields: dict[str, object]
) -> None:
    """Another user's conversation answers as one that never was, to the letter, and is not touched."""
    conversation_id = await talker.create("secret", title="secret")
    before = await talker.get(conversation_id)
    missing = str(uuid.uuid4())
    theirs = await refused(stranger(method, conversation_id=conversation_id, **fields))
    none = await refused(stranger(method, conversation_id=missing, **fields))
    assert (theirs.code, theirs.reason) == ("NOT_FOUND", "NOT_FOUND")
    assert theirs.message.replace(conversation_id, "-") == none.message.replace(missing, "-")
    assert (theirs.facts, none.facts) == (
        {"type": "conversation", "id": conversation_id},
        {"type": "conversation", "id": missing},
    )
    assert (theirs.code, theirs.reason, theirs.fields, theirs.retry_after) == (
        none.code,
        none.reason,
        none.fields,
        none.retry_after,
    )
    assert await talker.get(conversation_id) == before
