"""Gaggle by its generated stub in Python: what a Python program sees, parsed messages included.

It also writes the histories that ghz reads, and awaits events.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from dapr.proto.runtime.v1 import appcallback_pb2, dapr_pb2_grpc, pubsub_pb2, state_pb2

from bench.clients.client import WINDOW, Spec
from bench.texts import role, texts
from gaggle.conversation.v1 import conversation_service_pb2 as api
from gaggle.conversation.v1 import conversation_service_pb2_grpc as api_grpc
from gaggle.conversation.v1 import message_pb2

_AT_ONCE = 8
_APPEND_MOST = 500
_TOPIC = "goose.agent.message.received"
_EVENTS_PER_SECOND = 20.0
# A Kafka consumer that has just joined its group may wait for its partitions.
_EVENT_SECONDS = 30.0
# One that the publisher, the conversation service's sidecar, may publish; nobody else takes it in a mesh under measure.
_BURST_TOPIC = "goose.conversation.deleted"
_BURST_CALLERS = 32
_BURST_SECONDS = 60.0


class GaggleStub:
    """The conversation service, spoken to straight."""

    def __init__(self, spec: Spec, service: grpc.aio.Channel, sidecar: grpc.aio.Channel) -> None:
        """`sidecar` is the bench's."""
        self._spec = spec
        self._stub: Any = api_grpc.ConversationServiceStub(service)
        self._dapr: Any = dapr_pb2_grpc.DaprStub(sidecar)  # type: ignore[no-untyped-call]
        self._metadata = (("authorization", f"Bearer {spec.token}"),)
        self._message = _message(0, texts(1)[0])
        self._turn = 0

    async def prepare(self, history: int) -> None:
        """Write one conversation to read from, `read-HISTORY`, and the pool `append-HISTORY-N` to append to."""
        await self._conversation(f"read-{history}", history)
        places = asyncio.Semaphore(_AT_ONCE)

        async def write(number: int) -> None:
            async with places:
                await self._conversation(f"append-{history}-{number}", history)

        await asyncio.gather(*(write(number) for number in range(self._spec.pools[str(history)])))
        answer = await self._stub.ListMessages(
            api.ListMessagesRequest(conversation_id=f"read-{history}"), metadata=self._metadata
        )
        assert len(answer.messages) == WINDOW
        assert answer.last_sequence == history

    async def _conversation(self, conversation_id: str, history: int) -> None:
        await self._stub.CreateConversation(
            api.CreateConversationRequest(conversation_id=conversation_id), metadata=self._metadata
        )
        messages = [_message(index, text) for index, text in enumerate(texts(history))]
        for first in range(0, history, _APPEND_MOST):
            request = api.AppendMessagesRequest(
                conversation_id=conversation_id, messages=messages[first : first + _APPEND_MOST]
            )
            await self._stub.AppendMessages(request, metadata=self._metadata)

    async def document(self, history: int) -> str:
        """Give the bytes of a read, in hexadecimal, and lay them into the state store under `document`."""
        answer = await self._stub.ListMessages(
            api.ListMessagesRequest(conversation_id=f"read-{history}"), metadata=self._metadata
        )
        data: bytes = answer.SerializeToString()
        request = state_pb2.SaveStateRequest(store_name=self._spec.store)
        request.states.add(key="document", value=data)
        await self._dapr.SaveState(request)
        return data.hex()

    async def read(self, history: int, caller: int) -> None:  # noqa: ARG002
        """See Client."""
        await self._stub.ListMessages(
            api.ListMessagesRequest(conversation_id=f"read-{history}"), metadata=self._metadata
        )

    async def append(self, history: int, caller: int) -> None:  # noqa: ARG002
        """See Client."""
        self._turn += 1
        await self._stub.AppendMessages(
            api.AppendMessagesRequest(
                conversation_id=f"append-{history}-{self._turn % self._spec.pools[str(history)]}",
                messages=[self._message],
            ),
            metadata=self._metadata,
        )

    async def reset(self, history: int) -> None:
        """Nothing: the pool is large enough that its conversations hardly grow."""

    async def events(self, count: int) -> dict[str, Any]:
        """Append at uneven moments; give the milliseconds from each append's answer until its event is here.

        The subscriber has a sidecar of its own, and acknowledges every event. TimeoutError if one does not come.
        """
        conversation_id = f"events-{time.time_ns()}"
        await self._stub.CreateConversation(
            api.CreateConversationRequest(conversation_id=conversation_id), metadata=self._metadata
        )
        arrived: dict[int, asyncio.Future[float]] = {}
        ready = asyncio.Event()
        stream = self._dapr.SubscribeTopicEventsAlpha1()
        receiving = asyncio.create_task(self._receive(stream, conversation_id, arrived, ready))
        draw = random.Random(count)
        latencies = []
        try:
            await asyncio.wait_for(ready.wait(), _EVENT_SECONDS)
            began = time.perf_counter()
            for number in range(1, count + 1):
                arrived[number] = asyncio.get_running_loop().create_future()
                await self._stub.AppendMessages(
                    api.AppendMessagesRequest(conversation_id=conversation_id, messages=[self._message]),
                    metadata=self._metadata,
                )
                answered = time.perf_counter()
                there = await asyncio.wait_for(arrived[number], _EVENT_SECONDS)
                latencies.append(max(there - answered, 0.0) * 1000)
                await asyncio.sleep(draw.uniform(0, 2 / _EVENTS_PER_SECOND))
            return {"seconds": time.perf_counter() - began, "latencies_ms": latencies}
        finally:
            receiving.cancel()
            stream.cancel()

    async def burst(self, publisher: str, count: int) -> dict[str, float]:
        """Publish so many events at once by another sidecar; give how many a second have come by the last of them.

        Keys differ, so that a topic's partitions share them. TimeoutError if not all of them come.
        """
        name, seen, complete = f"burst-{time.time_ns()}", set[int](), asyncio.Event()
        stream = self._dapr.SubscribeTopicEventsAlpha1()
        ready = asyncio.Event()

        async def receive() -> None:
            async for event in self._deliveries(stream, _BURST_TOPIC, ready):
                if event["burst"] == name:
                    seen.add(event["number"])
                if len(seen) == count:
                    complete.set()

        receiving = asyncio.create_task(receive())
        numbers = iter(range(count))
        async with grpc.aio.insecure_channel(publisher) as channel:
            dapr: Any = dapr_pb2_grpc.DaprStub(channel)  # type: ignore[no-untyped-call]

            async def publish() -> None:
                for number in numbers:
                    request = pubsub_pb2.PublishEventRequest(
                        pubsub_name=self._spec.pubsub, topic=_BURST_TOPIC, data_content_type="application/json"
                    )
                    request.data = json.dumps({"burst": name, "number": number, "text": "x" * 400}).encode()
                    request.metadata["partitionKey"] = str(number % 97)
                    await dapr.PublishEvent(request, timeout=_EVENT_SECONDS)

            try:
                await asyncio.wait_for(ready.wait(), _EVENT_SECONDS)
                began = time.perf_counter()
                await asyncio.gather(*(publish() for _ in range(_BURST_CALLERS)))
                await asyncio.wait_for(complete.wait(), _BURST_SECONDS)
                return {"per_second": count / (time.perf_counter() - began)}
            finally:
                receiving.cancel()
                stream.cancel()

    async def _receive(
        self, stream: Any, conversation_id: str, arrived: dict[int, "asyncio.Future[float]"], ready: asyncio.Event
    ) -> None:
        async for event in self._deliveries(stream, _TOPIC, ready):
            now = time.perf_counter()
            if event["entityId"] == conversation_id:
                number = int(event["data"]["lastSequence"])
                if number in arrived and not arrived[number].done():
                    arrived[number].set_result(now)

    async def _deliveries(self, stream: Any, topic: str, ready: asyncio.Event) -> AsyncIterator[Any]:
        """Subscribe on the bench's own sidecar; an event is acknowledged once it was looked at."""
        first = pubsub_pb2.SubscribeTopicEventsRequestInitialAlpha1(pubsub_name=self._spec.pubsub, topic=topic)
        await stream.write(pubsub_pb2.SubscribeTopicEventsRequestAlpha1(initial_request=first))
        while True:
            response = await stream.read()
            if response.HasField("initial_response"):
                ready.set()
                continue
            message = response.event_message
            yield json.loads(message.data)
            done = pubsub_pb2.SubscribeTopicEventsRequestProcessedAlpha1(id=message.id)
            done.status.status = appcallback_pb2.TopicEventResponse.SUCCESS
            await stream.write(pubsub_pb2.SubscribeTopicEventsRequestAlpha1(event_processed=done))


def _message(index: int, text: str) -> message_pb2.Message:
    speaker = message_pb2.ROLE_ASSISTANT if role(index) == "assistant" else message_pb2.ROLE_USER
    message = message_pb2.Message(role=speaker)
    message.content.add().text.text = text
    return message


@contextlib.asynccontextmanager
async def connect(spec: Spec) -> AsyncIterator[GaggleStub]:
    """Connect."""
    async with grpc.aio.insecure_channel(spec.service) as service, grpc.aio.insecure_channel(spec.sidecar_grpc) as dapr:
        yield GaggleStub(spec, service, dapr)
