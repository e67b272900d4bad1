"""What the mesh's own services ask of the owner of reminders."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from gaggle.owner.v1 import owner_service_pb2 as owner_api
from services.reminder.domain import Edit
from services.reminder.owning import Owner
from services.runtime.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from services.runtime.owning import OwnerServicer
from tests.reminder.assembled import START, USER, Assembled, assembled
from tests.runtime.memory import settled


@pytest.fixture
async def service() -> AsyncIterator[Assembled]:
    """The service in one process."""
    async with assembled() as one:
        yield one


async def _revisions(owner: Owner, size: int) -> dict[str, int]:
    found: dict[str, int] = {}
    request = owner_api.ListRevisionsRequest(user_id=USER, page_size=size)
    while True:
        page = await owner.revisions(request)
        for one in page.revisions:
            assert one.entity_type == "reminder"
            assert one.entity_id not in found
            found[one.entity_id] = one.revision
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found


async def test_revisions_have_their_events(service: Assembled) -> None:
    """Every revision that is listed was told by events, and they can be told again."""
    owner = Owner(service.store)
    due = START + timedelta(hours=1)
    for number in range(7):
        await service.task(f"t{number}", due, 60, 120)
    await service.task("t3", due + timedelta(hours=1), 60)
    # A new title concerns reminders too, but makes no revision, since nobody is told.
    await service.task("t4", due, 60, 120)
    assert await _revisions(owner, 3) == {f"t{number}": 2 if number == 3 else 1 for number in range(7)}
    users = await owner.users(owner_api.ListUsersRequest())
    assert list(users.user_ids) == [USER]

    await settled(lambda: len(service.broker.published) == 16)
    told = list(service.broker.published)
    request = owner_api.RepublishEventsRequest(
        user_id=USER, entity_type="reminder", entity_id="t3", first_revision=1, last_revision=2
    )
    assert (await owner.republish(request)).published == 4
    again = service.broker.published[len(told) :]
    assert len(again) == 4
    assert all(one in told for one in again)


async def test_refusals(service: Assembled) -> None:
    """No user, too many revisions at once, no such task."""
    owner = Owner(service.store)
    with pytest.raises(InvalidArgumentError):
        await owner.revisions(owner_api.ListRevisionsRequest())
    request = owner_api.RepublishEventsRequest(user_id=USER, entity_id="t", first_revision=1, last_revision=1001)
    with pytest.raises(InvalidArgumentError):
        await OwnerServicer(owner).RepublishEvents(request, None)
    request.last_revision = 1
    with pytest.raises(NotFoundError):
        await owner.republish(request)


async def test_erasure(service: Assembled) -> None:
    """All that is kept of a user goes, with its jobs; nothing is set any more; repeating it does no harm."""
    owner = Owner(service.store)
    await service.sweep.once()
    for number in range(3):
        await service.task(f"t{number}", START + timedelta(hours=1), 60)
    assert await owner.empty(USER) == 3
    await service.settle()
    assert await owner.empty(USER) == 0
    assert service.scheduler.reminders() == {}
    assert not [key for key in service.state.items if key.startswith("reminder:")]
    with pytest.raises(FailedPreconditionError):
        await service.task("new", START + timedelta(hours=1), 60)
    await settled(lambda: sum(b'"erased"' in payload for _, payload in service.broker.published) == 3)
    # What was entered for the sweep names the user until its time is over.
    service.clock.go(hours=2)
    await service.sweep.once()
    assert not [key for key in service.state.items if key.startswith("due:")]


async def test_completed_stays_so(service: Assembled) -> None:
    """A reminder that was set while its task was being completed goes in the round, without any further word."""
    await service.task("t", START + timedelta(days=2), 60)
    done = service.tasks.put("t", START + timedelta(days=2), 60, done=True)

    def set_meanwhile(edit: Edit) -> bytes:
        edit.document.task_revision = int(done.etag)
        edit.changed = True
        return b""

    await service.store.change(USER, "t", set_meanwhile)
    for _ in range(10):
        await service.sweep.once()
    assert await service.states("t") == ["CANCELLED"]
