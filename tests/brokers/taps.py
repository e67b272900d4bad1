"""Brokers as their own clients see them, with nothing of Dapr: what lies in a topic, and whatever is put there."""

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import confluent_kafka
import redis.asyncio

from tests.mesh_fixture import Mesh

_READ_SECONDS = 60.0
_POLL_SECONDS = 0.5


class Tap(ABC):
    """Holds on to what comes by a topic from now on, in the broker's order."""

    def __init__(self, mesh: Mesh, topic: str) -> None:
        """`topic` is the broker's own name for it."""
        self.mesh = mesh
        self.topic = topic
        self.secrets: dict[str, Any] = json.loads(mesh.description.secrets_file.read_text())

    @abstractmethod
    async def open(self) -> None:
        """Begin to hold on."""

    @abstractmethod
    async def read(self) -> list[bytes]:
        """Give all that came since, the oldest first."""

    @abstractmethod
    async def put(self, message: bytes) -> None:
        """Put a message into the topic, as it is."""

    @abstractmethod
    async def close(self) -> None:
        """Let go."""

    async def events(self) -> list[dict[str, Any]]:
        """Give what came since as CloudEvents."""
        return [json.loads(message) for message in await self.read()]


class RedisTap(Tap):
    """A stream; the message is the field `data`."""

    def _client(self) -> redis.asyncio.Redis:
        address = self.mesh.description.broker_address
        return redis.asyncio.from_url(f"redis://:{self.secrets['redis-password']}@{address}")

    async def open(self) -> None:
        async with self._client() as client:
            newest: Any = await client.xrevrange(self.topic, count=1)
        self._after = newest[0][0].decode() if newest else "0"

    async def read(self) -> list[bytes]:
        async with self._client() as client:
            entries: Any = await client.xrange(self.topic, min=f"({self._after}")
        return [entry[b"data"] for _, entry in entries]

    async def put(self, message: bytes) -> None:
        async with self._client() as client:
            await client.xadd(self.topic, {"data": message})

    async def close(self) -> None:
        """Nothing is held."""


class RabbitTap(Tap):
    """A durable queue of our own, bound to the topic's exchange."""

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
        url = self.secrets["rabbitmq-secrets"]["connection-string"]
        async with await aio_pika.connect(url) as connection, connection.channel() as channel:
            yield channel

    async def open(self) -> None:
        self._queue = f"tap-{self.topic}-{time.monotonic_ns()}"
        self._read: list[bytes] = []
        async with self._channel() as channel:
            queue = await channel.declare_queue(self._queue, durable=True)
            # Not declared here: it is there because a sidecar declared it, or the test has found something.
            await queue.bind(await channel.get_exchange(self.topic))

    async def read(self) -> list[bytes]:
        async with self._channel() as channel:
            queue = await channel.get_queue(self._queue)
            while (message := await queue.get(fail=False)) is not None:
                assert message.delivery_mode is aio_pika.DeliveryMode.PERSISTENT
                self._read.append(message.body)
                await message.ack()
        return self._read

    async def put(self, message: bytes) -> None:
        async with self._channel() as channel:
            exchange = await channel.get_exchange(self.topic)
            await exchange.publish(aio_pika.Message(message), routing_key="")

    async def close(self) -> None:
        async with self._channel() as channel:
            await channel.queue_delete(self._queue)


class KafkaTap(Tap):
    """All partitions of a topic, from where they ended."""

    @property
    def configuration(self) -> dict[str, str | int | float | bool]:
        """How a client of this broker is configured."""
        secrets = self.secrets["kafka-secrets"]
        configuration: dict[str, str | int | float | bool] = {"bootstrap.servers": secrets["KAFKA_BROKERS"]}
        if self.mesh.description.component_set == "kafka-cloud":
            configuration |= {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": secrets["KAFKA_SASL_MECHANISM"],
                "sasl.username": secrets["KAFKA_USERNAME"],
                "sasl.password": secrets["KAFKA_PASSWORD"],
                "ssl.ca.pem": secrets["KAFKA_CA_CERT"],
            }
        return configuration

    async def open(self) -> None:
        deadline = time.monotonic() + _READ_SECONDS
        # Made when a sidecar subscribes to it, which audit does to all of them, one after the other.
        while not await asyncio.to_thread(self._is_there):
            assert time.monotonic() < deadline, f"no topic {self.topic}"
            await asyncio.sleep(_POLL_SECONDS)
        self._from = await asyncio.to_thread(self._ends)

    async def read(self) -> list[bytes]:
        return await asyncio.to_thread(self._consume)

    async def put(self, message: bytes) -> None:
        await asyncio.to_thread(self._produce, message)

    async def close(self) -> None:
        """Nothing is held."""

    def _consumer(self) -> confluent_kafka.Consumer:
        return confluent_kafka.Consumer(self.configuration | {"group.id": "tap", "enable.auto.commit": "false"})

    def _is_there(self) -> bool:
        consumer = self._consumer()
        try:
            return consumer.list_topics(self.topic, timeout=_READ_SECONDS).topics[self.topic].error is None
        finally:
            consumer.close()

    def _ends(self) -> dict[int, int]:
        consumer = self._consumer()
        try:
            found = consumer.list_topics(self.topic, timeout=_READ_SECONDS).topics[self.topic]
            assert found.error is None, found.error
            partitions = [confluent_kafka.TopicPartition(self.topic, one) for one in found.partitions]
            return {
                one.partition: consumer.get_watermark_offsets(one, timeout=_READ_SECONDS, cached=False)[1]
                for one in partitions
            }
        finally:
            consumer.close()

    def _consume(self) -> list[bytes]:
        ends = self._ends()
        wanted = sum(ends.values()) - sum(self._from.values())
        consumer = self._consumer()
        messages: list[bytes] = []
        try:
            consumer.assign([confluent_kafka.TopicPartition(self.topic, *place) for place in self._from.items()])
            deadline = time.monotonic() + _READ_SECONDS
            while len(messages) < wanted:
                assert time.monotonic() < deadline, f"{len(messages)} of {wanted} messages read"
                for message in consumer.consume(500, timeout=1):
                    assert message.error() is None, message.error()
                    messages.append(message.value() or b"")
        finally:
            consumer.close()
        return messages

    def _produce(self, message: bytes) -> None:
        producer = confluent_kafka.Producer(self.configuration)
        producer.produce(self.topic, message)
        assert producer.flush(_READ_SECONDS) == 0


_TAPS: dict[str, type[Tap]] = {"redis": RedisTap, "rabbitmq": RabbitTap, "kafka": KafkaTap}


@asynccontextmanager
async def tapped(mesh: Mesh, topic: str) -> AsyncIterator[Tap]:
    """Hold on to what comes by a topic while the block runs."""
    names = json.loads(mesh.description.settings.get("GAGGLE_TOPIC_NAMES", "{}"))
    tap = _TAPS[mesh.description.broker](mesh, names.get(topic, topic))
    await tap.open()
    try:
        yield tap
    finally:
        await tap.close()


def topic_folders(mesh: Mesh, topic: str) -> list[Path]:
    """Where Kafka keeps a topic's partitions."""
    return sorted((mesh.data.kafka / "data").glob(f"{topic}-[0-9]*"))
