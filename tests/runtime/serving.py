"""A small service behind the real pipeline: each of the four kinds of call, and everything that can go wrong in one."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, wrappers_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from joserfc.jwk import KeySet, OKPKey

from gaggle.common.v1 import error_reason_pb2
from services.runtime import errors
from services.runtime.access import ADMIN, PUBLIC, Access, only, user_or
from services.runtime.call import remaining_seconds
from services.runtime.callbacks import Callbacks
from services.runtime.identity import TokenSigner, Verifier, current_caller
from services.runtime.pipeline import Pipeline
from services.runtime.service import Exposed, make_server
from services.runtime.telemetry import Metrics, Tracing, current_trace
from tests.runtime.memory import settled

SERVICE = "gaggle.test.v1.ProbeService"
APP_TOKEN = "the app token"
SECRET = "a text that no caller may see"
# Name, request a stream, response a stream.
METHODS = (
    ("Unary", False, False),
    ("ServerStream", False, True),
    ("ClientStream", True, False),
    ("Both", True, True),
    ("Admin", False, False),
    ("Open", False, False),
    ("ForUserOrAgent", False, False),
    ("ForAgent", False, False),
)
KINDS = tuple(name for name, _, _ in METHODS[:4])
PROBE_ACCESS: dict[str, Access] = {
    "Admin": ADMIN,
    "Open": PUBLIC,
    "ForUserOrAgent": user_or("agent"),
    "ForAgent": only("agent"),
}
_STRING = wrappers_pb2.StringValue


def _descriptor() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="gaggle/test/v1/probe.proto",
        package="gaggle.test.v1",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    service = file.service.add(name="ProbeService")
    for name, requests, responses in METHODS:
        service.method.add(
            name=name,
            input_type=".google.protobuf.StringValue",
            output_type=".google.protobuf.StringValue",
            client_streaming=requests,
            server_streaming=responses,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return pool.FindServiceByName(SERVICE)


FAULTS: dict[str, Callable[[], Exception]] = {
    "invalid": lambda: errors.InvalidArgumentError({"title": "must be set", "page_size": "must not be negative"}),
    "too large": lambda: errors.TooLargeError("message in bytes", size=9, limit=8),
    "unauthenticated": lambda: errors.UnauthenticatedError("who are you?"),
    "denied": lambda: errors.PermissionDeniedError("not you", metadata={"role": "admin"}),
    "not found": lambda: errors.NotFoundError("task", "t1"),
    "taken": lambda: errors.AlreadyExistsError("task", "t1"),
    "conflict": lambda: errors.ConflictError(
        "stale", reason=error_reason_pb2.ERROR_REASON_STALE_ETAG, metadata={"etag": "7", "current": "9"}
    ),
    "wrong state": lambda: errors.FailedPreconditionError("done", metadata={"state": "done"}),
    "away": lambda: errors.UnavailableError("statestore", retry_after_seconds=2.5),
    "no time": lambda: errors.DeadlineError("statestore"),
    "lost": lambda: errors.StateMissingError("secret-key"),
    "timeout": lambda: TimeoutError(SECRET),
    "unforeseen": lambda: RuntimeError(SECRET),
    "many": lambda: errors.InvalidArgumentError({f"messages[{n}].role": "must be set" for n in range(2000)}),
    "long": lambda: errors.NotFoundError("task", "x" * 100_000),
}


class Probe:
    """Answers what it sees; `raise <fault>` raises, `wait` waits to be cancelled, `count N` streams N answers."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.hold: asyncio.Event | None = None

    async def _do(self, text: str) -> Any:
        if text.startswith("raise "):
            fault = FAULTS[text.removeprefix("raise ")]
            raise fault()
        if text == "wait":
            self.waiting.set()
            try:
                await (self.hold or asyncio.Event()).wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if text == "remaining":
            return _STRING(value=str(remaining_seconds(100)))
        if text == "bytes":
            return _STRING(value="as it lies").SerializeToString()
        if text == "trace":
            trace = current_trace.get()
            return _STRING(value=trace.traceparent if trace else "")
        if text == "caller":
            caller = current_caller()
            return _STRING(value=json.dumps([caller.user_id, caller.service, sorted(caller.roles)]))
        return _STRING(value=text)

    async def Unary(self, request: Any, _context: Any) -> Any:  # noqa: N802
        return await self._do(request.value)

    Admin = Open = ForUserOrAgent = ForAgent = Unary

    async def ServerStream(self, request: Any, _context: Any) -> AsyncIterator[Any]:  # noqa: N802
        if request.value.startswith("count "):
            for n in range(int(request.value.removeprefix("count "))):
                yield _STRING(value=str(n))
            return
        yield await self._do(request.value)

    async def ClientStream(self, requests: AsyncIterator[Any], _context: Any) -> Any:  # noqa: N802
        answers = [await self._do(request.value) async for request in requests]
        return answers[-1]

    async def Both(self, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for request in requests:
            yield await self._do(request.value)


class Keys:
    """The keys of a mesh, and one that is not of it."""

    def __init__(self) -> None:
        names = ("issuer", "agent", "task")
        self.keys = {name: OKPKey.generate_key("Ed25519", {"kid": name}) for name in names}
        self.stranger = OKPKey.generate_key("Ed25519", {"kid": "issuer"})

    async def jwks(self) -> str:
        """The public halves."""
        return json.dumps(KeySet(list(self.keys.values())).as_dict(private=False))

    def signer(self, name: str = "issuer", *, issuer: str = "gaggle", audience: str = "gaggle") -> TokenSigner:
        """Sign with one of the mesh's keys; `stranger` with none of them."""
        key = self.stranger if name == "stranger" else self.keys[name]
        return TokenSigner(json.dumps(key.as_dict(private=True)), issuer=issuer, audience=audience)


@dataclass
class Served:
    """A running server and what belongs to it."""

    channel: Any
    pipeline: Pipeline
    metrics: Metrics
    probe: Probe
    keys: Keys
    callbacks: Callbacks
    port: int

    def user(self, *roles: str) -> tuple[tuple[str, str], ...]:
        """Metadata of a user's call."""
        return bearer(self.keys.signer().sign("ann", ttl_seconds=60, roles=list(roles)))

    def service(self, name: str, **claims: object) -> tuple[tuple[str, str], ...]:
        """Metadata of a service's call for a user."""
        return bearer(self.keys.signer(name).sign("ann", ttl_seconds=60, service=name, **claims))

    def calls(self, method: str) -> dict[str, float]:
        """How many calls of a method the metrics count, by code."""
        path = f"/{SERVICE}/{method}"
        return {
            sample.labels["code"]: sample.value
            for metric in self.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == "gaggle_call_seconds_count" and sample.labels["method"] == path and sample.value
        }

    async def counted(self, method: str, expected: dict[str, float]) -> None:
        """Wait for the metrics to count so many calls: a caller has its answer a moment before."""
        with contextlib.suppress(AssertionError):
            await settled(lambda: self.calls(method) == expected)
        assert self.calls(method) == expected

    async def send(
        self,
        method: str,
        data: bytes,
        metadata: tuple[tuple[str, str], ...] | None = None,
        *,
        timeout: float | None = 10,  # noqa: ASYNC109 - gRPC's word for a deadline
        service: str = SERVICE,
    ) -> list[bytes]:
        """Make a call of any kind with one request in bytes; give the responses in bytes."""
        metadata = self.user() if metadata is None else metadata
        channel: Any = self.channel
        path = f"/{service}/{method}"
        how: Any = {"timeout": timeout, "metadata": metadata}
        requests, responses = next(((one[1], one[2]) for one in METHODS if one[0] == method), (False, False))
        if requests and responses:
            return [one async for one in channel.stream_stream(path)(iter([data]), **how)]
        if requests:
            return [await channel.stream_unary(path)(iter([data]), **how)]
        if responses:
            return [one async for one in channel.unary_stream(path)(data, **how)]
        return [await channel.unary_unary(path)(data, **how)]

    async def say(
        self,
        method: str,
        text: str,
        metadata: tuple[tuple[str, str], ...] | None = None,
        *,
        timeout: float | None = 10,  # noqa: ASYNC109 - as above
    ) -> str:
        """Make a call with one text; give the last answer."""
        answers = await self.send(method, _STRING(value=text).SerializeToString(), metadata, timeout=timeout)
        return _STRING.FromString(answers[-1]).value


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Metadata with a token."""
    return (("authorization", f"Bearer {token}"),)


@dataclass
class Refusal:
    """A status and its details, unpacked."""

    code: grpc.StatusCode
    text: str
    reason: str
    domain: str
    metadata: Mapping[str, str]
    violations: Mapping[str, str]
    retry_seconds: float | None


def refusal(error: grpc.aio.AioRpcError) -> Refusal:
    """Read what a refused caller is told."""
    status: status_pb2.Status | None = rpc_status.from_call(error)
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    told = set()
    for detail in status.details if status is not None else ():
        told |= {type(one).__name__ for one in (info, bad, retry) if detail.Unpack(one)}
    return Refusal(
        error.code(),
        error.details() or "",
        info.reason,
        info.domain,
        dict(info.metadata),
        {one.field: one.description for one in bad.field_violations},
        retry.retry_delay.ToTimedelta().total_seconds() if "RetryInfo" in told else None,
    )


async def refused(call: Awaitable[object]) -> Refusal:
    """Await a call that must be refused."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return refusal(error)
    raise AssertionError("the call was answered")


@asynccontextmanager
async def serving(*, max_calls: int = 100, max_streams: int = 100, timeout: float = 30.0) -> AsyncIterator[Served]:  # noqa: ASYNC109 - a setting
    """Run it on a free port."""
    keys, metrics, probe = Keys(), Metrics(), Probe()
    pipeline = Pipeline(
        verifier=Verifier("gaggle", ("gaggle", keys.jwks), session_cookie="better-auth.session_token"),
        tracing=Tracing("probe", sample_ratio=0, otlp_endpoint=""),
        metrics=metrics,
        app_api_token=APP_TOKEN,
        max_concurrent_calls=max_calls,
        max_streams=max_streams,
        call_timeout_seconds=timeout,
    )
    callbacks = Callbacks("pubsub", (), metrics)
    pipeline.ready = callbacks.ready = True
    server, _ = make_server(pipeline, [Exposed(_descriptor(), probe, PROBE_ACCESS)], callbacks)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = (("grpc.max_send_message_length", -1),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield Served(channel, pipeline, metrics, probe, keys, callbacks, port)
    await server.stop(None)
