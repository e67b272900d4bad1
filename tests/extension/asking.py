"""A user's calls of the extension service."""

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from gaggle.extension.v1 import extension_pb2, extension_service_pb2_grpc
from gaggle.extension.v1 import extension_service_pb2 as api
from tests.mcp_servers import servers

TIMEOUT_SECONDS = 90.0
Metadata = tuple[tuple[str, str], ...]


class Asker:
    """One user's way to the service: `await asker("GetExtension", name="time")`."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata, *, timeout: float = TIMEOUT_SECONDS) -> None:
        """`metadata` goes with every call; `timeout` in seconds."""
        self.metadata = metadata
        self.timeout = timeout
        self._stub: Any = extension_service_pb2_grpc.ExtensionServiceStub(channel)

    async def __call__(self, method: str, **fields: Any) -> Any:
        """Make a unary call; `fields` are the request's."""
        request = getattr(api, f"{method}Request")(**fields)
        return await getattr(self._stub, method)(request, metadata=self.metadata, timeout=self.timeout)

    async def register(self, config: extension_pb2.ExtensionConfig, **fields: Any) -> str:
        """Register an extension; gives its id."""
        return str((await self("RegisterExtension", config=config, **fields)).extension.id)

    async def loaded(self, config: extension_pb2.ExtensionConfig, **fields: Any) -> str:
        """Register an extension and load it; gives its id."""
        extension_id = await self.register(config, **fields)
        await self("LoadExtension", extension_id=extension_id)
        return extension_id

    async def connection(self, extension_id: str) -> extension_pb2.Connection:
        """How the user is connected."""
        found = await self("GetExtension", extension_id=extension_id)
        connection: extension_pb2.Connection = found.extension.connection
        return connection

    def stream(self, tool_name: str, arguments: dict[str, Any] | None = None, **fields: Any) -> Any:
        """Begin a tool call, and give the stream."""
        fields.setdefault("arguments_json", json.dumps(arguments or {}))
        request = api.CallToolRequest(tool_name=tool_name, **fields)
        return self._stub.CallTool(request, metadata=self.metadata, timeout=self.timeout)

    async def responses(
        self, tool_name: str, arguments: dict[str, Any] | None = None, **fields: Any
    ) -> AsyncIterator[api.CallToolResponse]:
        """Call a tool, and give what comes."""
        async for response in self.stream(tool_name, arguments, **fields):
            yield response

    async def call(
        self, tool_name: str, arguments: dict[str, Any] | None = None, **fields: Any
    ) -> api.CallToolResponse:
        """Call a tool, and give the outcome."""
        outcome: api.CallToolResponse | None = None
        async for response in self.responses(tool_name, arguments, **fields):
            outcome = response
        assert outcome is not None
        return outcome

    async def text(self, tool_name: str, arguments: dict[str, Any] | None = None, **fields: Any) -> str:
        """Call a tool, and give the text of its result."""
        outcome = await self.call(tool_name, arguments, **fields)
        assert outcome.WhichOneof("event") == "result", outcome
        assert not outcome.result.is_error, outcome
        return str(outcome.result.content[0].text.text)


def odd(name: str = "odd", **fields: Any) -> extension_pb2.ExtensionConfig:
    """Configure the server of our own."""
    return stdio(name, *servers.ODD, **fields)


def stdio(name: str, cmd: str, *args: str, **fields: Any) -> extension_pb2.ExtensionConfig:
    """Configure a child process."""
    body = extension_pb2.StdioConfig(cmd=cmd, args=args, **fields)
    return extension_pb2.ExtensionConfig(name=name, stdio=body)


def http(name: str, uri: str, **fields: Any) -> extension_pb2.ExtensionConfig:
    """Configure a server that is reached by HTTP."""
    body = extension_pb2.StreamableHttpConfig(uri=uri, **fields)
    return extension_pb2.ExtensionConfig(name=name, streamable_http=body)
