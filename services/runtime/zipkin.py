"""Spans for Zipkin, in its JSON format, version 2 (https://zipkin.io/zipkin-api/).

OpenTelemetry's own exporter is deprecated: new collectors take OTLP, and Zipkin is sent what Zipkin reads.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode

_TIMEOUT_SECONDS = 10.0
_KINDS = {
    SpanKind.SERVER: "SERVER",
    SpanKind.CLIENT: "CLIENT",
    SpanKind.PRODUCER: "PRODUCER",
    SpanKind.CONSUMER: "CONSUMER",
}


class ZipkinExporter(SpanExporter):
    """Posts spans; runs in the thread of a BatchSpanProcessor."""

    def __init__(self, endpoint: str, transport: httpx.BaseTransport | None = None) -> None:
        """`endpoint` is the whole address, for example `http://127.0.0.1:9411/api/v2/spans`."""
        self._endpoint = endpoint
        self._client = httpx.Client(timeout=_TIMEOUT_SECONDS, transport=transport)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them; what is refused is lost, as traces may be."""
        body = json.dumps([encoded(span) for span in spans]).encode()
        try:
            response = self._client.post(self._endpoint, content=body, headers={"content-type": "application/json"})
        except httpx.HTTPError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS if response.is_success else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Close the connection."""
        self._client.close()

    def force_flush(self, timeout_millis: int = 0) -> bool:  # noqa: ARG002 - the interface's
        """Say that nothing is kept here."""
        return True


def encoded(span: ReadableSpan) -> dict[str, Any]:
    """Give a span as Zipkin reads it."""
    context = span.get_span_context()
    assert context is not None
    started, ended = span.start_time or 0, span.end_time or 0
    resource: Mapping[str, Any] = span.resource.attributes
    tags = {name: str(value) for name, value in (span.attributes or {}).items()}
    if "service.instance.id" in resource:
        tags["service.instance.id"] = str(resource["service.instance.id"])
    if span.status.status_code is StatusCode.ERROR:
        # Zipkin takes the tag's presence for the fault, its value for the text.
        tags["error"] = span.status.description or tags.get("rpc.grpc.status_code", "ERROR")
    body: dict[str, Any] = {
        "traceId": f"{context.trace_id:032x}",
        "id": f"{context.span_id:016x}",
        "name": span.name,
        # Microseconds. Zipkin drops a duration of 0.
        "timestamp": started // 1000,
        "duration": max((ended - started) // 1000, 1),
        "localEndpoint": {"serviceName": str(resource.get("service.name", "unknown"))},
        "tags": tags,
    }
    if span.parent is not None:
        body["parentId"] = f"{span.parent.span_id:016x}"
    if span.kind in _KINDS:
        body["kind"] = _KINDS[span.kind]
    return body
