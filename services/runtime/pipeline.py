"""The one path that every call of every service takes.

    metadata -> trace -> limits -> identity -> parse -> access -> handler -> serialize -> status -> metrics -> log line

It is one function and not a chain of interceptors: six of grpc.aio's cost more than a read of the state store
(bench/README.md has the figures), and parsing in here is what lets malformed bytes be answered properly.
"""

import asyncio
import hmac
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from itertools import islice
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from gaggle.common.v1 import error_reason_pb2
from services.runtime.access import USER, Access
from services.runtime.call import set_deadline
from services.runtime.errors import (
    DeadlineError,
    GaggleError,
    InvalidArgumentError,
    PermissionDeniedError,
    TooManyRequestsError,
    UnauthenticatedError,
    UnavailableError,
)
from services.runtime.identity import Verifier, set_current_caller, since_boot
from services.runtime.telemetry import Metrics, TraceContext, Tracing, current_trace

ERROR_DOMAIN = "gaggle"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_PROXIED = frozenset({"dapr-app-id", "dapr-callee-app-id"})
_REASON_PREFIX = "ERROR_REASON_"
# A status travels in trailers, of which gRPC takes 8 KiB by default: more would cost the caller all of it.
_MAX_VIOLATIONS = 10
_MAX_TEXT = 128
_MAX_MESSAGE = 512

Handler = Callable[..., Any]

_log = structlog.get_logger()


class _Call:
    """What is known of one call: for its span, its metrics and its log line."""

    __slots__ = ("app_token", "ask_again_at", "authorization", "cookie", "proxied", "started", "trace", "user")

    def __init__(self, method: str, context: Any, tracing: Tracing) -> None:
        self.started = time.perf_counter()
        self.user = ""
        self.ask_again_at = math.inf
        self.authorization: str | None = None
        self.cookie: str | None = None
        self.app_token: str | None = None
        self.proxied = False
        traceparent = None
        for key, value in context.invocation_metadata():
            if key == "authorization":
                self.authorization = value
            elif key == "traceparent":
                traceparent = value
            elif key == "cookie":
                # HTTP/2 may split it (RFC 9113, 8.2.3).
                self.cookie = f"{self.cookie}; {value}" if self.cookie else value
            elif key == "dapr-api-token":
                self.app_token = value
            elif key in _PROXIED:
                self.proxied = True
        self.trace: TraceContext = tracing.start(method, traceparent)
        current_trace.set(self.trace)


class Pipeline:
    """Wraps the methods of servicers. One a process."""

    def __init__(
        self,
        *,
        verifier: Verifier,
        tracing: Tracing,
        metrics: Metrics,
        app_api_token: str,
        max_concurrent_calls: int,
        max_streams: int,
        call_timeout_seconds: float,
    ) -> None:
        """Limits as in `ServiceSettings`."""
        self._verifier = verifier
        self._tracing = tracing
        self._metrics = metrics
        self._app_token = app_api_token.encode()
        self._max_calls = max_concurrent_calls
        self._max_streams = max_streams
        self._timeout = call_timeout_seconds
        self._observe: dict[tuple[str, str], Callable[[float], None]] = {}
        self._calls = 0
        self._streams = 0
        self.ready = False
        """Calls are refused with UNAVAILABLE until the service has what it needs; public ones are not."""

    def handlers(
        self, service: ServiceDescriptor, servicer: object, access: dict[str, Access]
    ) -> grpc.GenericRpcHandler:
        """Make gRPC handlers of a servicer's methods. `access`: method name to who may; a user if not named."""
        methods = {}
        for method in service.methods:
            allowed = access.get(method.name, access.get("*", USER))
            handler = getattr(servicer, method.name)
            methods[method.name] = self._wrap(service.full_name, method, handler, allowed)
        return grpc.method_handlers_generic_handler(service.full_name, methods)

    def _wrap(self, service: str, method: MethodDescriptor, handler: Handler, access: Access) -> Any:
        path = f"/{service}/{method.name}"
        request_class = GetMessageClass(method.input_type)
        if method.client_streaming:
            if method.server_streaming:
                return grpc.stream_stream_rpc_method_handler(self._stream_stream(path, request_class, handler, access))
            return grpc.stream_unary_rpc_method_handler(self._stream_unary(path, request_class, handler, access))
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._unary_stream(path, request_class, handler, access))
        return grpc.unary_unary_rpc_method_handler(self._unary(path, request_class, handler, access))

    # -- the four kinds

    def _unary(self, path: str, request_class: type[Message], handler: Handler, access: Access) -> Handler:
        async def call(data: bytes, context: Any) -> bytes:
            state = _Call(path, context, self._tracing)
            code = "OK"
            self._calls += 1
            try:
                _bound(self._calls, self._max_calls)
                left = context.time_remaining()
                set_deadline(self._timeout if left is None else min(left, self._timeout))
                await self._admit(state, access)
                response = await handler(_parse(request_class, data), context)
                return response if type(response) is bytes else response.SerializeToString()
            except Exception as error:
                status = self._status(error, path, state)
                code = _CODES[status.code].name
                await _abort(context, status)
                raise AssertionError from error  # abort has raised
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            finally:
                self._calls -= 1
                # Once the answer is on its way.
                asyncio.get_running_loop().call_soon(self._done, path, state, code, time.perf_counter())

        return call

    def _unary_stream(self, path: str, request_class: type[Message], handler: Handler, access: Access) -> Handler:
        async def call(data: bytes, context: Any) -> AsyncIterator[bytes]:
            async for response in self._stream(
                path, access, context, lambda: handler(_parse(request_class, data), context)
            ):
                yield response

        return call

    def _stream_stream(self, path: str, request_class: type[Message], handler: Handler, access: Access) -> Handler:
        async def call(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for response in self._stream(
                path, access, context, lambda: handler(_parse_all(request_class, requests), context)
            ):
                yield response

        return call

    def _stream_unary(self, path: str, request_class: type[Message], handler: Handler, access: Access) -> Handler:
        async def call(requests: AsyncIterator[bytes], context: Any) -> bytes:
            async def once() -> AsyncIterator[Any]:
                yield await handler(_parse_all(request_class, requests), context)

            # To its end, since there it is logged and counted.
            last = b""
            async for response in self._stream(path, access, context, once):
                last = response
            return last

        return call

    async def _stream(
        self, path: str, access: Access, context: Any, start: Callable[[], AsyncIterator[Any]]
    ) -> AsyncIterator[bytes]:
        state = _Call(path, context, self._tracing)
        code = "OK"
        self._streams += 1
        try:
            _bound(self._streams, self._max_streams)
            await self._admit(state, access)
            async with aclosing(start()) as responses:  # type: ignore[type-var]
                async for response in responses:
                    if state.ask_again_at != math.inf and state.ask_again_at <= since_boot():
                        # A stream may outlast its session: one that was ended hears no more.
                        await self._admit(state, access)
                    yield response if isinstance(response, bytes) else response.SerializeToString()
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        except Exception as error:  # noqa: BLE001 - the one place where all of them are mapped
            status = self._status(error, path, state)
            code = _CODES[status.code].name
            await _abort(context, status)
        finally:
            self._streams -= 1
            self._done(path, state, code, time.perf_counter())

    # -- the steps

    async def _admit(self, state: _Call, access: Access) -> None:
        if access.public:
            return
        if access.callback:
            self._admit_callback(state, access)
            return
        if not self.ready:
            raise UnavailableError("this service", retry_after_seconds=1.0)
        authorization = state.authorization or self._verifier.from_cookie(state.cookie)
        caller = self._verifier.known(authorization or "") or await self._verifier.verify(authorization)
        access.check(caller)
        state.user = caller.user_id
        state.ask_again_at = caller.ask_again_at
        set_current_caller(caller)

    def _admit_callback(self, state: _Call, access: Access) -> None:
        # daprd adds the app token to whatever it proxies, so the token alone proves nothing on a proxied call.
        reason = error_reason_pb2.ERROR_REASON_CALLBACK_REFUSED
        if state.proxied:
            raise PermissionDeniedError("callbacks are for the own sidecar alone", reason=reason)
        if not access.untokened and not hmac.compare_digest((state.app_token or "").encode(), self._app_token):
            raise UnauthenticatedError("callbacks are for the own sidecar alone", reason=reason)

    def _status(self, error: BaseException, path: str, state: _Call) -> status_pb2.Status:
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if isinstance(error, TimeoutError):
            error = DeadlineError("this call")
        if isinstance(error, GaggleError):
            return status_of(error)
        _log.error("unforeseen", method=path, trace_id=state.trace.trace_id, exc_info=error)
        unforeseen = GaggleError(
            f"an internal fault; the operator's log has it under trace {state.trace.trace_id}",
            reason=error_reason_pb2.ERROR_REASON_INTERNAL,
            metadata={"trace_id": state.trace.trace_id},
        )
        return status_of(unforeseen)

    def _done(self, path: str, state: _Call, code: str, ended: float) -> None:
        self._tracing.end(state.trace, code)
        seconds = ended - state.started
        observe = self._observe.get((path, code))
        if observe is None:
            observe = self._observe[path, code] = self._metrics.calls.labels(path, code).observe
        observe(seconds)
        _log.info(
            "call",
            method=path,
            code=code,
            ms=round(seconds * 1000, 3),
            user=state.user,
            trace_id=state.trace.trace_id,
        )


def _bound(running: int, most: int) -> None:
    if running > most:
        raise TooManyRequestsError(most)


def _parse(request_class: type[Message], data: bytes) -> Message:
    try:
        return request_class.FromString(data)
    except DecodeError as error:
        raise InvalidArgumentError(
            {"request": f"the bytes are no {request_class.DESCRIPTOR.full_name}, or hold text that is not UTF-8"},
            reason=error_reason_pb2.ERROR_REASON_MALFORMED_REQUEST,
        ) from error


async def _parse_all(request_class: type[Message], requests: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    async for data in requests:
        yield _parse(request_class, data)


def status_of(error: GaggleError) -> status_pb2.Status:
    """Write an error as a google.rpc.Status with its details."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error_reason_pb2.ErrorReason.Name(error.reason).removeprefix(_REASON_PREFIX),
            domain=ERROR_DOMAIN,
            metadata={name: _short(value) for name, value in error.metadata.items()},
        )
    ]
    if error.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=_short(field), description=_short(what))
            for field, what in islice(error.violations.items(), _MAX_VIOLATIONS)
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    details += error.foreign
    status = status_pb2.Status(code=error.code, message=_short(error.message, _MAX_MESSAGE))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _short(text: str, most: int = _MAX_TEXT) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


async def _abort(context: Any, status: status_pb2.Status) -> None:
    trailers = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, trailers)
