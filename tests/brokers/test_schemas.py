"""The schemas in schemas/ and the events that are really published."""

import json
from typing import Any

import fastavro
import jsonschema
import pytest

from cli.mesh.data import PROJECT_ROOT
from schemas.__main__ import read_contracts
from schemas.topics import PAYLOADS
from services.runtime import topics
from tests.brokers.conftest import BrokerMesh
from tests.brokers.taps import tapped
from tests.conversation.talking import Talker

_FOLDER = PROJECT_ROOT / "schemas"


def json_schema(topic: str) -> Any:
    """The JSON Schema of a topic's events."""
    return json.loads((_FOLDER / "json" / f"{topic}.schema.json").read_text())


def test_every_event_message_of_the_contracts_is_a_topics() -> None:
    """A typed payload that comes with a new service is described, too."""
    contracts = read_contracts()
    told = {name for name in contracts.messages if name.endswith("Event") and contracts.files[name] == "event.proto"}
    assert told - {"gaggle.common.v1.Event"} == {name for names in PAYLOADS.values() for name in names}


@pytest.mark.parametrize("topic", topics.ALL_TOPICS)
def test_schemas_are_valid(topic: str) -> None:
    """Any validator and any Avro library reads them."""
    jsonschema.Draft202012Validator.check_schema(json_schema(topic))
    avro = _FOLDER / "avro" / f"{topic}.avsc"
    assert avro.exists() == (topic in PAYLOADS)
    if avro.exists():
        fastavro.parse_schema(json.loads(avro.read_text()))


@pytest.mark.mesh
@pytest.mark.sets("local")
async def test_published_events_are_as_described(own: BrokerMesh, user: str) -> None:
    """What lies in the broker has the fields of the schema, spelt and typed so, and none that it does not name."""
    wanted = (topics.CONVERSATION_CREATED, topics.CONVERSATION_UPDATED, topics.MESSAGE_RECEIVED)
    async with (
        own.channel("conversation") as channel,
        tapped(own, wanted[0]) as created,
        tapped(own, wanted[1]) as updated,
        tapped(own, wanted[2]) as received,
    ):
        talker = Talker(channel, own.metadata(user))
        conversation_id = await talker.create("one", "two", title="a title", metadata={"k": "v"})
        await talker("UpdateConversation", conversation_id=conversation_id, title="another")
        await talker("ForkConversation", conversation_id=conversation_id)
        for topic, tap in zip(wanted, (created, updated, received), strict=True):
            events: list[Any] = []
            while not events:
                events = [one["data"] for one in await tap.events() if one["data"]["userId"] == user]
            schema = json_schema(topic)
            for event in events:
                jsonschema.validate(event, closed(schema), format_checker=jsonschema.FormatChecker())
                avro = fastavro.parse_schema(json.loads((_FOLDER / "avro" / f"{topic}.avsc").read_text()))
                assert fastavro.validate(event, avro, raise_errors=True, strict=False)


def closed(schema: Any) -> Any:
    """The same schema, which takes no field that it does not name."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(one) for name, one in schema.items()}
    return inner | {"additionalProperties": False} if "properties" in schema else inner
