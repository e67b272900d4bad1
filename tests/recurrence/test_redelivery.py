"""Two replicas, events that come thrice or not at all: a completed task has one next occurrence."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from google.protobuf import json_format

from gaggle.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from gaggle.task.v1 import task_pb2
from services.runtime import topics
from services.runtime.dapr import dapr_pb2_grpc, pubsub_pb2
from tests.audit.database import Database
from tests.conditions import eventually
from tests.mesh_fixture import Mesh
from tests.recurrence.series import begin
from tests.task.tasking import Tasker, at, seconds, told

pytestmark = [pytest.mark.mesh, pytest.mark.slow, pytest.mark.xdist_group("faults")]

_SERIES = 12
_STEPS = 3
_COPIES = 2
_WITHIN = 60.0
_AT_ONCE_SECONDS = 3.0


@pytest.fixture(scope="module")
def own(private_mesh: Callable[..., Mesh]) -> Iterator[Mesh]:
    """Two replicas of the recurrence service, beside the services that it needs."""
    with pytest.MonkeyPatch.context() as environment:
        # What was missed is found soon enough for a test.
        environment.setenv("GAGGLE_SWEEP_SECONDS", "2")
        environment.setenv("GAGGLE_RECONCILE_INTERVAL_SECONDS", "1")
        environment.setenv("GAGGLE_RECONCILE_GRACE_SECONDS", "0.5")
        yield private_mesh(only=["conversation", "audit", "task", "recurrence"], replicas={"recurrence": 2})


@asynccontextmanager
async def _tasker(mesh: Mesh, user: str) -> AsyncIterator[Tasker]:
    async with mesh.channel("task") as channel:
        yield Tasker(channel, mesh.metadata(user))


async def test_everything_is_delivered_thrice(own: Mesh, user: str) -> None:
    """While the broker delivers each event again and again to two replicas, each series has one task a step."""
    seen = await _received(own)
    async with _tasker(own, user) as tasker, _delivering_again(own, user) as published:
        firsts = await asyncio.gather(
            *(begin(tasker, "FREQ=DAILY", "2031-01-01T09:00", title=f"series {n}") for n in range(_SERIES))
        )
        current = [one.id for one in firsts]
        for _ in range(_STEPS):
            await asyncio.gather(*(tasker("CompleteTask", task_id=one) for one in current))
            current = list(await asyncio.gather(*(_next(tasker, one) for one in current)))
        # A create each, and with each step a completion, a creation, and the note of who comes next.
        events = _SERIES * (1 + 3 * _STEPS)

        async def delivered() -> bool:
            now = await _received(own)
            return sum(now) - sum(seen) >= events * (1 + _COPIES) and all(
                one > before for one, before in zip(now, seen, strict=True)
            )

        await eventually(delivered, within=_WITHIN, what=f"{events} events, thrice, at both replicas")
        assert len(published) == events * _COPIES
        tasks = await tasker.list(page_size=200)
        assert len(tasks) == _SERIES * (1 + _STEPS)
        for first in firsts:
            mine = sorted((one for one in tasks if one.series.id == first.id), key=lambda one: one.series.occurrence)
            assert [one.series.occurrence for one in mine] == list(range(1, _STEPS + 2))
            assert [one.series.previous_task_id for one in mine] == ["", *(one.id for one in mine[:-1])]
            assert [one.series.next_task_id for one in mine] == [*(one.id for one in mine[1:]), ""]
            assert [one.status == task_pb2.TASK_STATUS_OPEN for one in mine] == [False] * _STEPS + [True]


async def test_the_event_does_not_come(own: Mesh, user: str) -> None:
    """With the broker away the sweep finds completed tasks; their events, once they come, make no second next one."""
    seen = sum(await _received(own))
    async with _tasker(own, user) as tasker:
        first = await begin(tasker, "FREQ=DAILY", "2031-01-01T09:00")
        own.signal("redis", signal.SIGSTOP)
        try:
            await tasker("CompleteTask", task_id=first.id)
            second = await _next(tasker, first.id)
        finally:
            own.signal("redis", signal.SIGCONT)

        async def arrived() -> bool:
            return sum(await _received(own)) - seen >= 4

        await eventually(arrived, within=_WITHIN, what="two creations, the completion, the note of who comes next")
        assert {one.id for one in await tasker.list()} == {first.id, second}


async def test_no_reminder_service_no_harm(own: Mesh, user: str) -> None:
    """In a mesh without the reminder service, tasks with reminders are created and completed as ever, at once."""
    async with _tasker(own, user) as tasker:
        started = time.monotonic()
        task = await tasker.create("t", due_time=at("2031-01-02"), reminder_offsets=seconds(60))
        await tasker("CompleteTask", task_id=task.id)
        assert time.monotonic() - started < _AT_ONCE_SECONDS


async def test_what_a_broker_lost_is_told_again(own: Mesh, user: str) -> None:
    """Task events that never reached the log are found by comparing revisions, and come into it after all."""
    readmodel = Database(own.description.database_url)
    async with _tasker(own, user) as tasker:
        task = await tasker.create("told again")
        for title in ("second", "third"):
            await tasker("UpdateTask", task_id=task.id, title=title)
        await tasker("DeleteTask", task_id=task.id)

        async def complete() -> bool:
            return [one.revision for one in await told(own, user, task.id)] == [1, 2, 3, 4]

        await eventually(complete, within=_WITHIN, what="all four events")
        # As if the second and the last had never been delivered.
        readmodel.run("DELETE FROM goose.events WHERE user_id = %s AND revision IN (2, 4)", [user])
        readmodel.run("UPDATE goose.revisions SET seen = '{[1,2),[3,4)}' WHERE user_id = %s", [user])
        await eventually(complete, within=_WITHIN, what="the lost events")


async def _next(tasker: Tasker, task_id: str) -> str:
    async def there() -> str:
        return str((await tasker.get(task_id)).series.next_task_id)

    return await eventually(there, within=_WITHIN, what=f"a task after {task_id}")


@asynccontextmanager
async def _delivering_again(mesh: Mesh, user: str) -> AsyncIterator[list[str]]:
    """Meanwhile, publish each of the user's task events again, as it is, several times; gives the ids so published."""
    published: list[str] = []

    async def work() -> None:
        async with mesh.channel("audit") as audit_channel, mesh.sidecar("audit") as sidecar_channel:
            audit: Any = audit_service_pb2_grpc.AuditServiceStub(audit_channel)
            sidecar: Any = dapr_pb2_grpc.DaprStub(sidecar_channel)  # type: ignore[no-untyped-call]
            watched = audit_service_pb2.WatchEventsRequest(
                filter=audit_service_pb2.EventFilter(entity_type="task"), after_position=0
            )
            async for answer in audit.WatchEvents(watched, metadata=mesh.metadata(user)):
                for entry in answer.entries:
                    data = json_format.MessageToJson(entry.event, preserving_proto_field_name=True).encode()
                    request = pubsub_pb2.PublishEventRequest(
                        pubsub_name="pubsub",
                        topic=topics.TASK_EVENTS,
                        data=data,
                        data_content_type="application/json",
                    )
                    for _ in range(_COPIES):
                        await sidecar.PublishEvent(request, timeout=10)
                        published.append(entry.event.event_id)

    task = asyncio.create_task(work())
    try:
        yield published
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _received(mesh: Mesh) -> list[int]:
    """How many task events each replica of the recurrence service has been done with."""
    counts = []
    async with httpx.AsyncClient() as client:
        for replica in mesh.service("recurrence").replicas:
            text = (await client.get(f"http://{replica.metrics}/metrics")).text
            lines = [
                one
                for one in text.splitlines()
                if one.startswith("gaggle_events_received_total") and 'topic="task-events"' in one
            ]
            counts.append(sum(int(float(one.rpartition(" ")[2])) for one in lines if 'outcome="SUCCESS"' in one))
    return counts
