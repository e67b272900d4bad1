"""One live connection to an MCP server: a task that holds it open, and the calls made on it.

The SDK's client must be entered and left by one task, so a task of its own does nothing else; calls come from any.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import mcp.client
import mcp_types as types
import structlog
from mcp import Client, MCPError
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import CONNECTION_CLOSED, INTERNAL_ERROR, INVALID_REQUEST
from opentelemetry.trace import SpanKind
from pydantic import TypeAdapter, ValidationError

from gaggle.extension.v1 import extension_pb2
from services.extension import results
from services.extension.domain import MAX_INSTRUCTIONS_CHARACTERS
from services.extension.errors import CallFailedError, ConnectionLostError
from services.extension.process import Death, Streams
from services.extension.schema import Checker, UnusableSchemaError
from services.runtime.telemetry import current_trace, part

MAX_TOOLS = 1000
MAX_TOOLS_BYTES = 8 * 1024 * 1024
CALL_ID = "gaggle/call-id"
"""The member of `_meta` by which a server is told a call's id: an idempotency key."""

TOKEN = "gaggle/token"  # noqa: S105 - a name
"""The member of `_meta` by which one of the deployment's acting commands gets a token for the user who calls."""

_MAX_PAGES = 100
_CLOSE_SECONDS = 10.0
_ANSWER: TypeAdapter[types.CallToolResult | types.InputRequiredResult] = TypeAdapter(
    types.CallToolResult | types.InputRequiredResult
)
_INFO = types.Implementation(name="gaggle", version="0.1.0")

Transport = Callable[[Death], AbstractAsyncContextManager[Streams]]
T = TypeVar("T")
LogFn = Callable[[str, str, Any], None]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class KnownTool:
    """A tool as the server listed it."""

    tool: extension_pb2.Tool
    arguments: Checker | None
    """None: the schema can't be used; the server's own check is all there is."""

    structured: Checker | None


class Connection:
    """Made by `open`, ended by `close` or by itself; then `death` says how."""

    def __init__(self, transport: Transport, *, max_calls: int) -> None:
        """`transport` makes the streams, once."""
        self.death = Death()
        self.server = extension_pb2.ServerInfo()
        self.calls = 0
        """Under way or waiting for their turn."""

        self.ended = asyncio.Event()
        self._transport = transport
        self._slots = asyncio.Semaphore(max_calls)
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._client: Client | None = None
        self._tools: dict[str, KnownTool] = {}
        self._stale = False
        self._listing = asyncio.Lock()
        self._listeners: set[LogFn] = set()

    @property
    def alive(self) -> bool:
        """Whether calls can be made."""
        return self._client is not None and not self.ended.is_set() and not self.death.happened.is_set()

    @property
    def closing(self) -> bool:
        """Whether it was closed from our side."""
        return self._closing.is_set()

    async def open(self, timeout_seconds: float) -> None:
        """Connect, agree on a version, list the tools.

        Raises ConnectionLostError, or TargetBlockedError if the address is not allowed.
        """
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(ready))
        try:
            async with asyncio.timeout(timeout_seconds):
                await asyncio.wait({ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            self.death.note(f"did not answer within {timeout_seconds:g} seconds")
        except asyncio.CancelledError:
            await self.close()
            raise
        if ready.done():
            return
        await self.close()
        if self.death.blocked is not None:
            raise self.death.blocked
        raise ConnectionLostError(self.death.text or "could not be connected to")

    async def _hold(self, ready: asyncio.Future[None]) -> None:
        try:
            async with Client(
                cast("mcp.client.Transport", self._transport(self.death)),
                cache=None,
                client_info=_INFO,
                log_level="info",
                logging_callback=self._on_log,
                message_handler=self._on_message,
            ) as client:
                self._client = client
                info = client.server_info
                self.server = extension_pb2.ServerInfo(
                    name=results.clean(info.name if info else "")[:256],
                    version=results.clean(info.version if info else "")[:256],
                    protocol_version=client.protocol_version,
                    instructions=results.clean(client.instructions or "")[:MAX_INSTRUCTIONS_CHARACTERS],
                )
                await self._list(client)
                ready.set_result(None)
                await _first(self._closing, self.death.happened)
        except Exception as error:  # noqa: BLE001 - whatever ends it, it has ended; the cause is told
            self.death.note(_cause(error))
        finally:
            self.ended.set()

    async def close(self) -> None:
        """End it; gives back when everything that belongs to it is gone."""
        self._closing.set()
        task = self._task
        if task is None:
            return
        if not self.ended.is_set() and self._client is None:
            task.cancel()  # Not yet open: nothing in there waits for us.
        done, _ = await asyncio.wait({task}, timeout=_CLOSE_SECONDS)
        if not done:
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("extension_not_closed_well", error=str(error))

    async def tools(self) -> dict[str, KnownTool]:
        """Give the tools by name, in the server's order. Raises ConnectionLostError or CallFailedError."""
        if self._stale:
            async with self._listing:
                if self._stale:
                    await self._guard(self._list(self._usable()))
        return self._tools

    async def call(
        self,
        tool: str,
        arguments: dict[str, Any],
        *,
        call_id: str,
        token: str = "",
        on_progress: ProgressFnT,
        on_log: LogFn,
    ) -> types.CallToolResult:
        """Call a tool; the server is told if the caller stops waiting. `token` is for acting commands alone.

        Raises CallFailedError if the server answers with an error, ConnectionLostError if it dies.
        """
        self.calls += 1
        self._listeners.add(on_log)
        try:
            async with self._slots:
                with part("tools/call", kind=SpanKind.CLIENT, attributes={"mcp.tool.name": tool}):
                    answer = await self._send(tool, arguments, call_id=call_id, token=token, on_progress=on_progress)
        finally:
            self.calls -= 1
            self._listeners.discard(on_log)
        if isinstance(answer, types.InputRequiredResult):
            raise CallFailedError(INVALID_REQUEST, "the tool asks for more input, which is not offered here")
        known = self._tools.get(tool)
        if known is not None and known.structured is not None and not answer.is_error:
            _check_structured(known.structured, answer)
        return answer

    async def _send(
        self, tool: str, arguments: dict[str, Any], *, call_id: str, token: str, on_progress: ProgressFnT
    ) -> types.CallToolResult | types.InputRequiredResult:
        session = self._usable().session
        # Its type names the members that the protocol knows; others may stand beside them.
        meta: Any = {name: value for name, value in {CALL_ID: call_id, TOKEN: token}.items() if value}
        if (trace := current_trace.get()) is not None and trace.sampled:
            # As the protocol has it for W3C traces: what the tool does can join.
            meta["traceparent"] = trace.traceparent
        request = types.CallToolRequest(
            params=types.CallToolRequestParams(name=tool, arguments=arguments, _meta=meta or None)
        )
        # Not the client's own call_tool: that checks results by the server's schema without any bound.
        return await self._guard(session.send_request(request, _ANSWER, progress_callback=on_progress))

    def _usable(self) -> Client:
        if self._client is None or not self.alive:
            raise ConnectionLostError(self.death.text or "is not connected")
        return self._client

    async def _guard(self, work: Awaitable[T]) -> T:
        """Await an answer, and say in our words what went wrong."""
        answer = asyncio.ensure_future(work)
        lost = asyncio.ensure_future(_first(self.ended, self.death.happened))
        try:
            await asyncio.wait({answer, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ConnectionLostError(self.death.text or "has ended")
            return answer.result()
        except MCPError as error:
            if error.code == CONNECTION_CLOSED or (error.code, error.message) == (
                INVALID_REQUEST,
                "Session terminated",
            ):
                self.death.note(error.message)
                raise ConnectionLostError(self.death.text) from error
            raise CallFailedError(error.code, error.message, error.data) from error
        except (ValidationError, RuntimeError) as error:
            if not self.alive:
                raise ConnectionLostError(self.death.text or "has ended") from error
            raise CallFailedError(
                INTERNAL_ERROR, f"the answer is not as the protocol has it: {_cause(error)}"
            ) from error
        finally:
            lost.cancel()
            if not answer.done():
                answer.cancel()
                # The SDK tells the server while it is being cancelled.
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await answer

    async def _list(self, client: Client) -> None:
        found: dict[str, KnownTool] = {}
        cursor: str | None = None
        size = 0
        self._stale = False
        for _ in range(_MAX_PAGES):
            page = await client.session.list_tools(params=types.PaginatedRequestParams(cursor=cursor))
            for tool in page.tools:
                known = _known(tool)
                size += known.tool.ByteSize()
                if len(found) >= MAX_TOOLS or size > MAX_TOOLS_BYTES:
                    raise ConnectionLostError(f"lists more than {MAX_TOOLS} tools, or {MAX_TOOLS_BYTES} bytes of them")
                found.setdefault(known.tool.name, known)
            cursor = page.next_cursor
            if cursor is None:
                self._tools = found
                return
        raise ConnectionLostError(f"lists its tools on more than {_MAX_PAGES} pages")

    async def _on_log(self, params: types.LoggingMessageNotificationParams) -> None:
        for listener in tuple(self._listeners):
            listener(params.level, params.logger or "", params.data)

    async def _on_message(self, message: Any) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self._stale = True


def _known(tool: types.Tool) -> KnownTool:
    shown = results.tool_message(tool)
    body = results.dump(tool)
    return KnownTool(
        shown,
        _checker(tool.name, body.get("inputSchema"), len(shown.input_schema_json)),
        _checker(tool.name, body.get("outputSchema"), len(shown.output_schema_json)),
    )


def _checker(name: str, schema: Any, size: int) -> Checker | None:
    if schema is None:
        return None
    try:
        return Checker(schema, size)
    except UnusableSchemaError as error:
        _log.warning("tool_schema_unusable", tool=name, error=str(error))
        return None


def _check_structured(checker: Checker, answer: types.CallToolResult) -> None:
    try:
        wrong = checker.violation(answer.structured_content)
    except UnusableSchemaError:
        return
    if wrong is not None:
        raise CallFailedError(INTERNAL_ERROR, f"the result is not as the tool's own schema has it: {' '.join(wrong)}")


async def _first(*events: asyncio.Event) -> None:
    tasks = [asyncio.ensure_future(one.wait()) for one in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _cause(error: BaseException) -> str:
    """Find what lies at the bottom of nested groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
