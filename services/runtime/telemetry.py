"""Metrics and traces of a process.

Traces follow W3C Trace Context. A call that nobody samples makes no span object: its ids are drawn and passed on, so
that logs can still be joined, and that costs a few microseconds. A sampled one is a real OpenTelemetry span. What the
sidecar does for a call (state, topics, invocation, workflows) the sidecar tells in spans of its own.
"""

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server

from services.runtime.zipkin import ZipkinExporter

_SAMPLED = 0x01
_TRACEPARENT_PARTS = 4
_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.25, 0.5, 1, 2.5, 10)
_LAG_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_EXPORT_MILLISECONDS = 1_000


@dataclass(slots=True)
class TraceContext:
    """Where in which trace we are: 32 and 16 hex digits, and the span object if this one is sampled."""

    trace_id: str
    span_id: str
    sampled: bool
    span: trace.Span | None = None
    tracing: "Tracing | None" = None
    """What makes the spans below this one."""

    @property
    def traceparent(self) -> str:
        """The header to send on."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


current_trace: ContextVar[TraceContext | None] = ContextVar("current_trace", default=None)


class Tracing:
    """Starts and ends spans."""

    def __init__(
        self,
        service: str,
        *,
        sample_ratio: float,
        otlp_endpoint: str = "",
        zipkin_endpoint: str = "",
        instance: str = "",
    ) -> None:
        """Without an endpoint ids are passed on and logged, and nothing is exported.

        `instance` tells replicas apart.
        """
        self._ratio = sample_ratio
        self._random = random.Random()  # noqa: S311 - trace ids are no secret
        self._provider: TracerProvider | None = None
        self._tracer: trace.Tracer | None = None
        exporters: list[SpanExporter] = []
        if otlp_endpoint:
            exporters.append(OTLPSpanExporter(endpoint=otlp_endpoint, insecure=otlp_endpoint.startswith("http://")))
        if zipkin_endpoint:
            exporters.append(ZipkinExporter(zipkin_endpoint))
        if exporters:
            named = {"service.name": service, "service.namespace": "gaggle", "service.instance.id": instance or service}
            self._provider = TracerProvider(resource=Resource.create(named), sampler=ALWAYS_ON)
            for exporter in exporters:
                processor = BatchSpanProcessor(exporter, schedule_delay_millis=_EXPORT_MILLISECONDS)
                self._provider.add_span_processor(processor)
            self._tracer = self._provider.get_tracer("gaggle")

    def start(self, name: str, traceparent: str | None, kind: trace.SpanKind = trace.SpanKind.SERVER) -> TraceContext:
        """Go on with the caller's trace, or start one."""
        parent = parse_traceparent(traceparent) if traceparent else None
        if parent is None:
            draw = self._random
            parent = TraceContext(f"{draw.getrandbits(128):032x}", "", draw.random() < self._ratio)
        if parent.sampled and self._tracer is not None:
            return self._span(name, parent, kind)
        return TraceContext(parent.trace_id, f"{self._random.getrandbits(64):016x}", parent.sampled, tracing=self)

    def _span(self, name: str, parent: TraceContext, kind: trace.SpanKind) -> TraceContext:
        assert self._tracer is not None
        context = None
        if parent.span_id:
            remote = trace.SpanContext(
                int(parent.trace_id, 16),
                int(parent.span_id, 16),
                is_remote=True,
                trace_flags=trace.TraceFlags(_SAMPLED),
            )
            context = trace.set_span_in_context(trace.NonRecordingSpan(remote))
        span = self._tracer.start_span(name, context=context, kind=kind)
        ids = span.get_span_context()
        return TraceContext(f"{ids.trace_id:032x}", f"{ids.span_id:016x}", sampled=True, span=span, tracing=self)

    def end(self, context: TraceContext, code: str) -> None:
        """Close the span, if there is one."""
        if context.span is not None:
            context.span.set_attribute("rpc.grpc.status_code", code)
            if code != "OK":
                context.span.set_status(trace.StatusCode.ERROR)
            context.span.end()

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def current_traceparent() -> str:
    """Give the header of the trace that we are in; empty: none."""
    here = current_trace.get()
    return here.traceparent if here is not None else ""


def parse_traceparent(header: str) -> TraceContext | None:
    """Read a W3C traceparent; None if it is none."""
    parts = header.split("-")
    if len(parts) < _TRACEPARENT_PARTS or len(parts[1]) != 32 or len(parts[2]) != 16:  # noqa: PLR2004 - W3C's widths
        return None
    try:
        flags, valid = int(parts[3], 16), int(parts[1], 16) and int(parts[2], 16)
    except ValueError:
        return None
    return TraceContext(parts[1], parts[2], bool(flags & _SAMPLED)) if valid else None


@contextlib.contextmanager
def part(
    name: str,
    *,
    traceparent: str = "",
    kind: trace.SpanKind = trace.SpanKind.INTERNAL,
    attributes: Mapping[str, str | int] | None = None,
    tracing: Tracing | None = None,
) -> Iterator[None]:
    """Do a part of the work in a span of its own, if its trace is sampled.

    With `traceparent` it is work that was put off by another call, and goes on in that call's trace; one that is none
    changes nothing. `tracing` makes the span where no call is being served. What it raises marks the span.
    """
    before = current_trace.get()
    parent = parse_traceparent(traceparent) if traceparent else None
    if parent is None or (before is not None and before.trace_id == parent.trace_id):
        parent = before
    if parent is None:
        yield
        return
    maker = tracing or (before.tracing if before is not None else None)
    here = parent
    if parent.sampled and maker is not None:
        here = maker.start(name, parent.traceparent, kind)
        if here.span is not None and attributes:
            here.span.set_attributes(attributes)
    current_trace.set(here)
    try:
        yield
    except BaseException as error:
        _end(here, parent, error)
        raise
    else:
        _end(here, parent, None)
    finally:
        # Set and not reset: a generator may be closed in another context than it began in.
        current_trace.set(before)


def _end(here: TraceContext, parent: TraceContext, error: BaseException | None) -> None:
    if here is parent or here.span is None:
        return
    if error is not None:
        here.span.set_status(trace.StatusCode.ERROR, type(error).__name__)
    here.span.end()


class Metrics:
    """The process's Prometheus metrics, in a registry of its own so that tests can have several."""

    def __init__(self) -> None:
        """Make the metrics; `serve` shows them."""
        self.registry = CollectorRegistry()
        self.calls = Histogram(
            "gaggle_call_seconds", "Calls served", ["method", "code"], buckets=_BUCKETS, registry=self.registry
        )
        self.in_flight = Gauge("gaggle_calls_in_flight", "Calls being served", registry=self.registry)
        self.state = Histogram(
            "gaggle_state_seconds", "State operations", ["operation", "code"], buckets=_BUCKETS, registry=self.registry
        )
        self.state_conflicts = Counter("gaggle_state_conflicts", "Commits that lost a race", registry=self.registry)
        self.published = Counter("gaggle_events_published", "Events published", ["topic"], registry=self.registry)
        self.publish_failures = Counter(
            "gaggle_publish_failures", "Publish attempts that failed", ["topic"], registry=self.registry
        )
        self.outbox_pending = Gauge("gaggle_outbox_pending", "Commits not yet published", registry=self.registry)
        self.received = Counter(
            "gaggle_events_received", "Events delivered to this app", ["topic", "outcome"], registry=self.registry
        )
        self.event_lag = Histogram(
            "gaggle_event_lag_seconds",
            "From an event's commit to its delivery to this app",
            ["topic"],
            buckets=_LAG_BUCKETS,
            registry=self.registry,
        )
        # CPU, memory and open files, where the platform tells (Linux).
        ProcessCollector(registry=self.registry)

    def serve(self, host: str, port: int) -> None:
        """Show them on http://host:port/metrics, from a thread of the client library."""
        start_http_server(port, addr=host, registry=self.registry)


def header(metadata: Iterable[tuple[str, str | bytes]], name: str) -> str | None:
    """Take one text value of a call's metadata."""
    for key, value in metadata:
        if key == name and isinstance(value, str):
            return value
    return None
