"""Entities: indexes of any length, races, repeated requests, revisions."""

import asyncio

import pytest

from gaggle.recipe.state.v1 import document_pb2
from gaggle.runtime.state.v1 import entity_pb2
from services.runtime.entities import INDEX_ENTRIES, MAX_SCANNED, Draft, Entities, advance
from services.runtime.errors import AlreadyExistsError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from services.runtime.users import Users, user_bucket
from tests.runtime.memory import MemoryBroker, MemoryState, make_outbox, settled

Head = document_pb2.RecipeHead
_TOPIC = "goose.recipe.updated"


class Things:
    """Entities of a kind, on a store in memory."""

    def __init__(self, state: MemoryState, broker: MemoryBroker) -> None:
        self.outbox = make_outbox(state, broker)
        users = Users(state)  # type: ignore[arg-type]
        self.users = users
        self.entities: Entities[Head] = Entities(
            state,  # type: ignore[arg-type]
            self.outbox,
            users,
            kind="thing",
            head_class=Head,
        )

    async def create(self, thing_id: str, *, request_id: str = "", name: str = "", body: bytes = b"") -> bytes:
        def build(entity: entity_pb2.Entity) -> Draft[Head]:
            head = Head(entity=entity)
            head.recipe.name = name
            return Draft(head, entity.id.encode(), {_TOPIC: {"name": name}})

        return await self.entities.create("ann", thing_id, request_id, body, build)

    async def rename(self, thing_id: str, suffix: str) -> bytes:
        def apply(head: Head) -> Draft[Head]:
            advance(head.entity)
            head.recipe.name += suffix
            return Draft(head, b"", {_TOPIC: {}})

        return await self.entities.change("ann", thing_id, "", b"", apply)

    async def delete(self, thing_id: str) -> None:
        await self.entities.delete("ann", thing_id, "", b"", lambda _: Draft(Head(), b"", {_TOPIC: {}}))

    async def listed(self, size: int = 100, wanted: str = "") -> list[str]:
        found, token = [], ""
        while True:
            heads, token = await self.entities.page(
                "ann", size=size, token=token, scope=(wanted,), match=lambda head: wanted in head.recipe.name
            )
            found += [head.entity.id for head in heads]
            if not token:
                return found


@pytest.fixture
async def things() -> Things:
    """Things of a fresh store."""
    made = Things(MemoryState(), MemoryBroker())
    await made.outbox.start()
    return made


async def test_lists_of_any_length(things: Things) -> None:
    """A list gives every entity once, newest first, over all buckets, whatever the page size, deleted ones left out."""
    count = 2 * INDEX_ENTRIES + 40
    for number in range(count):
        await things.create(str(number), name="rare" if number == 3 else "")
    for number in range(0, count, 3):
        await things.delete(str(number))
    wanted = [str(number) for number in reversed(range(count)) if number % 3]
    for size in (7, 100):
        assert await things.listed(size) == wanted
    await things.create("rare", name="rare")
    assert await things.listed(1, "rare") == ["rare"]
    assert count > MAX_SCANNED
    assert await things.users.bucket(user_bucket("ann")) == ["ann"]


async def test_racing_writers_lose_nothing(things: Things) -> None:
    """Of many writers of one entity, over two processes, each change is there once, by consecutive revisions."""
    await things.create("one")
    state: MemoryState = things.entities.state  # type: ignore[assignment]
    other = Things(state, MemoryBroker())
    await other.outbox.start()
    await asyncio.gather(*(one.rename("one", "x") for one in (things, other) for _ in range(5)))
    head = await things.entities.get("ann", "one")
    assert (head.recipe.name, head.entity.revision) == ("x" * 10, 11)
    assert [one.revision for one in head.entity.events] == list(range(1, 12))


async def test_each_change_is_told_and_can_be_told_again(things: Things) -> None:
    """Every revision has its event; the events of a range are published again on demand."""
    broker: MemoryBroker = things.outbox._sidecar  # type: ignore[assignment]
    await things.create("one")
    await things.rename("one", "x")
    await settled(lambda: len(broker.published) == 2)
    assert await things.entities.republish("ann", "one", 2, 5) == 1
    assert broker.published[2] == broker.published[1]
    with pytest.raises(NotFoundError):
        await things.entities.republish("ann", "none", 1, 1)


async def test_repeated_and_refused(things: Things) -> None:
    """A repeated request has one effect; a taken id, a reused request and an erased user are refused."""
    assert await things.create("one", request_id="r", body=b"a") == b"one"
    assert await things.create("two", request_id="r", body=b"a") == b"one"
    with pytest.raises(InvalidArgumentError):
        await things.create("one", request_id="r", body=b"b")
    with pytest.raises(AlreadyExistsError):
        await things.create("one")
    await things.delete("one")
    await things.delete("one")
    with pytest.raises(AlreadyExistsError, match="deleted"):
        await things.create("one")
    with pytest.raises(NotFoundError):
        await things.rename("one", "x")
    with pytest.raises(NotFoundError):
        await things.delete("none")
    await things.entities.close("ann")
    await things.entities.close("ann")
    with pytest.raises(FailedPreconditionError):
        await things.create("three")
