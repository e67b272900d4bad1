"""A tool call: by the bare SDK on a child process of its own, and by the mesh, straight and through two sidecars."""

import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from mcp import Client as McpClient
from mcp import StdioServerParameters

from bench.clients.client import Spec
from gaggle.extension.v1 import extension_pb2
from gaggle.extension.v1 import extension_service_pb2 as api
from gaggle.extension.v1 import extension_service_pb2_grpc as api_grpc

SERVER = (sys.executable, str(Path(__file__).parent.parent / "tool_server.py"))
_TEXT = "x" * 100
_NAME = "bench"


class Tool:
    """One way to the tool."""

    async def prepare(self, history: int) -> None:
        """Make one call, to see that it answers."""
        await self.read(history, 0)

    async def read(self, history: int, caller: int) -> None:
        """Call the tool, and take its text."""
        raise NotImplementedError

    async def append(self, history: int, caller: int) -> None:
        """Nothing is kept."""

    async def reset(self, history: int) -> None:
        """Nothing was kept."""


class Bare(Tool):
    """The SDK's own client and transport."""

    def __init__(self, client: McpClient) -> None:
        """`client` is connected."""
        self._client = client

    async def read(self, history: int, caller: int) -> None:  # noqa: ARG002
        """See Tool."""
        result = await self._client.call_tool("echo", {"text": _TEXT})
        content: Any = result.content[0]
        assert content.text == _TEXT


class Mesh(Tool):
    """The extension service, by its generated stub."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        """`metadata` goes with every call."""
        self._stub: Any = api_grpc.ExtensionServiceStub(channel)
        self._metadata = metadata
        self._request = api.CallToolRequest(name=_NAME, tool_name="echo", arguments_json=json.dumps({"text": _TEXT}))

    async def prepare(self, history: int) -> None:
        """Register and load the server, if that has not been done."""
        config = extension_pb2.ExtensionConfig(name=_NAME)
        config.stdio.cmd = SERVER[0]
        config.stdio.args.append(SERVER[1])
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self._stub.RegisterExtension(api.RegisterExtensionRequest(config=config), metadata=self._metadata)
        await self._stub.LoadExtension(api.LoadExtensionRequest(name=_NAME), metadata=self._metadata)
        found = await self._stub.GetExtension(api.GetExtensionRequest(name=_NAME), metadata=self._metadata)
        self._request.extension_id = found.extension.id
        await super().prepare(history)

    async def read(self, history: int, caller: int) -> None:  # noqa: ARG002
        """See Tool."""
        outcome = None
        async for response in self._stub.CallTool(self._request, metadata=self._metadata):
            outcome = response
        assert outcome is not None
        assert outcome.result.content[0].text.text == _TEXT


@contextlib.asynccontextmanager
async def connect_bare(_spec: Spec) -> AsyncIterator[Bare]:
    """Start a server and connect to it."""
    # The SDK's client must be left by the task that entered it; the worker's main task does both.
    async with McpClient(StdioServerParameters(command=SERVER[0], args=[SERVER[1]])) as client:
        yield Bare(client)


@contextlib.asynccontextmanager
async def connect_straight(spec: Spec) -> AsyncIterator[Mesh]:
    """Connect to the service's own port."""
    async with grpc.aio.insecure_channel(spec.extension) as channel:
        yield Mesh(channel, (("authorization", f"Bearer {spec.token}"),))


@contextlib.asynccontextmanager
async def connect_sidecars(spec: Spec) -> AsyncIterator[Mesh]:
    """Connect to another app's sidecar."""
    through = (("dapr-app-id", spec.extension_app_id), ("dapr-stream", "true"))
    async with grpc.aio.insecure_channel(spec.sidecar_grpc) as channel:
        yield Mesh(channel, (("authorization", f"Bearer {spec.token}"), *through))
