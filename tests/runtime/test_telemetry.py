"""Spans as collectors get them, work that goes on in another call's trace, and the level of the log."""

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from services.runtime.dapr import pubsub_pb2
from services.runtime.logs import configure_logging
from services.runtime.sidecar import Sidecar
from services.runtime.telemetry import Tracing, current_trace, current_traceparent, parse_traceparent, part
from services.runtime.zipkin import ZipkinExporter
from tests.conditions import eventually
from tests.observability.collector import collecting

_TRACE = "0af7651916cd43dd8448eb211c80319c"
_SPAN = "b7ad6b7169203331"
_SAMPLED = f"00-{_TRACE}-{_SPAN}-01"
_UNSAMPLED = f"00-{_TRACE}-{_SPAN}-00"


@pytest.fixture(autouse=True)
def _apart() -> Iterator[None]:
    """No test leaves its trace or its way of logging to the next."""
    before = structlog.get_config()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    current_trace.set(None)
    structlog.configure(**before)
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level = handlers, level


async def test_a_collector_gets_spans_by_otlp() -> None:
    """A sampled call reaches any OTLP collector, as the child of its caller and the parent of its parts."""
    with collecting() as (collector, endpoint):
        tracing = Tracing("task", sample_ratio=0, otlp_endpoint=endpoint)
        call = tracing.start("/gaggle.task.v1.TaskService/GetTask", _SAMPLED)
        current_trace.set(call)
        with part("a tool", kind=SpanKind.CLIENT, attributes={"tool": "count"}):
            pass
        tracing.end(call, "NOT_FOUND")
        await asyncio.to_thread(tracing.close)

        async def all_there() -> bool:
            return len(collector.spans) == 2

        await eventually(all_there, within=10, what="two spans")
    spans = {span.name: span for service, span in collector.spans if service == "task"}
    served, tool = spans["/gaggle.task.v1.TaskService/GetTask"], spans["a tool"]
    assert (served.trace_id.hex(), served.parent_span_id.hex()) == (_TRACE, _SPAN)
    assert (tool.trace_id.hex(), tool.parent_span_id) == (_TRACE, served.span_id)
    assert {one.key: one.value.string_value for one in served.attributes}["rpc.grpc.status_code"] == "NOT_FOUND"


@pytest.mark.parametrize(("ratio", "sampled"), [(0.0, False), (1.0, True)])
def test_the_ratio_decides_for_calls_that_bring_no_decision(ratio: float, sampled: bool) -> None:  # noqa: FBT001
    """Sampling is a setting; a caller's own decision counts more, in both directions."""
    tracing = Tracing("task", sample_ratio=ratio)

    assert tracing.start("call", None).sampled is sampled
    assert tracing.start("call", _SAMPLED).sampled
    assert not tracing.start("call", _UNSAMPLED).sampled
    assert tracing.start("call", _UNSAMPLED).trace_id == _TRACE


def test_zipkin_gets_what_it_reads() -> None:
    """A span in Zipkin's JSON: ids, microseconds, service, kind, tags, and `error` on one that failed."""
    posted: list[Any] = []

    def take(request: httpx.Request) -> httpx.Response:
        posted.append((str(request.url), json.loads(request.content)))
        return httpx.Response(202)

    provider = TracerProvider(resource=Resource.create({"service.name": "task"}))
    exporter = ZipkinExporter("http://zipkin/api/v2/spans", httpx.MockTransport(take))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("outer", kind=SpanKind.SERVER) as span:
        with tracer.start_as_current_span("inner", attributes={"n": 1}):
            pass
        span.set_status(StatusCode.ERROR, "no")
    provider.shutdown()

    ((url, (inner,)), (_, (outer,))) = posted
    assert url == "http://zipkin/api/v2/spans"
    assert (inner["name"], inner["parentId"], inner["traceId"]) == ("inner", outer["id"], outer["traceId"])
    assert inner["tags"]["n"] == "1"
    assert "kind" not in inner
    assert "error" not in inner["tags"]
    assert (outer["kind"], outer["localEndpoint"]) == ("SERVER", {"serviceName": "task"})
    assert "parentId" not in outer
    assert outer["tags"]["error"] == "no"
    assert outer["duration"] >= inner["duration"] >= 1
    assert len(str(outer["timestamp"])) == 16


def test_a_zipkin_that_is_away_costs_spans_and_nothing_else() -> None:
    """Traces may be lost; calls go on."""

    def refuse(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("away")

    for transport in (httpx.MockTransport(refuse), httpx.MockTransport(lambda _request: httpx.Response(500))):
        exporter = ZipkinExporter("http://zipkin/api/v2/spans", transport)
        assert exporter.export([]).name == "FAILURE"


def test_work_that_was_put_off_goes_on_in_its_own_trace() -> None:
    """A part with a traceparent is in that trace, whatever call it runs in, and leaves that call's trace as it was."""
    tracing = Tracing("task", sample_ratio=0)
    call = tracing.start("job", None)
    current_trace.set(call)

    with part("put off", traceparent=_SAMPLED):
        inside = parse_traceparent(current_traceparent())
    assert inside is not None
    assert (inside.trace_id, inside.sampled) == (_TRACE, True)
    assert current_trace.get() is call

    with part("put off", traceparent="nonsense"):
        assert current_trace.get() is call


def test_a_part_without_any_trace_is_just_done() -> None:
    """Background work that nobody asked for belongs to no trace."""
    with part("sweep"):
        assert current_traceparent() == ""


async def test_each_event_goes_on_in_its_own_trace_published_together_or_alone() -> None:
    """Events of several traces that share one call to the sidecar are told apart by what each brings along."""
    asked: list[Any] = []
    others_came = asyncio.Event()

    class Stub:
        async def PublishEvent(self, request: Any, **call: Any) -> None:  # noqa: N802 - gRPC's names
            asked.append((request, dict(call["metadata"])))
            await others_came.wait()

        async def BulkPublishEvent(self, request: Any, **call: Any) -> Any:  # noqa: N802
            asked.append((request, dict(call["metadata"])))
            others_came.set()
            return pubsub_pb2.BulkPublishResponse()

    sidecar = Sidecar("127.0.0.1:1")
    sidecar.stub = Stub()
    second = _SAMPLED.replace("0af7", "1bf8")
    first = asyncio.create_task(sidecar.publish("pubsub", "t", b"{}", traceparent=_UNSAMPLED))
    rest = [
        asyncio.create_task(sidecar.publish("pubsub", "t", b"{}", {"partitionKey": "k"}, traceparent=one))
        for one in (_SAMPLED, second, "")
    ]
    await asyncio.gather(first, *rest)
    await sidecar.close()

    (_, alone), (together, _) = asked
    assert alone["traceparent"] == _UNSAMPLED
    assert [dict(one.metadata) for one in together.entries] == [
        {"partitionKey": "k", "cloudevent.traceparent": _SAMPLED},
        {"partitionKey": "k", "cloudevent.traceparent": second},
        {"partitionKey": "k"},
    ]


def test_lines_are_json_with_their_trace(capsys: pytest.CaptureFixture[str]) -> None:
    """Our lines and those of libraries are one JSON object each, stack traces and quotes included."""
    configure_logging("info", service="task")
    current_trace.set(Tracing("task", sample_ratio=0).start("call", _UNSAMPLED))
    log = structlog.get_logger()
    log.info("done", count=1)
    try:
        raise ValueError('a "quoted"\nword')  # noqa: TRY301 - to have a stack
    except ValueError:
        log.exception("failed")
        logging.getLogger("library").exception('it said "%s"', "no")

    ours, failed, theirs = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (ours["event"], ours["count"], ours["level"], ours["service"]) == ("done", 1, "info", "task")
    assert ours["trace_id"] == failed["trace_id"] == theirs["trace_id"] == _TRACE
    assert 'a "quoted"\nword' in failed["exception"]
    assert (theirs["event"], theirs["logger"], theirs["level"]) == ('it said "no"', "library", "error")
    assert "ValueError" in theirs["exception"]


def test_the_level_counts_from_the_next_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Loggers that have been used follow the level at once, in both directions; libraries join in at debug alone."""
    level = configure_logging("info", service="task")
    log, library = structlog.get_logger(), logging.getLogger("library")

    def said() -> list[str]:
        for method in ("debug", "info", "warning", "error"):
            getattr(log, method)(method)
        library.info("library")
        return [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]

    assert said() == ["info", "warning", "error"]
    level.set("debug")
    assert said() == ["debug", "info", "warning", "error", "library"]
    level.set("error")
    assert said() == ["error"]
    assert (level.name, level.configured) == ("error", "info")
