"""A service's process: settings, sidecar, server, and an orderly end.

The server listens before the sidecar is there, since the sidecar asks for subscriptions once, at its own start. Until
the sidecar is ready and the keys are read, calls are answered UNAVAILABLE. `grpc.health.v1` says so: the empty name is
SERVING while the process listens (liveness); `ready`, and each service's own name, once it takes calls (readiness).
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import structlog
import uvloop
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from pydantic import ValidationError

from gaggle.operations.v1 import operations_service_pb2
from services.runtime.access import CALLBACK, CALLBACK_AT_START, PUBLIC, Access
from services.runtime.callbacks import BindingHandler, Callbacks, Subscription
from services.runtime.dapr import appcallback_pb2
from services.runtime.errors import GaggleError, UnavailableError
from services.runtime.identity import ServiceTokens, TokenSigner, Verifier, jwks_url
from services.runtime.jobs import JobHandler
from services.runtime.logs import LogLevel, configure_logging
from services.runtime.operating import OPERATIONS_ACCESS, OperationsServicer
from services.runtime.outbox import CleanUpFunction, Outbox
from services.runtime.pipeline import Pipeline
from services.runtime.sessions import sessions_of
from services.runtime.settings import ServiceSettings
from services.runtime.sidecar import CHANNEL_OPTIONS, Sidecar
from services.runtime.state import StateStore
from services.runtime.telemetry import Metrics, Tracing

READY = "ready"
"""The name by which grpc.health.v1 tells, of any service, that it takes calls."""

_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
_HEALTH = "grpc.health.v1.Health"
_SIDECAR_SECONDS = 120.0
_METADATA_BYTES = 256 * 1024
_SERVER_OPTIONS = (
    *((name, value) for name, value in CHANNEL_OPTIONS if "message_length" in name),
    ("grpc.so_reuseport", 0),
    # daprd gives a bulk delivery the trace header of each event in it: gRPC's own limit of 16 KB takes some 80 of them,
    # and what is over it is refused before anything here sees it.
    ("grpc.max_metadata_size", _METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
    # Clients that ping as often as the sidecar allows are welcome.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

S = TypeVar("S", bound=ServiceSettings)

# daprd 1.18 proves itself when it delivers, not when it asks what there is to deliver: its
# pkg/runtime/pubsub/subscriptions.go adds no token.
_APP_CALLBACK = {
    "*": CALLBACK,
    "ListTopicSubscriptions": CALLBACK_AT_START,
    "ListInputBindings": CALLBACK_AT_START,
}

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Exposed:
    """A servicer on the port: its descriptor (`pb2.DESCRIPTOR.services_by_name[...]`) and who may call what."""

    service: ServiceDescriptor
    servicer: object
    access: Mapping[str, Access] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wiring:
    """What a service is made of."""

    servicers: Sequence[Exposed]
    subscriptions: Sequence[Subscription] = ()
    jobs: JobHandler | None = None
    """Takes this app's jobs."""

    bindings: Mapping[str, BindingHandler] = field(default_factory=dict)
    """Takes what input bindings bring, by the component's name."""

    start: Sequence[Callable[[], Awaitable[None]]] = ()
    """Run in order, once the sidecar is ready and before calls are taken."""

    background: Sequence[Callable[[], Awaitable[None]]] = ()
    """Run from then on, until cancelled."""

    drain: Sequence[Callable[[], Awaitable[None]]] = ()
    """Run when the process is asked to stop, before running calls are waited for: ends streams that would not end."""

    stop: Sequence[Callable[[], Awaitable[None]]] = ()
    """Run at the end, after the last call."""

    clean_ups: Mapping[str, CleanUpFunction] = field(default_factory=dict)
    """Work that commits leave in the outbox, by kind."""

    keeps_state: bool = True
    """Whether it needs the state component; one that does not had better not reach it."""

    has_events: bool = True
    """Whether it needs the pub/sub component."""


class Runtime:
    """What a service builds on. Nothing here has talked to the sidecar when `build` is called."""

    def __init__(self, name: str, settings: ServiceSettings) -> None:
        """`name` is the service's folder and key."""
        self.name = name
        self.settings = settings
        self.metrics = Metrics()
        self.tracing = Tracing(
            name,
            sample_ratio=settings.trace_sample_ratio,
            otlp_endpoint=settings.otlp_endpoint,
            zipkin_endpoint=settings.zipkin_endpoint,
            instance=f"{settings.app_id}@{socket.gethostname()}:{settings.port}",
        )
        self.sidecar = Sidecar(
            settings.sidecar_target,
            api_token=settings.dapr_api_token.get_secret_value(),
            topic_names=settings.topic_names,
        )
        self.state = StateStore(self.sidecar, settings.statestore, self.metrics)
        self.clean_ups: dict[str, CleanUpFunction] = {}
        self.outbox = Outbox(
            self.state,
            self.sidecar,
            pubsub=settings.pubsub,
            holder=f"{settings.app_id}@{socket.gethostname()}:{settings.port}",
            metrics=self.metrics,
            clean_ups=self.clean_ups,
        )
        outside = None
        if settings.outside_issuer:
            outside = (settings.outside_issuer, jwks_url(settings.outside_jwks_url))
        self.verifier = Verifier(
            settings.token_audience,
            (settings.token_issuer, self._own_keys),
            outside,
            session_cookie=settings.better_auth_cookie if settings.better_auth else "",
        )
        if settings.better_auth:
            self.verifier.sessions = sessions_of(self.sidecar, settings.sibling("auth"))
        self._tokens: ServiceTokens | None = None

    @property
    def tokens(self) -> ServiceTokens:
        """This service's own tokens; there once it is ready."""
        if self._tokens is None:
            raise RuntimeError("service tokens are there once the service is ready")
        return self._tokens

    async def secret(self, name: str) -> str:
        """Read a secret of one value, or one value of the secret that `secret_names` says. Raises UnavailableError."""
        holder = self.settings.secret_names.get(name, name)
        values = await self.sidecar.secret(self.settings.secretstore, holder)
        if holder == name:
            return values.get(name) or next(iter(values.values()), "")
        if name not in values:
            raise UnavailableError(f"secret {holder!r} of {self.settings.secretstore}, which has no {name},")
        return values[name]

    async def load_keys(self) -> None:
        """Read this service's own signing key."""
        signer = TokenSigner(
            await self.secret(f"service-key-{self.name}"),
            issuer=self.settings.token_issuer,
            audience=self.settings.token_audience,
        )
        self._tokens = ServiceTokens(self.name, signer)

    async def _own_keys(self) -> str:
        return await self.secret("token-jwks")


def run(name: str, settings_class: type[S], build: Callable[[Runtime, S], Wiring]) -> None:
    """Run a service until SIGTERM. Exits 2 with one line if a setting is missing or wrong."""
    try:
        settings = settings_class.model_validate({})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        sys.stderr.write(f"gaggle {name}: settings: {problems}\n")
        raise SystemExit(2) from None
    log_level = configure_logging(settings.log_level, service=name, app_id=settings.app_id)
    try:
        uvloop.run(_serve(name, settings, build, log_level))
    except StartError as error:
        sys.stderr.write(f"gaggle {name}: {error}\n")
        raise SystemExit(1) from None


class StartError(Exception):
    """The service cannot start; the text is one line for the operator."""


async def _serve(name: str, settings: S, build: Callable[[Runtime, S], Wiring], log_level: LogLevel) -> None:
    runtime = Runtime(name, settings)
    wiring = build(runtime, settings)
    runtime.clean_ups.update(wiring.clean_ups)
    pipeline = Pipeline(
        verifier=runtime.verifier,
        tracing=runtime.tracing,
        metrics=runtime.metrics,
        app_api_token=settings.app_api_token.get_secret_value(),
        max_concurrent_calls=settings.max_concurrent_calls,
        max_streams=settings.max_streams,
        call_timeout_seconds=settings.call_timeout_seconds,
    )
    callbacks = Callbacks(
        settings.pubsub,
        wiring.subscriptions,
        runtime.metrics,
        jobs=wiring.jobs,
        bindings=wiring.bindings,
        topic_names=settings.topic_names,
    )
    operations = operations_service_pb2.DESCRIPTOR.services_by_name["OperationsService"]
    servicers = [*wiring.servicers, Exposed(operations, OperationsServicer(log_level), OPERATIONS_ACCESS)]
    server, health_servicer = make_server(pipeline, servicers, callbacks)
    address = f"{settings.host}:{settings.port}"
    _listen(server, address, settings)
    if settings.metrics_port:
        try:
            runtime.metrics.serve(settings.host, settings.metrics_port)
        except OSError as error:
            raise StartError(f"cannot listen on {settings.host}:{settings.metrics_port}: {error.strerror}") from error

    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await server.start()
    for served, status in (
        ("", health_pb2.HealthCheckResponse.SERVING),
        (READY, health_pb2.HealthCheckResponse.NOT_SERVING),
    ):
        await health_servicer.set(served, status)
    _log.info("listening", address=address)

    background: list[asyncio.Task[None]] = []
    starting = asyncio.create_task(_start(runtime, wiring))
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            background = [asyncio.ensure_future(_forever(work)) for work in wiring.background]
            pipeline.ready = callbacks.ready = True
            for served in (READY, *(one.service.full_name for one in servicers)):
                await health_servicer.set(served, health_pb2.HealthCheckResponse.SERVING)
            _log.info("ready", address=address)
            await stopping.wait()
        _log.info("draining", seconds=settings.drain_seconds)
    finally:
        starting.cancel()
        waiting.cancel()
        await health_servicer.enter_graceful_shutdown()
        await _each(wiring.drain)
        await server.stop(settings.drain_seconds)
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await _each(wiring.stop)
        await runtime.outbox.stop()
        await runtime.sidecar.close()
        runtime.tracing.close()


async def _each(steps: Sequence[Callable[[], Awaitable[None]]]) -> None:
    for step in steps:
        await step()


def _listen(server: grpc.aio.Server, address: str, settings: ServiceSettings) -> None:
    try:
        if settings.tls_certificate_file:
            pair = Path(settings.tls_key_file).read_bytes(), Path(settings.tls_certificate_file).read_bytes()
            server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        else:
            server.add_insecure_port(address)
    except OSError as error:
        raise StartError(f"cannot read {error.filename}: {error.strerror}") from error
    except RuntimeError as error:
        raise StartError(f"cannot listen on {address}") from error


async def _start(runtime: Runtime, wiring: Wiring) -> None:
    try:
        metadata = await runtime.sidecar.wait_until_ready(_SIDECAR_SECONDS)
        check_components(metadata, runtime.settings, wiring)
        await runtime.load_keys()
        await _each(wiring.start)
    except GaggleError as error:
        raise StartError(error.message) from error


def check_components(metadata: Any, settings: ServiceSettings, wiring: Wiring) -> None:
    """Refuse a sidecar that lacks a component, or whose store cannot roll back. Raises StartError.

    state.redis runs transactions by MULTI and keeps the half of one whose other half lost a race, whatever it says
    of itself in its capabilities.
    """
    components = {one.name: one for one in metadata.registered_components}
    needed = [settings.secretstore]
    needed += [settings.statestore] if wiring.keeps_state else []
    needed += [settings.pubsub] if wiring.has_events else []
    for name in needed:
        if name not in components:
            raise StartError(f"the sidecar has no component {name!r}; check its scopes and resources path")
    if not wiring.keeps_state:
        return
    store = components[settings.statestore]
    if store.type.startswith("state.redis") or "TRANSACTIONAL" not in store.capabilities:
        raise StartError(
            f"component {store.name!r} is {store.type}, whose transactions do not roll back; use state.postgresql v2"
        )


async def _forever(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception:  # noqa: BLE001 - background work goes on; what was unforeseen is in the log
            _log.exception("background_work_failed", work=getattr(work, "__qualname__", repr(work)))
        await asyncio.sleep(1)


def make_server(
    pipeline: Pipeline, servicers: Sequence[Exposed], callbacks: Callbacks | None = None
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """Make a server with these servicers, health, reflection (v1 and v1alpha) and the sidecar's callbacks."""
    server = grpc.aio.server(options=_SERVER_OPTIONS)
    health_servicer = health.aio.HealthServicer()
    # Health writes its stream by the context, which takes bytes alone behind the pipeline.
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    exposed = list(servicers)
    if callbacks is not None:
        services = appcallback_pb2.DESCRIPTOR.services_by_name
        exposed.append(Exposed(services["AppCallback"], callbacks, _APP_CALLBACK))
        exposed.append(Exposed(services["AppCallbackAlpha"], callbacks, {"*": CALLBACK}))
        # daprd sends no token with its health check; the answer tells nothing.
        exposed.append(Exposed(services["AppCallbackHealthCheck"], callbacks, {"*": PUBLIC}))
    handlers = [pipeline.handlers(one.service, one.servicer, dict(one.access)) for one in exposed]
    names = (*(one.service.full_name for one in servicers), _HEALTH, _REFLECTION_V1, reflection.SERVICE_NAME)
    reflected = reflection.aio.ReflectionServicer(names)
    described = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    stream = pipeline.handlers(described, reflected, {"*": PUBLIC})
    # v1 differs from v1alpha in its package's name alone; the library ships the latter.
    handlers += [stream, _Renamed(stream, f"/{described.full_name}/", f"/{_REFLECTION_V1}/")]
    server.add_generic_rpc_handlers(tuple(handlers))
    return server, health_servicer


class _Renamed(grpc.GenericRpcHandler):
    """Serves the methods of one service under another's name."""

    def __init__(self, inner: grpc.GenericRpcHandler, name: str, alias: str) -> None:
        self._inner = inner
        self._name = name
        self._alias = alias

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        if not method.startswith(self._alias):
            return None
        details = _Details(self._name + method.removeprefix(self._alias), handler_call_details.invocation_metadata)
        return self._inner.service(details)


@dataclass(frozen=True, slots=True)
class _Details(grpc.HandlerCallDetails):
    method: str
    invocation_metadata: Any
