"""The WebSocket at GET /ws: Starlette on uvicorn, in the event loop of the gRPC server and on a port of its own."""

import asyncio
import contextlib
import resource
import secrets
import socket
import time
from collections.abc import Iterator

import structlog
import uvicorn
from google.rpc import code_pb2
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from gaggle.common.v1 import error_reason_pb2
from gaggle.sync.v1 import frame_pb2
from services.runtime.access import USER
from services.runtime.errors import GaggleError, InvalidArgumentError, UnauthenticatedError
from services.runtime.identity import Caller, Verifier
from services.runtime.service import StartError
from services.runtime.telemetry import Metrics, TraceContext, current_trace, parse_traceparent
from services.sync.domain import SlowConsumerError
from services.sync.frames import close_code, error_frame, read_frame, step_frame
from services.sync.settings import SyncSettings
from services.sync.watching import Watch, Watcher

PATH = "/ws"
_MAX_FRAME_BYTES = 64 * 1024
_BACKLOG = 1024
_PING_SECONDS = 30.0
_END_SECONDS = 2
_UNREAD_MS = 60_000
_OTHER_FILES = 1024

_log = structlog.get_logger()


class Gateway:
    """Serves sockets."""

    def __init__(self, watcher: Watcher, verifier: Verifier, settings: SyncSettings, metrics: Metrics) -> None:
        """`verifier` knows the same tokens as the gRPC server."""
        self._watcher = watcher
        self._verifier = verifier
        self._settings = settings
        self._calls = metrics.calls
        self._open = 0
        self._socket: socket.socket | None = None

    @property
    def port(self) -> int:
        """The port that it listens on, once it does."""
        assert self._socket is not None
        return int(self._socket.getsockname()[1])

    async def listen(self) -> None:
        """Take the port. Raises StartError."""
        _allow_files(self._settings.max_clients + _OTHER_FILES)
        host, port = self._settings.host, self._settings.http_port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                # Inherited by its connections: what a peer that is gone or stuck has not taken for so long ends them.
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
            listening.bind((host, port))
            listening.listen(_BACKLOG)
        except OSError as error:
            listening.close()
            raise StartError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        listening.setblocking(False)
        self._socket = listening

    async def serve(self) -> None:
        """Serve until cancelled; then close what is open."""
        assert self._socket is not None
        server = _Server(
            uvicorn.Config(
                Starlette(routes=[WebSocketRoute(PATH, self._session)]),
                http="h11",
                ws="websockets-sansio",
                ws_max_size=_MAX_FRAME_BYTES,
                ws_ping_interval=_PING_SECONDS,
                ws_ping_timeout=_PING_SECONDS,
                # A compressor for each of thousands of clients would cost more than it saves on frames this small.
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=_END_SECONDS,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[self._socket]))
        try:
            await asyncio.shield(serving)
        finally:
            server.should_exit = True
            await serving

    async def _session(self, websocket: WebSocket) -> None:
        if self._open >= self._settings.max_clients:
            await websocket.send_denial_response(Response(status_code=503, headers={"retry-after": "1"}))
            return
        session = _Session(websocket, self._watcher, self._verifier, self._settings)
        self._open += 1
        try:
            await session.run()
        finally:
            self._open -= 1
            seconds = time.perf_counter() - session.started
            self._calls.labels(PATH, session.code).observe(seconds)
            _log.info(
                "call",
                method=PATH,
                code=session.code,
                ms=round(seconds * 1000, 3),
                user=session.user,
                trace_id=session.trace_id,
            )


class _Session:
    """One socket, from its opening to its end."""

    def __init__(self, websocket: WebSocket, watcher: Watcher, verifier: Verifier, settings: SyncSettings) -> None:
        self._socket = websocket
        self._watcher = watcher
        self._verifier = verifier
        self._settings = settings
        self._watch: Watch | None = None
        self.started = time.perf_counter()
        # A socket never ends by itself: its client leaves, or it is told why.
        self.code = "CANCELLED"
        self.user = ""
        parent = parse_traceparent(websocket.headers.get("traceparent", ""))
        self.trace_id = parent.trace_id if parent else secrets.token_hex(16)

    async def run(self) -> None:
        """Serve it; whatever goes wrong is told to the client and to the log."""
        current_trace.set(TraceContext(self.trace_id, secrets.token_hex(8), sampled=False))
        try:
            with contextlib.suppress(WebSocketDisconnect):
                await self._socket.accept()
                await self._serve()
        except GaggleError as error:
            await self._end(error)
        except Exception:  # noqa: BLE001 - the one place where all of them are mapped
            _log.exception("unforeseen", method=PATH, trace_id=self.trace_id)
            unforeseen = GaggleError(
                f"an internal fault; the operator's log has it under trace {self.trace_id}",
                reason=error_reason_pb2.ERROR_REASON_INTERNAL,
                metadata={"trace_id": self.trace_id},
            )
            await self._end(unforeseen)

    async def _serve(self) -> None:
        frame = await self._first()
        caller = await self._caller(frame.token)
        self.user = caller.user_id
        after = frame.after_position if frame.HasField("after_position") else None
        with self._watcher.watching(caller, after, frame.entity_types, way="websocket") as watch:
            self._watch = watch
            both = [asyncio.create_task(self._send(watch)), asyncio.create_task(self._receive(watch))]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in both:
                    task.cancel()
                await asyncio.wait(both)
            for task in both:
                if not task.cancelled():
                    task.result()

    async def _first(self) -> frame_pb2.ClientFrame:
        try:
            async with asyncio.timeout(self._settings.first_frame_seconds):
                return await self._next()
        except TimeoutError:
            seconds = self._settings.first_frame_seconds
            raise UnauthenticatedError(f"send a frame with the token within {seconds:g} s") from None

    async def _next(self) -> frame_pb2.ClientFrame:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        return read_frame(message.get("text"))

    async def _caller(self, token: str) -> Caller:
        if not token:
            raise UnauthenticatedError("the frame must hold a token")
        bearer = f"Bearer {token}"
        caller = self._verifier.known(bearer) or await self._verifier.verify(bearer)
        USER.check(caller)
        return caller

    async def _receive(self, watch: Watch) -> None:
        """Take new tokens, until the client leaves."""
        while True:
            frame = await self._next()
            more = {"after_position": frame.HasField("after_position"), "entity_types": bool(frame.entity_types)}
            if any(more.values()):
                raise InvalidArgumentError(
                    {name: "belongs into the first frame" for name, given in more.items() if given}
                )
            watch.renew(await self._caller(frame.token))

    async def _send(self, watch: Watch) -> None:
        async with contextlib.aclosing(watch.steps()) as steps:  # type: ignore[type-var]
            async for step in steps:
                try:
                    await self._write(step_frame(step))
                except TimeoutError:
                    raise SlowConsumerError(watch.position) from None

    async def _write(self, frame: str) -> None:
        """Send a frame. Raises TimeoutError if the client's connection is full and stays so."""
        async with asyncio.timeout(self._settings.send_timeout_seconds):
            try:
                await self._socket.send_text(frame)
            except RuntimeError as error:
                # uvicorn has closed it by itself, since no pong came; its end is not told yet.
                raise WebSocketDisconnect(1006) from error

    async def _end(self, error: GaggleError) -> None:
        """Tell why, if the client still listens."""
        self.code = code_pb2.Code.Name(error.code)
        position = self._watch.position if self._watch else 0
        reason = error_reason_pb2.ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
        with contextlib.suppress(WebSocketDisconnect, TimeoutError):
            await self._write(error_frame(error, position))
            async with asyncio.timeout(self._settings.send_timeout_seconds):
                await self._socket.close(close_code(error), reason)


def _allow_files(count: int) -> None:
    """Raise the limit of open files, of which each socket is one, as far as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        _log.info("open_files", limit=wanted)


class _Server(uvicorn.Server):
    """A uvicorn that leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn.Server."""
        yield
