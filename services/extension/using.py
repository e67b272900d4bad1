"""Loads and unloads extensions, lists their tools and calls them, here or at the replica that holds the connection."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from google.protobuf.message import Message

from gaggle.conversation.v1 import message_pb2
from gaggle.extension.v1 import extension_pb2
from gaggle.extension.v1 import extension_service_pb2 as api
from services.extension import domain, results
from services.extension.calls import CallLedger, Tell
from services.extension.connection import KnownTool
from services.extension.connections import Connections, Live, MovedError
from services.extension.errors import CallFailedError, ConnectionLostError, ExtensionUnavailableError
from services.extension.peers import AwayError, Peers
from services.extension.registry import digest_of, unload
from services.extension.schema import UnusableSchemaError
from services.extension.settings import ExtensionSettings
from services.extension.store import Draft, ExtensionStore, View
from services.runtime import paging
from services.runtime.call import remaining_seconds
from services.runtime.errors import (
    DeadlineError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    TooLargeError,
    UnavailableError,
)
from services.runtime.identity import Caller
from services.runtime.requests import body_hash
from services.runtime.state import Item

MAX_RESPONSE_BYTES = 3 * 1024 * 1024
_DEFAULT_PAGE = 100
_MAX_PAGE = 500
_ATTEMPTS = 3
_SPARE_SECONDS = 5.0
T = TypeVar("T")


class Use:
    """What a user does with extensions, beside registering them."""

    def __init__(
        self,
        store: ExtensionStore,
        connections: Connections,
        peers: Peers,
        settings: ExtensionSettings,
        issue: Callable[[str], str],
    ) -> None:
        """`connections` are this replica's, `peers` the ways to the others; `issue` gives a token for a user."""
        self._store = store
        self._connections = connections
        self._peers = peers
        self._settings = settings
        self._issue = issue
        self._ledger = CallLedger(
            grace_seconds=settings.call_grace_seconds,
            answer_seconds=settings.answer_seconds,
            answers_bytes=settings.answers_bytes,
        )

    async def close(self) -> None:
        """End all calls."""
        await self._ledger.close()

    # -- loading

    async def load(
        self, caller: Caller, extension_id: str, request: api.LoadExtensionRequest, *, passed_on: bool
    ) -> bytes:
        """Connect, and note that it is loaded."""

        async def here(view: View) -> bytes:
            try:
                live = await self._connections.open(view)
                return await self._connections.note_loaded(
                    view,
                    live,
                    request_id=request.request_id,
                    digest=digest_of("LoadExtension", request),
                    answer=lambda connection, count: api.LoadExtensionResponse(
                        extension_id=extension_id, load_time=connection.load_time, tool_count=count
                    ).SerializeToString(),
                )
            except ConnectionLostError as error:
                raise self._lost(view, str(error)) from error

        view = await self._store.view(caller.user_id, extension_id)
        _check_runnable(view)
        return await self._at_holder(view, "LoadExtension", request, here, passed_on=passed_on)

    async def unload(
        self, caller: Caller, extension_id: str, request: api.UnloadExtensionRequest, *, passed_on: bool
    ) -> bytes:
        """Disconnect, and note that it is not loaded."""

        async def here(view: View) -> bytes:
            answer = api.UnloadExtensionResponse(extension_id=extension_id).SerializeToString()

            def apply(current: View, _found: Mapping[str, Item]) -> Draft | bytes:
                if current.own is None:
                    return answer
                draft = Draft(current.own, answer)
                unload(draft, current.registration, "unloaded")
                return draft if draft.events or request.request_id else answer

            digest = digest_of("UnloadExtension", request)
            user_id = view.user_id
            given = await self._store.change(user_id, user_id, extension_id, request.request_id, digest, apply)
            await self._connections.close((user_id, extension_id))
            return given

        view = await self._store.view(caller.user_id, extension_id)
        return await self._at_holder(view, "UnloadExtension", request, here, passed_on=passed_on)

    async def changed(self, user_id: str, extension_id: str) -> None:
        """End a connection to what has just been changed, if it is held here; elsewhere it is seen within seconds."""
        await self._connections.recheck(user_id, extension_id)

    # -- tools

    async def tools(
        self, caller: Caller, extension_id: str, request: api.ListToolsRequest, *, passed_on: bool
    ) -> bytes:
        """List the tools."""

        async def here(view: View) -> bytes:
            live = await self._connections.use(view)
            try:
                known = await live.connection.tools()
            except (ConnectionLostError, CallFailedError) as error:
                raise self._lost(view, str(error)) from error
            return _page(view, request, [one.tool for one in known.values()])

        view = await self._store.view(caller.user_id, extension_id)
        if domain.type_of(view.registration.config) == "frontend":
            return _page(view, request, [_declared(one) for one in view.registration.config.frontend.tools_json])
        _check_loaded(view)
        return await self._at_holder(view, "ListTools", request, here, passed_on=passed_on)

    async def call(
        self, caller: Caller, extension_id: str, request: api.CallToolRequest, *, passed_on: bool
    ) -> AsyncIterator[api.CallToolResponse | bytes]:
        """Call a tool: what happens, then the outcome."""
        for _ in range(_ATTEMPTS):
            view = await self._store.view(caller.user_id, extension_id)
            _check_loaded(view)
            try:
                if not passed_on and self._elsewhere(view):
                    assert view.post is not None
                    seconds = self._timeout(view, request) + self._settings.start_timeout_seconds + _SPARE_SECONDS
                    async with aclosing(self._peers.stream(view.post, "CallTool", request, seconds)) as responses:  # type: ignore[type-var]
                        async for passed in responses:
                            yield passed
                    return
            except AwayError:
                pass
            try:
                live = await self._connections.use(view)
            except MovedError:
                continue
            tool, arguments = await self._checked(view, live, request)
            work = self._work(view, live, tool, arguments, request)
            digest = body_hash("CallTool", request)
            async with aclosing(self._ledger.run(caller.user_id, request.call_id, digest, work)) as told:  # type: ignore[type-var]
                async for response in told:
                    yield response
            return
        raise UnavailableError("the replica that holds the connection")

    async def cancel(
        self, caller: Caller, extension_id: str, request: api.CancelToolCallRequest, *, passed_on: bool
    ) -> bytes:
        """End a running call."""

        async def here(_view: View) -> bytes:
            cancelled = self._ledger.cancel(caller.user_id, request.call_id)
            return api.CancelToolCallResponse(cancelled=cancelled).SerializeToString()

        view = await self._store.view(caller.user_id, extension_id)
        return await self._at_holder(view, "CancelToolCall", request, here, passed_on=passed_on)

    # -- the way there

    def _elsewhere(self, view: View) -> bool:
        """Tell whether the signpost names another replica."""
        own = self._connections.post
        return view.post is not None and view.post.process != own.process and view.post.address != own.address

    async def _at_holder(
        self,
        view: View,
        method: str,
        request: Message,
        here: Callable[[View], Awaitable[bytes]],
        *,
        passed_on: bool,
    ) -> bytes:
        """Do it at the replica that holds the connection, else here."""
        for _ in range(_ATTEMPTS):
            if not passed_on and self._elsewhere(view):
                assert view.post is not None
                try:
                    seconds = remaining_seconds(self._settings.call_timeout_seconds)
                    return await self._peers.unary(view.post, method, request, seconds)
                except AwayError:
                    pass
            try:
                return await here(view)
            except MovedError:
                view = await self._store.view(view.user_id, view.extension_id)
        raise UnavailableError("the replica that holds the connection")

    def _lost(self, view: View, what: str) -> ExtensionUnavailableError:
        return ExtensionUnavailableError(
            view.registration.config.name, what, state=domain.STATE_NAMES[view.state], retry_after_seconds=None
        )

    # -- calling

    def _timeout(self, view: View, request: api.CallToolRequest) -> float:
        config = view.registration.config
        declared = getattr(config, domain.type_of(config)).timeout
        asked = request.timeout if request.HasField("timeout") else declared
        seconds = asked.ToNanoseconds() / 1e9
        return float(min(seconds or self._settings.tool_timeout_seconds, self._settings.max_tool_timeout_seconds))

    async def _checked(self, view: View, live: Live, request: api.CallToolRequest) -> tuple[KnownTool, dict[str, Any]]:
        """Find the tool and check the arguments. Raises NotFoundError or InvalidArgumentError."""
        try:
            known = (await live.connection.tools()).get(request.tool_name)
        except (ConnectionLostError, CallFailedError) as error:
            raise self._lost(view, str(error)) from error
        if known is None or not domain.allows(view.registration.config, request.tool_name):
            raise NotFoundError("tool", request.tool_name)
        arguments = read_object(request.arguments_json or "{}", "arguments_json")
        if known.arguments is not None:
            try:
                wrong = known.arguments.violation(arguments)
            except UnusableSchemaError:
                wrong = None  # The server's own check is all there is.
            if wrong is not None:
                raise InvalidArgumentError({f"arguments_json{wrong[0]}": wrong[1]})
        return known, arguments

    def _work(
        self, view: View, live: Live, known: KnownTool, arguments: dict[str, Any], request: api.CallToolRequest
    ) -> Callable[[Tell], Awaitable[api.CallToolResponse]]:
        seconds = self._timeout(view, request)

        async def work(tell: Tell) -> api.CallToolResponse:
            started = api.CallStarted(extension_id=view.extension_id)
            started.timeout.FromNanoseconds(int(seconds * 1e9))
            tell(api.CallToolResponse(started=started))

            async def on_progress(progress: float, total: float | None, message: str | None) -> None:
                shown = api.CallProgress(progress=progress, message=results.clean(message or "")[:1024])
                if total is not None:
                    shown.total = total
                tell(api.CallToolResponse(progress=shown))

            def on_log(level: str, logger: str, data: Any) -> None:
                text = results.to_json(data)
                if len(text) <= self._settings.max_result_bytes:
                    shown = api.CallLog(level=level, logger=results.clean(logger)[:256], data_json=text)
                    tell(api.CallToolResponse(log=shown))

            try:
                async with asyncio.timeout(seconds):
                    answer = await live.connection.call(
                        known.tool.name,
                        arguments,
                        call_id=request.call_id,
                        token=self._issue(view.user_id) if live.acting else "",
                        on_progress=on_progress,
                        on_log=on_log,
                    )
            except TimeoutError:
                raise DeadlineError(f"tool {known.tool.name!r}") from None
            except ConnectionLostError as error:
                raise self._lost(view, f"died while the call ran: {error}") from error
            except CallFailedError as error:
                live.answered = True
                return api.CallToolResponse(error=_error(error))
            live.answered = True
            return api.CallToolResponse(result=_bounded(answer, self._settings.max_result_bytes))

        return work


def read_object(text: str, field: str) -> dict[str, Any]:
    """Read a JSON object. Raises InvalidArgumentError."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError({field: f"is no JSON: {error}"}) from error
    if not isinstance(value, dict):
        raise InvalidArgumentError({field: "must be a JSON object"})
    return value


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _check_runnable(view: View) -> None:
    kind = domain.type_of(view.registration.config)
    if kind not in domain.RUNNABLE:
        raise FailedPreconditionError(
            f"extensions of type {kind!r} are kept, but not run here", metadata={"type": kind}
        )
    if not view.registration.enabled:
        raise FailedPreconditionError("the extension is disabled", metadata={"state": "disabled"})


def _check_loaded(view: View) -> None:
    _check_runnable(view)
    if view.state not in (domain.LOADED, domain.RESTARTING):
        state = domain.STATE_NAMES[view.state]
        raise FailedPreconditionError(f"the extension is {state}; load it", metadata={"state": state})


def _bounded(answer: Any, most: int) -> message_pb2.ToolResult:
    shown = results.result_message(answer)
    if shown.ByteSize() > most:
        raise TooLargeError("the tool's result in bytes", size=shown.ByteSize(), limit=most)
    return shown


def _error(error: CallFailedError) -> api.CallError:
    shown = api.CallError(code=max(-(2**31), min(error.code, 2**31 - 1)), message=results.clean(error.message)[:8192])
    if error.data is not None and len(text := results.to_json(error.data)) <= MAX_RESPONSE_BYTES // 3:
        shown.data_json = text
    return shown


def _declared(text: str) -> extension_pb2.Tool:
    """Describe a tool of a front end, which was checked to be a JSON object with a name."""
    body = json.loads(text)
    return extension_pb2.Tool(
        name=str(body["name"]),
        title=str(body.get("title") or ""),
        description=str(body.get("description") or ""),
        input_schema_json=results.to_json(body.get("inputSchema") or body.get("input_schema") or {}),
    )


def _page(view: View, request: api.ListToolsRequest, tools: list[extension_pb2.Tool]) -> bytes:
    size = paging.page_size(request.page_size, default=_DEFAULT_PAGE, most=_MAX_PAGE)
    scope = ("ListTools", view.user_id, view.extension_id)
    start = int(paging.decode(request.page_token, *scope).get("n", 0))
    offered = [one for one in tools if domain.allows(view.registration.config, one.name)]
    response = api.ListToolsResponse()
    total = 0
    for place, tool in enumerate(offered[start:], start=start):
        total += tool.ByteSize()
        if len(response.tools) == size or (response.tools and total > MAX_RESPONSE_BYTES):
            response.next_page_token = paging.encode({"n": place}, *scope)
            break
        response.tools.append(tool)
    return response.SerializeToString()
