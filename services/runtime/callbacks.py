"""What the sidecar calls: topics, bindings, jobs and its health check.

Only the own sidecar gets this far (see `access.CALLBACK`). A handler that is missing answers UNAVAILABLE and never
UNIMPLEMENTED: daprd takes the latter for success and the event would be gone.
"""

import base64
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from types import MappingProxyType
from typing import Any

import structlog
from google.protobuf import json_format

from services.runtime.dapr import appcallback_pb2
from services.runtime.errors import GaggleError, UnavailableError
from services.runtime.jobs import JobEvent, JobHandler
from services.runtime.telemetry import Metrics

_TIMESTAMP = b'"timestamp":"'

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TopicEvent:
    """A CloudEvent as the sidecar delivers it."""

    id: str
    topic: str
    type: str
    data: bytes
    content_type: str
    extensions: dict[str, Any] = field(default_factory=dict)
    raw: bool = False
    """It was no CloudEvent: `data` is the whole message."""


class Outcome(Enum):
    """What becomes of a delivered event."""

    SUCCESS = appcallback_pb2.TopicEventResponse.SUCCESS
    RETRY = appcallback_pb2.TopicEventResponse.RETRY
    DROP = appcallback_pb2.TopicEventResponse.DROP
    """To the dead-letter topic."""


TopicHandler = Callable[[Sequence[TopicEvent]], Awaitable[Sequence[Outcome]]]
BindingHandler = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """How many events are delivered together at most, and how long the first of them waits for the others."""

    max_messages: int = 100
    max_wait_ms: int = 10


@dataclass(frozen=True, slots=True)
class Subscription:
    """A topic and the function that takes its events; it gives one outcome for each, in their order."""

    topic: str
    handler: TopicHandler
    pubsub: str = ""
    """The component; empty: the product's own."""

    bulk: BulkOptions | None = None
    dead_letter_topic: str = ""

    raw: bool = False
    """Take messages as they lie in the broker, CloudEvents or not; without it daprd drops what is none."""


class Callbacks:
    """Serves AppCallback, AppCallbackAlpha and AppCallbackHealthCheck."""

    def __init__(
        self,
        pubsub: str,
        subscriptions: Sequence[Subscription],
        metrics: Metrics,
        *,
        jobs: JobHandler | None = None,
        bindings: Mapping[str, BindingHandler] | None = None,
        topic_names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`pubsub` stands where a subscription names none; `bindings` are input components by name.

        `topic_names` are those in the broker that differ.
        """
        self._pubsub = pubsub
        self._jobs = jobs
        self._bindings = dict(bindings or {})
        self._named = topic_names
        self._topics = {name: topic for topic, name in topic_names.items()}
        self._subscriptions = {(one.pubsub or pubsub, one.topic): one for one in subscriptions}
        self._metrics = metrics
        self.ready = False
        """Events are put off until the service has what it needs."""

    async def ListTopicSubscriptions(self, _request: Any, _context: Any) -> Any:  # noqa: N802 - gRPC's name
        """Asked once, when the sidecar starts."""
        subscriptions = []
        for (pubsub, topic), one in self._subscriptions.items():
            entry = appcallback_pb2.TopicSubscription(
                pubsub_name=pubsub,
                topic=self._named.get(topic, topic),
                dead_letter_topic=self._named.get(one.dead_letter_topic, one.dead_letter_topic),
            )
            if one.raw:
                entry.metadata["rawPayload"] = "true"
            if one.bulk is not None:
                entry.bulk_subscribe.enabled = True
                entry.bulk_subscribe.max_messages_count = one.bulk.max_messages
                entry.bulk_subscribe.max_await_duration_ms = one.bulk.max_wait_ms
            subscriptions.append(entry)
        return appcallback_pb2.ListTopicSubscriptionsResponse(subscriptions=subscriptions)

    async def ListInputBindings(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Asked once, when the sidecar starts."""
        return appcallback_pb2.ListInputBindingsResponse(bindings=self._bindings)

    async def OnTopicEvent(self, request: Any, _context: Any) -> Any:  # noqa: N802
        """One event."""
        topic = self._topics.get(request.topic, request.topic)
        event = TopicEvent(
            id=request.id,
            topic=topic,
            type=request.type,
            data=request.data,
            content_type=request.data_content_type,
            extensions=json_format.MessageToDict(request.extensions),
        )
        subscription = self._subscriptions.get((request.pubsub_name, topic))
        if subscription is not None and subscription.raw:
            event = self._unwrapped(request.id, topic, request.data, request.data_content_type)
        (outcome,) = await self._handle(request.pubsub_name, topic, [event])
        return appcallback_pb2.TopicEventResponse(status=outcome.value)

    async def OnBulkTopicEvent(self, request: Any, _context: Any) -> Any:  # noqa: N802
        """Several events of one topic."""
        topic = self._topics.get(request.topic, request.topic)
        events = [self._bulk_event(entry, topic) for entry in request.entries]
        outcomes = await self._handle(request.pubsub_name, topic, events)
        statuses = [
            appcallback_pb2.TopicEventBulkResponseEntry(entry_id=entry.entry_id, status=outcome.value)
            for entry, outcome in zip(request.entries, outcomes, strict=True)
        ]
        return appcallback_pb2.TopicEventBulkResponse(statuses=statuses)

    OnBulkTopicEventAlpha1 = OnBulkTopicEvent

    async def HealthCheck(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Tell the sidecar that this process is there; whether it is ready says grpc.health.v1."""
        return appcallback_pb2.HealthCheckResponse()

    async def OnInvoke(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Refuse invocation by Dapr's own envelope: callers use the contracts."""
        raise UnavailableError("invocation by envelope; call the gRPC method with metadata dapr-app-id")

    async def OnBindingEvent(self, request: Any, _context: Any) -> Any:  # noqa: N802
        """What an input binding brings."""
        handler = self._bindings.get(request.name)
        if handler is None or not self.ready:
            raise UnavailableError(f"handler of binding {request.name}")
        await handler(request.data)
        return appcallback_pb2.BindingEventResponse()

    async def OnJobEvent(self, request: Any, _context: Any) -> Any:  # noqa: N802
        """A job whose time has come."""
        if self._jobs is None or not self.ready:
            raise UnavailableError("handler of jobs")
        try:
            await self._jobs(JobEvent(request.name, request.data))
        except GaggleError as error:
            # daprd takes NOT_FOUND for success and the job would be gone, so all that fails looks alike to it.
            _log.warning("job_put_off", job=request.name, error=str(error))
            raise UnavailableError(f"job {request.name}") from error
        return appcallback_pb2.JobEventResponse()

    OnJobEventAlpha1 = OnJobEvent

    async def _handle(self, pubsub: str, topic: str, events: Sequence[TopicEvent]) -> Sequence[Outcome]:
        subscription = self._subscriptions.get((pubsub, topic))
        if subscription is None or not self.ready:
            raise UnavailableError(f"handler of {topic}")
        lag = self._metrics.event_lag.labels(topic)
        now = time.time()
        for event in events:
            if (committed := _commit_time(event.data)) is not None:
                lag.observe(max(now - committed, 0.0))
        _log.debug("delivered", topic=topic, events=len(events))
        outcomes = await subscription.handler(events)
        for outcome in outcomes:
            self._metrics.received.labels(topic, outcome.name).inc()
        return outcomes

    def _bulk_event(self, entry: Any, topic: str) -> TopicEvent:
        if entry.WhichOneof("event") == "cloud_event":
            cloud = entry.cloud_event
            return TopicEvent(
                id=cloud.id,
                topic=topic,
                type=cloud.type,
                data=cloud.data,
                content_type=cloud.data_content_type,
                extensions=json_format.MessageToDict(cloud.extensions),
            )
        return self._unwrapped(entry.entry_id, topic, entry.bytes, entry.content_type)

    def _unwrapped(self, entry_id: str, topic: str, message: bytes, content_type: str) -> TopicEvent:
        """Read a message that the sidecar did not unwrap: a CloudEvent in JSON, or anything at all."""
        try:
            body = json.loads(message)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict) or "specversion" not in body:
            return TopicEvent(entry_id, topic, "", message, content_type, raw=True)
        # A dead letter tells here where it came from, by the broker's name.
        if isinstance(came_by := body.get("topic"), str):
            body["topic"] = self._topics.get(came_by, came_by)
        return TopicEvent(
            id=str(body.get("id", entry_id)),
            topic=topic,
            type=str(body.get("type", "")),
            data=_data(body),
            content_type=str(body.get("datacontenttype", "")),
            extensions=body,
        )


def _commit_time(data: bytes) -> float | None:
    """Read when an event of the mesh was committed, in seconds of Unix time, without parsing all of it.

    daprd hands JSON on with its members in alphabetical order, so that the last `timestamp` is the event's own.
    """
    start = data.rfind(_TIMESTAMP) + len(_TIMESTAMP)
    if start < len(_TIMESTAMP):
        return None
    try:
        return datetime.fromisoformat(data[start : data.index(b'"', start)].decode()).timestamp()
    except ValueError:
        return None


def _data(body: dict[str, Any]) -> bytes:
    if "data_base64" in body:
        with contextlib.suppress(ValueError, TypeError):
            return base64.b64decode(body["data_base64"], validate=True)
    return json.dumps(body.get("data")).encode()
