"""Gaggle's reminders: tasks whose reminders come due within a minute, and a subscriber who sees them come."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import grpc
from dapr.proto.runtime.v1 import appcallback_pb2, dapr_pb2_grpc, pubsub_pb2

from bench.clients.client import Spec
from gaggle.reminder.v1 import reminder_service_pb2 as reminder_api
from gaggle.reminder.v1 import reminder_service_pb2_grpc
from gaggle.task.v1 import task_service_pb2 as task_api
from gaggle.task.v1 import task_service_pb2_grpc

_TOPIC = "reminders"
_AT_ONCE = 8
_READY_SECONDS = 10.0
_AHEAD_SECONDS = 5.0
"""Between the last reminder set and the first that is due: what was set is to be told, logged and settled by then."""

_CREATED_PER_SECOND = 60
"""At least: how far ahead the first due time has to be chosen."""

_AFTER_SECONDS = 20.0
"""Whatever is lost would have been found by the sweep in that time; whatever comes twice would have come."""


class Reminders:
    """The task and reminder services, spoken to straight, and a subscriber with a sidecar of its own."""

    def __init__(
        self, spec: Spec, task: grpc.aio.Channel, reminder: grpc.aio.Channel, sidecar: grpc.aio.Channel
    ) -> None:
        """`sidecar` is the bench's."""
        self._spec = spec
        self._tasks: Any = task_service_pb2_grpc.TaskServiceStub(task)
        self._reminders: Any = reminder_service_pb2_grpc.ReminderServiceStub(reminder)
        self._dapr: Any = dapr_pb2_grpc.DaprStub(sidecar)  # type: ignore[no-untyped-call]
        self._metadata = (("authorization", f"Bearer {spec.token}"),)
        self._came: dict[str, list[float]] = {}
        """By task: milliseconds from the reminder's time to its event's arrival, once for each event."""

    async def reminders(self, count: int, seconds: float) -> dict[str, Any]:
        """Have so many reminders come due, evenly, within these seconds; give how late the subscriber had each.

        Raises AssertionError if one is lost, early or comes twice, TimeoutError if the subscription does not begin.
        """
        ready = asyncio.Event()
        stream = self._dapr.SubscribeTopicEventsAlpha1()
        receiving = asyncio.create_task(self._receive(stream, ready))
        try:
            await asyncio.wait_for(ready.wait(), _READY_SECONDS)
            begin = time.time() + count / _CREATED_PER_SECOND + _AHEAD_SECONDS
            tasks = await self._create(count, begin, seconds / count)
            await self._all_set(set(tasks))
            assert time.time() < begin, "setting the reminders took longer than was thought"
            await asyncio.sleep(begin + seconds - time.time())
            end = time.time() + _AFTER_SECONDS
            while time.time() < end and len(self._came.keys() & set(tasks)) < count:  # noqa: ASYNC110 - a deadline
                await asyncio.sleep(0.05)
            # A second one of any would come in the moment after.
            await asyncio.sleep(1.0)
        finally:
            receiving.cancel()
            stream.cancel()
        came = [self._came.get(task_id, []) for task_id in tasks]
        lost, twice = sum(not one for one in came), sum(len(one) > 1 for one in came)
        late = [one[0] for one in came if one]
        assert (lost, twice) == (0, 0), f"{lost} of {count} lost, {twice} twice"
        assert min(late) >= 0, f"one came {-min(late)} ms early"
        return {"seconds": seconds, "latencies_ms": [round(one, 3) for one in late]}

    async def _create(self, count: int, begin: float, step: float) -> list[str]:
        places = asyncio.Semaphore(_AT_ONCE)

        async def create(number: int) -> str:
            request = task_api.CreateTaskRequest(title=f"task {number}")
            request.due_time.FromNanoseconds(int((begin + number * step) * 1e9))
            request.reminder_offsets.add()
            async with places:
                answer = await self._tasks.CreateTask(request, metadata=self._metadata)
            return str(answer.task.id)

        return await asyncio.gather(*(create(number) for number in range(count)))

    async def _all_set(self, tasks: set[str]) -> None:
        """Wait until every task has its reminder."""
        while True:
            found: set[str] = set()
            request = reminder_api.ListRemindersRequest(page_size=200)
            while True:
                page = await self._reminders.ListReminders(request, metadata=self._metadata)
                found |= {one.task_id for one in page.reminders}
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    break
            if tasks <= found:
                return
            await asyncio.sleep(0.5)

    async def _receive(self, stream: Any, ready: asyncio.Event) -> None:
        first = pubsub_pb2.SubscribeTopicEventsRequestInitialAlpha1(pubsub_name=self._spec.pubsub, topic=_TOPIC)
        await stream.write(pubsub_pb2.SubscribeTopicEventsRequestAlpha1(initial_request=first))
        while True:
            response = await stream.read()
            now = time.time()
            if response.HasField("initial_response"):
                ready.set()
                continue
            message = response.event_message
            event = json.loads(message.data)
            if event["event_type"] == "reminder.due":
                at = datetime.fromisoformat(event["data"]["remind_at"]).timestamp()
                self._came.setdefault(event["data"]["task_id"], []).append((now - at) * 1000)
            done = pubsub_pb2.SubscribeTopicEventsRequestProcessedAlpha1(id=message.id)
            done.status.status = appcallback_pb2.TopicEventResponse.SUCCESS
            await stream.write(pubsub_pb2.SubscribeTopicEventsRequestAlpha1(event_processed=done))


@contextlib.asynccontextmanager
async def connect(spec: Spec) -> AsyncIterator[Reminders]:
    """Connect."""
    async with (
        grpc.aio.insecure_channel(spec.task) as task,
        grpc.aio.insecure_channel(spec.reminder) as reminder,
        grpc.aio.insecure_channel(spec.sidecar_grpc) as dapr,
    ):
        yield Reminders(spec, task, reminder, dapr)
