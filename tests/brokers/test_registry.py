"""The Avro schemas in a real registry (Apicurio, by Confluent's API), and a topic on Kafka that is held to one."""

import asyncio
import contextlib
import io
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import confluent_kafka
import confluent_kafka.admin
import fastavro
import grpc.aio
import httpx
import pytest

from cli.binaries.apicurio import apicurio
from cli.mesh.data import PROJECT_ROOT
from cli.mesh.ports import LOOPBACK, find_free_base
from cli.mesh.sets import ComponentSet
from cli.observing.programs import running_program
from schemas.topics import PAYLOADS
from services.runtime import topics
from services.runtime.dapr import dapr_pb2_grpc, pubsub_pb2
from tests.brokers.conftest import BrokerMesh
from tests.brokers.taps import KafkaTap
from tests.lone_sidecar import lone_sidecar

pytestmark = [pytest.mark.mesh, pytest.mark.slow, pytest.mark.sets("kafka")]

_APP_ID = "avro"
_WITHIN = 60.0
_INCOMPATIBLE = 409
# Confluent's wire format: a zero, four bytes of the schema's id, the record.
_HEAD_BYTES = 5


@dataclass(frozen=True)
class Registry:
    """A registry that refuses what readers of the version before could not read."""

    address: str

    def post(self, topic: str, schema: dict[str, Any]) -> httpx.Response:
        """Register a schema as the next version of a topic's values."""
        return httpx.post(f"{self.address}/subjects/{topic}-value/versions", json={"schema": json.dumps(schema)})

    def get(self, schema_id: int) -> Any:
        """The schema with an id."""
        return json.loads(httpx.get(f"{self.address}/schemas/ids/{schema_id}").raise_for_status().json()["schema"])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """Apicurio, which keeps schemas in memory, with all of ours in it."""
    program = apicurio(lambda _what, _packages: None)
    port = find_free_base([]).broker + 30
    address = f"http://{LOOPBACK}:{port}/apis/ccompat/v7"
    settings = (f"-Dquarkus.http.host={LOOPBACK}", f"-Dquarkus.http.port={port}")
    arguments = [str(program.java), "-Xmx384m", *settings, "-jar", str(program.jar)]
    log = tmp_path_factory.mktemp("registry") / "apicurio.log"
    with running_program("Apicurio", arguments, log, f"{address}/subjects", port):
        httpx.put(f"{address}/config", json={"compatibility": "BACKWARD"}).raise_for_status()
        started = Registry(address)
        for topic in PAYLOADS:
            started.post(topic, schema(topic)).raise_for_status()
        yield started


def schema(topic: str) -> Any:
    """The committed Avro schema of a topic's events."""
    return json.loads((PROJECT_ROOT / "schemas" / "avro" / f"{topic}.avsc").read_text())


@dataclass(frozen=True)
class Avro:
    """A sidecar whose pub/sub component is the set's, with a registry."""

    stub: Any
    pubsub: str
    topic: str
    tap: KafkaTap

    async def publish(self, event: dict[str, Any]) -> None:
        """Publish as an application does that wants its events held to the schema."""
        await self.stub.PublishEvent(
            pubsub_pb2.PublishEventRequest(
                pubsub_name=self.pubsub,
                topic=self.topic,
                data=json.dumps(event).encode(),
                data_content_type="application/json",
                metadata={"rawPayload": "true", "valueSchemaType": "Avro"},
            ),
            timeout=_WITHIN,
        )


@pytest.fixture
async def avro(own: BrokerMesh, registry: Registry, tmp_path: Path) -> AsyncIterator[Avro]:
    """A topic of its own with the schema of `goose.recipe.completed`, and a sidecar that knows the registry."""
    topic = f"avro-{uuid.uuid4().hex}"
    tap = KafkaTap(own, topic)
    admin = confluent_kafka.admin.AdminClient(tap.configuration)
    wanted = confluent_kafka.admin.NewTopic(topic, 1, 1)  # type: ignore[attr-defined]
    admin.create_topics([wanted])[topic].result(_WITHIN)
    registry.post(topic, schema(topics.RECIPE_COMPLETED)).raise_for_status()
    components = ComponentSet.load(PROJECT_ROOT / "dapr-components" / "kafka")
    (pubsub,) = components.files[f"{own.pubsub}.yaml"]
    fields = [*pubsub["spec"]["metadata"], {"name": "schemaRegistryURL", "value": registry.address}]
    documents = [pubsub | {"spec": pubsub["spec"] | {"metadata": fields}}, *components.files["kubernetes-secrets.yaml"]]
    await tap.open()
    async with (
        lone_sidecar(tmp_path, _APP_ID, documents, tap.secrets) as (_, port),
        grpc.aio.insecure_channel(f"{LOOPBACK}:{port}") as channel,
    ):
        await asyncio.wait_for(channel.channel_ready(), _WITHIN)
        stub: Any = dapr_pb2_grpc.DaprStub(channel)  # type: ignore[no-untyped-call]
        yield Avro(stub, own.pubsub, topic, tap)


def event(entity_id: str = "run-1") -> dict[str, Any]:
    """Give an event as the topic's schema describes it, with every field."""
    given = {"eventId": f"event-{entity_id}", "eventType": topics.RECIPE_COMPLETED, "entityId": entity_id}
    return _empty(schema(topics.RECIPE_COMPLETED)) | given


def _empty(record: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one["default"] if "default" in one else _empty(one["type"]) for one in record["fields"]}


@pytest.mark.parametrize("left_out", [set(), {"userId", "metadata"}], ids=["whole", "with fields left out"])
async def test_an_event_is_written_by_the_schema_of_the_registry(
    avro: Avro, registry: Registry, left_out: set[str]
) -> None:
    """A plain client reads it with Avro and the registry alone; a field that was left out has its default."""
    await avro.publish({name: value for name, value in event().items() if name not in left_out})
    (value,) = await avro.tap.read()
    assert value[0] == 0
    written_by = registry.get(int.from_bytes(value[1:_HEAD_BYTES]))
    assert written_by["name"] == schema(topics.RECIPE_COMPLETED)["name"]
    assert fastavro.schemaless_reader(io.BytesIO(value[_HEAD_BYTES:]), fastavro.parse_schema(written_by)) == event()


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"entityId": 7}, id="another type"),
        pytest.param({"nobody": "knows this"}, id="a field that there is not"),
        pytest.param({"data": None}, id="nothing where something must be"),
    ],
)
async def test_what_the_schema_does_not_allow_is_not_published(avro: Avro, wrong: dict[str, Any]) -> None:
    """The publisher is told, and nothing reaches the topic."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await avro.publish(event() | wrong)
    assert refused.value.code() is grpc.StatusCode.INTERNAL
    assert await avro.tap.read() == []


async def test_a_subscriber_gets_json(avro: Avro) -> None:
    """A sidecar that subscribes by schema gives its app the event as it was published."""
    initial = pubsub_pb2.SubscribeTopicEventsRequestInitialAlpha1(
        pubsub_name=avro.pubsub,
        topic=avro.topic,
        metadata={"rawPayload": "true", "valueSchemaType": "Avro"},
    )
    call = avro.stub.SubscribeTopicEventsAlpha1()
    await call.write(pubsub_pb2.SubscribeTopicEventsRequestAlpha1(initial_request=initial))
    await avro.publish(event("run-2"))
    async with asyncio.timeout(_WITHIN):
        async for answer in call:
            if answer.HasField("event_message"):
                break
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        call.cancel()
    assert json.loads(answer.event_message.data) == event("run-2")


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        pytest.param([{"name": "more", "type": "string", "default": ""}], True, id="a field with a default"),
        pytest.param([{"name": "more", "type": "string"}], False, id="a field that old events lack"),
    ],
)
def test_a_schema_may_grow_and_not_break(registry: Registry, fields: list[dict[str, Any]], *, taken: bool) -> None:
    """A later version that reads what lies in the topic is taken, and one that does not is refused."""
    topic = f"growing-{uuid.uuid4().hex}"
    registry.post(topic, first := schema(topics.RECIPE_COMPLETED)).raise_for_status()
    answer = registry.post(topic, first | {"fields": [*first["fields"], *fields]})
    assert answer.is_success if taken else answer.status_code == _INCOMPATIBLE, answer.text
