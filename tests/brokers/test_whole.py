"""All services on every set, as `gaggle up --components SET` starts them; on two of them with identities."""

import contextlib
import json
import ssl
from collections.abc import Iterator
from typing import Any

import aio_pika
import jsonschema
import pytest
from google.protobuf.json_format import MessageToDict

from cli.mesh.data import PROJECT_ROOT
from cli.mesh.runfile import RunFile
from gaggle.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from gaggle.recipe.v1 import execution_pb2
from services.runtime import topics
from tests.brokers.test_schemas import closed, json_schema
from tests.conditions import eventually
from tests.conversation.talking import Talker
from tests.mesh_fixture import Mesh, start_mesh
from tests.notification.notifying import Notified
from tests.recipe.running import Cook
from tests.recurrence.series import begin, done
from tests.reminder.reminding import Reminding, ahead
from tests.task.tasking import Tasker

pytestmark = [pytest.mark.mesh, pytest.mark.slow, pytest.mark.timeout(300)]

SERVICES = [app.service for app in RunFile.load(PROJECT_ROOT / "dapr.yaml").apps]
# `local` is what all other tests run on, plain; and with identities, those of tests/secure.
SETS = {"rabbitmq": True, "kafka": False, "kafka-cloud": False, "todo": True}
"""Set -> whether with identities (`--mtls`)."""

_WITHIN = 90.0


@pytest.fixture(scope="module", params=SETS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The mesh of a set."""
    mesh = start_mesh(tmp_path_factory.mktemp(request.param), components=request.param, mtls=SETS[request.param])
    yield mesh
    mesh.stop()


async def test_all_services_work_together(whole: Mesh, user: str) -> None:
    """A reminder comes due, a series goes on, a recipe is run, a text is found and a user is erased, on this set."""
    assert {name: state for name, (_, state) in whole.states().items() if state != "ready"} == {}
    assert set(whole.description.services) == set(SERVICES)
    async with contextlib.AsyncExitStack() as stack:
        to = {name: await stack.enter_async_context(whole.channel(name)) for name in SERVICES}
        metadata = whole.metadata(user)
        await Reminding(whole, to["reminder"], to["task"], user).task(ahead(5), 3, title="Take the cake out")
        tasker = Tasker(to["task"], metadata)
        first = await begin(tasker, "FREQ=DAILY", "2031-01-31T09:00+01:00")
        assert (await done(tasker, first.id)).series.occurrence == 2
        cook = Cook(to["recipe"], metadata)
        execution = await cook.ended(await cook.start("title: T\ndescription: D\nprompt: say marvellous\n"))
        assert execution.status == execution_pb2.EXECUTION_STATUS_COMPLETED, execution
        talker, notified = Talker(to["conversation"], metadata), Notified(whole, to["notification"], user)

        async def found() -> bool:
            return bool((await talker("SearchMessages", query="marvellous")).hits)

        await eventually(found, within=_WITHIN, what="the answer in the search")

        async def told() -> bool:
            return [one.title for one in await notified.all()] == ["Take the cake out"]

        await eventually(told, within=_WITHIN, what="the reminder in the inbox")
        await _as_described(whole, to["audit"], user)
        await talker("EraseUser")

        async def reported() -> bool:
            receipts = {one.service for one in (await talker("GetErasure")).receipts}
            return set(SERVICES) - {"auth", "recurrence", "sync"} <= receipts

        await eventually(reported, within=_WITHIN, what="receipts of all services")


async def _as_described(mesh: Mesh, channel: Any, user: str) -> None:
    """What the services told of it has the fields of its topics' schemas, spelt and typed so, and no others."""
    stub: Any = audit_service_pb2_grpc.AuditServiceStub(channel)
    request = audit_service_pb2.ListEventsRequest(page_size=1000)
    entries = (await stub.ListEvents(request, metadata=mesh.metadata(user))).entries
    assert {topics.TASK_EVENTS, topics.REMINDERS, topics.RECIPE_COMPLETED} <= {one.topic for one in entries}
    for one in entries:
        body = MessageToDict(one.event, preserving_proto_field_name=one.topic in topics.SNAKE_CASE_TOPICS)
        try:
            jsonschema.validate(body, closed(json_schema(one.topic)))
        except jsonschema.ValidationError as error:
            raise AssertionError(f"{one.topic}: {error.message} in {body}") from error


async def test_the_sweep_of_reminders_is_set_going(whole: Mesh) -> None:
    """The cron binding of the set, by whatever name, reaches the reminder service."""
    name = whole.description.settings.get("GAGGLE_SWEEP_BINDING", "reminder-sweep")
    assert (whole.description.components / f"{name}.yaml").exists()

    async def ticked() -> bool:
        return b"AppCallback/OnBindingEvent" in whole.data.log("reminder").read_bytes()

    await eventually(ticked, within=_WITHIN, what=f"a tick of {name}")


async def test_clients_reach_the_broker_as_the_set_says(whole: Mesh) -> None:
    """With identities RabbitMQ takes amqps alone, by the mesh's authority; Kafka is as its set has it."""
    secrets: dict[str, Any] = json.loads(whole.description.secrets_file.read_text())
    if whole.description.broker == "kafka":
        assert ("KAFKA_CA_CERT" in secrets["kafka-secrets"]) == (whole.description.component_set == "kafka-cloud")
        return
    broker = secrets["rabbitmq-secrets"]
    assert broker["connection-string"].startswith("amqps://")
    context = ssl.create_default_context(cadata=broker["ca-cert"])
    async with await aio_pika.connect(broker["connection-string"], ssl_context=context) as connection:
        assert not connection.is_closed
    plain = broker["connection-string"].replace("amqps://", "amqp://")
    for url, trusted in ((plain, None), (broker["connection-string"], ssl.create_default_context())):
        with pytest.raises((aio_pika.exceptions.AMQPError, OSError)):
            await aio_pika.connect(url, ssl_context=trusted, timeout=10)
