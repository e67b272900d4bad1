"""The extension service's methods: read the request, call the domain, shape the answer."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from gaggle.extension.v1 import extension_service_pb2 as api
from gaggle.extension.v1 import extension_service_pb2_grpc as api_grpc
from services.extension import validation
from services.extension.domain import TYPES
from services.extension.peers import Peers
from services.extension.registry import Registry
from services.extension.store import ExtensionStore
from services.extension.using import Use
from services.runtime.access import Access, user_or
from services.runtime.errors import TooLargeError
from services.runtime.identity import current_caller
from services.runtime.validation import Violations

_WORKERS = ("agent", "recipe")

EXTENSION_ACCESS: dict[str, Access] = {
    "RegisterExtension": user_or("recipe"),
    "GetExtension": user_or(*_WORKERS),
    "ListExtensions": user_or(*_WORKERS),
    "LoadExtension": user_or(*_WORKERS),
    "UnloadExtension": user_or(*_WORKERS),
    "ListTools": user_or(*_WORKERS),
    "CallTool": user_or(*_WORKERS),
    "CancelToolCall": user_or(*_WORKERS),
}
"""Save for these, methods are for users' own clients."""


class ExtensionServicer(api_grpc.ExtensionServiceServicer):
    """Serves gaggle.extension.v1.ExtensionService."""

    def __init__(self, store: ExtensionStore, registry: Registry, use: Use, peers: Peers) -> None:
        """`use` is what needs a connection."""
        self._store = store
        self._registry = registry
        self._use = use
        self._peers = peers

    async def RegisterExtension(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = Violations()
        violations.id("request_id", request.request_id, required=False)
        validation.config(violations, request.config)
        violations.raise_if_any()
        return await self._registry.register(current_caller(), request)

    async def GetExtension(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        extension_id = await self._named(request)
        return api.GetExtensionResponse(extension=await self._registry.get(current_caller(), extension_id))

    async def ListExtensions(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = Violations()
        violations.check(ok=request.type == 0 or request.type in TYPES, field="type", what="is not known")
        size = len(request.name_prefix.encode())
        violations.check(ok=size <= validation.MAX_NAME_BYTES, field="name_prefix", what="at most 128 bytes")
        violations.raise_if_any()
        return await self._registry.list(current_caller(), request)

    async def UpdateExtension(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = Violations()
        if request.HasField("config"):
            validation.config(violations, request.config)
        extension_id = await self._named(request, violations)
        answer = await self._registry.update(current_caller(), extension_id, request)
        await self._use.changed(current_caller().user_id, extension_id)
        return answer

    async def DeleteExtension(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.named(request).raise_if_any()
        await self._registry.delete(current_caller(), request)
        await self._use.changed(current_caller().user_id, request.extension_id)
        return api.DeleteExtensionResponse()

    async def LoadExtension(self, request: Any, context: Any) -> Any:
        """See the contract."""
        extension_id = await self._named(request)
        passed_on = await self._peers.accept(context)
        return await self._use.load(current_caller(), extension_id, request, passed_on=passed_on)

    async def UnloadExtension(self, request: Any, context: Any) -> Any:
        """See the contract."""
        extension_id = await self._named(request)
        passed_on = await self._peers.accept(context)
        return await self._use.unload(current_caller(), extension_id, request, passed_on=passed_on)

    async def ListTools(self, request: Any, context: Any) -> Any:
        """See the contract."""
        extension_id = await self._named(request)
        passed_on = await self._peers.accept(context)
        return await self._use.tools(current_caller(), extension_id, request, passed_on=passed_on)

    async def CallTool(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """See the contract."""
        violations = Violations()
        violations.id("call_id", request.call_id, required=False)
        size = len(request.tool_name.encode())
        violations.check(
            ok=0 < size <= validation.MAX_TOOL_NAME_BYTES, field="tool_name", what="must be 1 to 256 bytes"
        )
        if request.HasField("timeout"):
            validation.duration(violations, "timeout", request.timeout)
        size = len(request.arguments_json)
        if size > validation.MAX_ARGUMENTS_BYTES:
            raise TooLargeError("arguments_json in bytes", size=size, limit=validation.MAX_ARGUMENTS_BYTES)
        extension_id = await self._named(request, violations)
        passed_on = await self._peers.accept(context)
        responses = self._use.call(current_caller(), extension_id, request, passed_on=passed_on)
        async with aclosing(responses):  # type: ignore[type-var]
            async for response in responses:
                yield response

    async def CancelToolCall(self, request: Any, context: Any) -> Any:
        """See the contract."""
        violations = Violations()
        violations.id("call_id", request.call_id, required=True)
        extension_id = await self._named(request, violations)
        passed_on = await self._peers.accept(context)
        return await self._use.cancel(current_caller(), extension_id, request, passed_on=passed_on)

    async def _named(self, request: Any, violations: Violations | None = None) -> str:
        """Check the request, and give the id of the extension that it means."""
        found = validation.named(request)
        if violations is not None:
            found.found.update(violations.found)
        found.raise_if_any()
        if request.WhichOneof("extension") == "name":
            return await self._store.named(current_caller().user_id, request.name)
        return str(request.extension_id)
