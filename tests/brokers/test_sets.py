"""What each set promises beyond the others: that its settings are in effect on the broker itself."""

import asyncio
import json
import re
from typing import Any

import aio_pika
import confluent_kafka
import confluent_kafka.admin
import pytest

from cli.mesh.data import PROJECT_ROOT
from gaggle.audit.v1 import audit_service_pb2 as api
from gaggle.common.v1 import event_pb2
from services.runtime import topics
from tests.brokers.conftest import BrokerMesh
from tests.brokers.probe import TOPIC, deliveries
from tests.brokers.taps import KafkaTap, RabbitTap, tapped, topic_folders
from tests.brokers.test_conformance import taken
from tests.conditions import eventually

pytestmark = [pytest.mark.mesh, pytest.mark.slow]

_WORKFLOW = PROJECT_ROOT / "docs" / "n8n" / "recipe-completed.json"
_CLIENT_SECONDS = 20.0
_NINE_MEGABYTES = 9 * 1024 * 1024
_SNAPPY = 2

only_rabbitmq = pytest.mark.sets("rabbitmq")
only_cloud = pytest.mark.sets("kafka-cloud")
only_kafka = pytest.mark.sets("kafka", "kafka-cloud", "todo")


@only_rabbitmq
@pytest.mark.timeout(300)
async def test_queues_are_durable_and_wait_for_their_service(own: BrokerMesh) -> None:
    """A queue outlives its service and the broker; what comes meanwhile is taken later."""
    queue_name = f"{own.service('probe').app_id}-{TOPIC}"
    later = [f"later-{number}" for number in range(10)]
    url = RabbitTap(own, TOPIC).secrets["rabbitmq-secrets"]["connection-string"]
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(TOPIC)
        # As it was declared, or the broker refuses: durable, not deleted when unused.
        await channel.declare_queue(queue_name, durable=True, auto_delete=False, arguments={"x-queue-type": "classic"})
        dead = own.kill("probe")
        for one in later:
            body = json.dumps(_cloud_event(one))
            await exchange.publish(aio_pika.Message(body.encode(), delivery_mode=2), routing_key="")
    await own.back("probe", dead)
    # RabbitMQ takes back after a minute what each consumer holds that Dapr lost (docs/components.md); two did in a row.
    await taken(own, set(later), within=240)


@only_rabbitmq
async def test_the_workflow_of_the_documents_gets_the_entity(own: BrokerMesh, audit: Any, user: str) -> None:
    """What docs/n8n ships, played by a plain AMQP client: its queue, its binding, its expression."""
    workflow = json.loads(_WORKFLOW.read_text())
    trigger, step = workflow["nodes"]
    options = trigger["parameters"]["options"]
    wanted = {one["name"]: one["value"] for one in step["parameters"]["assignments"]["assignments"]}
    url = RabbitTap(own, TOPIC).secrets["rabbitmq-secrets"]["connection-string"]
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        queue = await channel.declare_queue(trigger["parameters"]["queue"], durable=options["durable"])
        for binding in options["binding"]["bindings"]:
            await queue.bind(binding["exchange"], binding["routingKey"])
        event = event_pb2.Event(event_type=topics.RECIPE_COMPLETED, entity_type="execution", entity_id=f"run-{user}")
        await audit.PublishEvent(api.PublishEventRequest(event=event), metadata=own.metadata(user))

        async def arrived() -> Any:
            return await queue.get(fail=False, no_ack=True)

        message = await eventually(arrived, within=_CLIENT_SECONDS, what="the event in the workflow's queue")
        await queue.delete(if_empty=False)
    body = json.loads(message.body)
    assert _evaluated(wanted["entityId"], body) == f"run-{user}"
    assert _evaluated(wanted["userId"], body) == user


@only_rabbitmq
async def test_a_wrong_password_is_refused(own: BrokerMesh) -> None:
    """The broker is not open to whoever reaches its port."""
    with pytest.raises(aio_pika.exceptions.AMQPConnectionError):
        await aio_pika.connect(f"amqp://gaggle:wrong@{own.description.broker_address}/gaggle")
    with pytest.raises(aio_pika.exceptions.AMQPConnectionError):
        await aio_pika.connect(f"amqp://guest:guest@{own.description.broker_address}/")


@only_kafka
async def test_the_consumer_group_is_the_app_id(own: BrokerMesh) -> None:
    """Each service has a group of its own, so that every one sees every event and replicas share the work."""
    admin = confluent_kafka.admin.AdminClient(KafkaTap(own, TOPIC).configuration)
    wanted = {own.service(name).app_id for name in ("conversation", "audit", "probe")}

    async def all_of_them() -> bool:
        listed = await asyncio.to_thread(lambda: admin.list_consumer_groups().result(_CLIENT_SECONDS))
        return wanted <= {one.group_id for one in listed.valid}

    await eventually(all_of_them, within=_CLIENT_SECONDS, what=f"consumer groups {wanted}")


@only_cloud
async def test_nine_megabytes(own: BrokerMesh) -> None:
    """An event of nine megabytes is published, compressed by snappy, and delivered whole."""
    large = f"large-{id(own)}"
    async with tapped(own, TOPIC) as tap:
        await own.publish(TOPIC, json.dumps(_event(large) | {"padding": "0123456789abcdef" * (9 * 65536)}).encode())
        await taken(own, {large}, within=120)
        (message,) = await tap.read()
    assert len(message) > _NINE_MEGABYTES
    (told,) = [one for one in deliveries(own.deliveries_file) if (one["id"], one["topic"]) == (large, "taken")]
    assert int(told["bytes"]) > _NINE_MEGABYTES
    # https://kafka.apache.org/documentation/#recordbatch: attributes follow offset, length, epoch, magic and CRC.
    logs = [segment.read_bytes() for folder in topic_folders(own, TOPIC) for segment in folder.glob("*.log")]
    codecs = {int.from_bytes(log[21:23]) & 7 for log in logs if log}
    assert codecs == {_SNAPPY}


@only_cloud
@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"sasl.password": "wrong"}, id="wrong password"),
        pytest.param({"security.protocol": "PLAINTEXT"}, id="no TLS"),
        pytest.param({"ssl.ca.pem": None}, id="an unknown authority"),
        pytest.param({"sasl.mechanism": "PLAIN"}, id="another mechanism"),
    ],
)
async def test_the_cloud_listener_takes_no_other_client(own: BrokerMesh, changed: dict[str, Any]) -> None:
    """Without TLS by the right authority and SCRAM-SHA-256 with the right password there is no connection."""
    wanted: dict[str, Any] = KafkaTap(own, TOPIC).configuration | {"log_level": 0} | changed
    configuration = {name: value for name, value in wanted.items() if value is not None}
    admin = confluent_kafka.admin.AdminClient(configuration)
    with pytest.raises(confluent_kafka.KafkaException):
        await asyncio.to_thread(admin.list_topics, timeout=4)


def _cloud_event(event_id: str) -> dict[str, Any]:
    head = {"specversion": "1.0", "id": event_id, "type": "probe", "source": "test"}
    return head | {"datacontenttype": "application/json", "data": _event(event_id)}


def _event(event_id: str) -> dict[str, str]:
    return {"id": event_id, "do": "take"}


def _evaluated(expression: str, body: dict[str, Any]) -> Any:
    """What an expression of n8n of the form ={{ $json.a.b }} gives."""
    found = re.fullmatch(r"=\{\{ \$json\.([\w.]+) \}\}", expression)
    assert found is not None, expression
    value: Any = body
    for name in found[1].split("."):
        value = value[name]
    return value
