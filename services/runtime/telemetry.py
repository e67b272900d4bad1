"""Logs, metrics and traces of a process.

Traces follow W3C Trace Context. A call that nobody samples makes no span object: its ids are drawn and passed on, so
that logs can still be joined, and that costs a few microseconds. A sampled one is a real OpenTelemetry span.
"""

import logging
import random
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_SAMPLED = 0x01
_TRACEPARENT_PARTS = 4
_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.25, 0.5, 1, 2.5, 10)


@dataclass(slots=True)
class TraceContext:
    """Where in which trace we are: 32 and 16 hex digits, and the span object if this one is sampled."""

    trace_id: str
    span_id: str
    sampled: bool
    span: trace.Span | None = None

    @property
    def traceparent(self) -> str:
        """The header to send on."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


current_trace: ContextVar[TraceContext | None] = ContextVar("current_trace", default=None)


class Tracing:
    """Starts and ends server spans."""

    def __init__(self, service: str, *, sample_ratio: float, otlp_endpoint: str) -> None:
        """`otlp_endpoint` empty: ids are passed on and logged, nothing is exported."""
        self._ratio = sample_ratio
        self._random = random.Random()  # noqa: S311 - trace ids are no secret
        self._provider: TracerProvider | None = None
        self._tracer: trace.Tracer | None = None
        if otlp_endpoint:
            self._provider = TracerProvider(resource=Resource.create({"service.name": service}), sampler=ALWAYS_ON)
            exporter = OTLPSpanExporter(endpoint=otlp_endpoint, insecure=otlp_endpoint.startswith("http://"))
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
            self._tracer = self._provider.get_tracer("gaggle")

    def start(self, name: str, traceparent: str | None) -> TraceContext:
        """Go on with the caller's trace, or start one."""
        parent = parse_traceparent(traceparent) if traceparent else None
        if parent is None:
            draw = self._random
            parent = TraceContext(f"{draw.getrandbits(128):032x}", "", draw.random() < self._ratio)
        if parent.sampled and self._tracer is not None:
            return self._span(name, parent)
        return TraceContext(parent.trace_id, f"{self._random.getrandbits(64):016x}", parent.sampled)

    def _span(self, name: str, parent: TraceContext) -> TraceContext:
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
        span = self._tracer.start_span(name, context=context, kind=trace.SpanKind.SERVER)
        ids = span.get_span_context()
        return TraceContext(f"{ids.trace_id:032x}", f"{ids.span_id:016x}", sampled=True, span=span)

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


def join(traceparent: str) -> None:
    """Go on, in the current context, with the trace of work that was put off; a header that is none changes nothing."""
    parent = parse_traceparent(traceparent)
    if parent is not None:
        span_id = f"{random.getrandbits(64):016x}"
        current_trace.set(TraceContext(parent.trace_id, span_id, parent.sampled))


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

    def serve(self, host: str, port: int) -> None:
        """Show them on http://host:port/metrics, from a thread of the client library."""
        start_http_server(port, addr=host, registry=self.registry)


def configure_logging(level: str, **bound: str) -> None:
    """Send JSON lines to stdout, one an event; the standard library's loggers join in."""
    number = logging.getLevelNamesMapping()[level.upper()]

    def bind(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event.update(bound)
        return event

    structlog.configure(
        processors=[
            bind,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(stream=sys.stdout, level=max(number, logging.WARNING), format='{"event": "%(message)s"}')


def header(metadata: Iterable[tuple[str, str | bytes]], name: str) -> str | None:
    """Take one text value of a call's metadata."""
    for key, value in metadata:
        if key == name and isinstance(value, str):
            return value
    return None
