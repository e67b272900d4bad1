"""What the sidecar delivers."""

import asyncio
import json
import struct
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from dapr.proto.runtime.v1 import appcallback_pb2
from google.protobuf import empty_pb2

from services.runtime.callbacks import BulkOptions, Callbacks, Outcome, Subscription, TopicEvent
from services.runtime.errors import NotFoundError, UnavailableError
from services.runtime.jobs import JobEvent
from services.runtime.telemetry import Metrics
from tests.runtime.serving import APP_TOKEN, Served, refused

_CONTEXT = None


class Taker:
    """A handler that keeps what it is given and answers as told."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = outcomes
        self.taken: list[TopicEvent] = []

    async def take(self, events: Sequence[TopicEvent]) -> Sequence[Outcome]:
        """Take events."""
        self.taken += events
        return self.outcomes or [Outcome.SUCCESS] * len(events)


def _callbacks(taker: Taker, *, ready: bool = True) -> Callbacks:
    callbacks = Callbacks(
        "pubsub",
        [
            Subscription("t", taker.take, bulk=BulkOptions(7, 9), dead_letter_topic="dead"),
            Subscription("hints", taker.take, pubsub="fanout"),
        ],
        Metrics(),
    )
    callbacks.ready = ready
    return callbacks


async def test_subscriptions_are_told() -> None:
    """The sidecar is told each topic with its component, its dead-letter topic and how many it may bring at once."""
    response = await _callbacks(Taker()).ListTopicSubscriptions(empty_pb2.Empty(), _CONTEXT)
    one, other = response.subscriptions
    assert (one.pubsub_name, one.topic, one.dead_letter_topic) == ("pubsub", "t", "dead")
    assert one.bulk_subscribe.enabled
    assert (one.bulk_subscribe.max_messages_count, one.bulk_subscribe.max_await_duration_ms) == (7, 9)
    assert (other.pubsub_name, other.topic, other.bulk_subscribe.enabled) == ("fanout", "hints", False)


@pytest.mark.parametrize("outcome", list(Outcome), ids=lambda one: one.name)
async def test_an_event_and_its_outcome(outcome: Outcome) -> None:
    """An event reaches its handler whole, and the sidecar hears what became of it."""
    taker = Taker(outcome)
    request = appcallback_pb2.TopicEventRequest(
        id="e1", topic="t", pubsub_name="pubsub", type="com.x", data=b'{"a":1}', data_content_type="application/json"
    )
    request.extensions["traceparent"] = "00"
    response = await _callbacks(taker).OnTopicEvent(request, _CONTEXT)
    assert response.status == outcome.value
    assert taker.taken == [TopicEvent("e1", "t", "com.x", b'{"a":1}', "application/json", {"traceparent": "00"})]


_METHODS = [
    pytest.param("AppCallback/OnTopicEvent", appcallback_pb2.TopicEventRequest(topic="other"), id="topic"),
    pytest.param("AppCallbackAlpha/OnBulkTopicEventAlpha1", appcallback_pb2.TopicEventBulkRequest(), id="bulk"),
    pytest.param("AppCallback/OnBindingEvent", empty_pb2.Empty(), id="binding"),
    pytest.param("AppCallback/OnJobEvent", empty_pb2.Empty(), id="job"),
    pytest.param("AppCallbackAlpha/OnJobEventAlpha1", empty_pb2.Empty(), id="job, the older name"),
    pytest.param("AppCallback/OnInvoke", empty_pb2.Empty(), id="invocation"),
]


@pytest.mark.parametrize(("method", "request_"), _METHODS)
async def test_nothing_is_unimplemented(served: Served, method: str, request_: Any) -> None:
    """What nobody handles is UNAVAILABLE, which the sidecar repeats; UNIMPLEMENTED it would take for done."""
    call = served.channel.unary_unary(f"/dapr.proto.runtime.v1.{method}")
    told = await refused(call(request_.SerializeToString(), metadata=(("dapr-api-token", APP_TOKEN),), timeout=10))
    assert told.code == grpc.StatusCode.UNAVAILABLE


def test_every_callback_there_is_has_a_method() -> None:
    """No method of the sidecar's contract is missing here, whatever a later release of its stubs adds."""
    services = appcallback_pb2.DESCRIPTOR.services_by_name.values()
    missing = [method.full_name for one in services for method in one.methods if not hasattr(Callbacks, method.name)]
    assert missing == []


@pytest.mark.parametrize(
    ("pubsub", "topic", "ready"),
    [
        pytest.param("pubsub", "other", True, id="an unknown topic"),
        pytest.param("other", "t", True, id="an unknown component"),
        pytest.param("pubsub", "t", False, id="not ready"),
    ],
)
async def test_put_off(pubsub: str, topic: str, *, ready: bool) -> None:
    """An event that can't be handled yet is put off, and no handler sees it."""
    taker = Taker()
    callbacks = _callbacks(taker, ready=ready)
    with pytest.raises(UnavailableError):
        await callbacks.OnTopicEvent(appcallback_pb2.TopicEventRequest(topic=topic, pubsub_name=pubsub), _CONTEXT)
    with pytest.raises(UnavailableError):
        await callbacks.OnBulkTopicEvent(
            appcallback_pb2.TopicEventBulkRequest(topic=topic, pubsub_name=pubsub), _CONTEXT
        )
    assert taker.taken == []


def _entry(entry_id: str, **how: Any) -> Any:
    return appcallback_pb2.TopicEventBulkRequestEntry(entry_id=entry_id, **how)


def _cloud(**fields: Any) -> bytes:
    return json.dumps({"specversion": "1.0", "id": "e", "type": "com.x", **fields}).encode()


async def test_bulk() -> None:
    """Events that come together reach the handler in one call, and each entry gets its own outcome."""
    taker = Taker(Outcome.SUCCESS, Outcome.RETRY, Outcome.DROP)
    request = appcallback_pb2.TopicEventBulkRequest(
        topic="t", pubsub_name="pubsub", entries=[_entry(name, bytes=b"x") for name in "abc"]
    )
    response = await _callbacks(taker).OnBulkTopicEvent(request, _CONTEXT)
    told = [(one.entry_id, one.status) for one in response.statuses]
    assert told == [("a", Outcome.SUCCESS.value), ("b", Outcome.RETRY.value), ("c", Outcome.DROP.value)]
    assert [one.id for one in taker.taken] == ["a", "b", "c"]


_WIRE = [
    pytest.param(
        _entry("n", bytes=_cloud(data={"a": 1}, datacontenttype="application/json")),
        ("e", "com.x", {"a": 1}, "application/json", False),
        id="a CloudEvent in JSON",
    ),
    pytest.param(
        _entry("n", bytes=_cloud(data_base64="eyJhIjoyfQ==", datacontenttype="application/octet-stream")),
        ("e", "com.x", {"a": 2}, "application/octet-stream", False),
        id="a CloudEvent whose data is bytes",
    ),
    pytest.param(_entry("n", bytes=_cloud(data_base64="!")), ("e", "com.x", None, "", False), id="bytes that are none"),
    pytest.param(_entry("n", bytes=b'{"a": 1}'), ("n", "", {"a": 1}, "", True), id="raw JSON"),
    pytest.param(_entry("n", bytes=b"[" * 100_000), ("n", "", None, "", True), id="raw, nested too deeply"),
    pytest.param(_entry("n", bytes=b"\xff\x00"), ("n", "", None, "", True), id="raw bytes"),
    pytest.param(
        _entry(
            "n",
            cloud_event=appcallback_pb2.TopicEventCERequest(
                id="e", type="com.x", data=b'{"a": 3}', data_content_type="application/json"
            ),
        ),
        ("e", "com.x", {"a": 3}, "application/json", False),
        id="a CloudEvent unwrapped by the sidecar",
    ),
]


@pytest.mark.parametrize(("entry", "expected"), _WIRE)
async def test_forms_on_the_wire(entry: Any, expected: tuple[Any, ...]) -> None:
    """Whatever form an event comes in, its id, type and data are found; what is raw says so and is not lost."""
    taker = Taker()
    request = appcallback_pb2.TopicEventBulkRequest(topic="t", pubsub_name="pubsub", entries=[entry])
    await _callbacks(taker).OnBulkTopicEvent(request, _CONTEXT)
    (event,) = taker.taken
    event_id, kind, data, content_type, raw = expected
    assert (event.id, event.type, event.content_type, event.raw) == (event_id, kind, content_type, raw)
    if data is not None:
        assert json.loads(event.data) == data
    elif raw:
        assert event.data == entry.bytes


async def test_jobs_and_bindings_reach_their_handlers() -> None:
    """A job comes with its name and data, by either name of the method; a binding with its data, if it is listed."""
    jobs: list[JobEvent] = []
    ticks: list[bytes] = []

    async def take(event: JobEvent) -> None:
        jobs.append(event)

    async def tick(data: bytes) -> None:
        ticks.append(data)

    callbacks = Callbacks("pubsub", (), Metrics(), jobs=take, bindings={"cron": tick})
    listed = await callbacks.ListInputBindings(empty_pb2.Empty(), _CONTEXT)
    assert list(listed.bindings) == ["cron"]
    request = appcallback_pb2.JobEventRequest(name="j")
    request.data.Pack(empty_pb2.Empty())
    binding = appcallback_pb2.BindingEventRequest(name="cron", data=b"x")
    with pytest.raises(UnavailableError):
        await callbacks.OnJobEvent(request, _CONTEXT)
    with pytest.raises(UnavailableError):
        await callbacks.OnBindingEvent(binding, _CONTEXT)
    callbacks.ready = True
    await callbacks.OnJobEvent(request, _CONTEXT)
    await callbacks.OnJobEventAlpha1(request, _CONTEXT)
    await callbacks.OnBindingEvent(binding, _CONTEXT)
    with pytest.raises(UnavailableError):
        await callbacks.OnBindingEvent(appcallback_pb2.BindingEventRequest(name="other"), _CONTEXT)
    assert [(one.name, one.data.Is(empty_pb2.Empty.DESCRIPTOR)) for one in jobs] == [("j", True), ("j", True)]
    assert ticks == [b"x"]


async def test_a_job_that_fails_is_delivered_again() -> None:
    """Whatever the handler says, the sidecar hears UNAVAILABLE: it takes NOT_FOUND for success, and the job is gone."""

    async def take(_event: JobEvent) -> None:
        raise NotFoundError("task", "t")

    callbacks = Callbacks("pubsub", (), Metrics(), jobs=take)
    callbacks.ready = True
    with pytest.raises(UnavailableError):
        await callbacks.OnJobEvent(appcallback_pb2.JobEventRequest(name="j"), _CONTEXT)


async def test_topics_have_other_names_in_the_broker() -> None:
    """The sidecar hears the broker's names; handlers see the product's own, of a dead letter's origin, too."""
    taker = Taker()
    names = {"task-events": "todo.tasks.events", "dead": "todo.dead"}
    subscriptions = [
        Subscription("task-events", taker.take, dead_letter_topic="dead"),
        Subscription("dead", taker.take, raw=True),
    ]
    callbacks = Callbacks("pubsub", subscriptions, Metrics(), topic_names=names)
    callbacks.ready = True

    told = (await callbacks.ListTopicSubscriptions(empty_pb2.Empty(), _CONTEXT)).subscriptions
    assert [(one.topic, one.dead_letter_topic) for one in told] == [
        ("todo.tasks.events", "todo.dead"),
        ("todo.dead", ""),
    ]

    event = appcallback_pb2.TopicEventRequest(id="1", topic="todo.tasks.events", pubsub_name="pubsub", data=b"{}")
    letter = {"specversion": "1.0", "id": "2", "topic": "todo.tasks.events", "data": {}}
    dead = appcallback_pb2.TopicEventRequest(
        id="3", topic="todo.dead", pubsub_name="pubsub", data=json.dumps(letter).encode()
    )
    for request in (event, dead):
        await callbacks.OnTopicEvent(request, _CONTEXT)
    assert [(one.id, one.topic) for one in taker.taken] == [("1", "task-events"), ("2", "dead")]
    assert taker.taken[1].extensions["topic"] == "task-events"


async def test_a_bulk_delivery_may_bring_a_trace_for_each_event(served: Served) -> None:
    """daprd adds two headers for each of 200 events, and sends no delivery whose headers the server does not allow."""
    wanted = 200 * (len("traceparent") + 55 + 32 + len("grpc-trace-bin") + 40 + 32)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    # RFC 9113, 3.4: the client's preface, with empty SETTINGS.
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
    try:
        async with asyncio.timeout(10):
            head = await reader.readexactly(9)
            settings = await reader.readexactly(int.from_bytes(head[:3]))
    finally:
        writer.close()
        await writer.wait_closed()
    told = dict(struct.iter_unpack(">HI", settings))
    assert head[3] == 4
    # SETTINGS_MAX_HEADER_LIST_SIZE
    assert told[6] >= wanted
