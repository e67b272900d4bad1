"""The extension service, as one user at a terminal has it."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc

from cli.conversations.client import Client
from cli.conversations.errors import Failure, ServiceRefusedError, UnreachableError
from gaggle.extension.v1 import extension_pb2
from gaggle.extension.v1 import extension_service_pb2 as pb
from gaggle.extension.v1.extension_service_pb2_grpc import ExtensionServiceStub

SERVICE = "extension"


class ExtensionClient:
    """Registers, loads and calls. Every call carries an id, so every call may be repeated."""

    def __init__(self, client: Client) -> None:
        """`client` knows where the service is, and who is calling."""
        self._client = client
        self._stub: Any = ExtensionServiceStub(client.channel)

    async def add(
        self, config: extension_pb2.ExtensionConfig, *, enabled: bool, shared: bool
    ) -> extension_pb2.Extension:
        """Register one. Raises as Client.call."""
        request = pb.RegisterExtensionRequest(request_id=_id(), config=config, enabled=enabled, shared=shared)
        return (await self._client.call(self._stub.RegisterExtension, request, pb.RegisterExtensionResponse)).extension

    async def get(self, name: str) -> extension_pb2.Extension:
        """One, by name. Raises as Client.call."""
        request = pb.GetExtensionRequest(name=name)
        return (await self._client.call(self._stub.GetExtension, request, pb.GetExtensionResponse)).extension

    async def all(self, request: pb.ListExtensionsRequest) -> AsyncIterator[extension_pb2.Extension]:
        """Those that pass the request's filters. Raises as Client.call."""
        while True:
            page = await self._client.call(self._stub.ListExtensions, request, pb.ListExtensionsResponse)
            for extension in page.extensions:
                yield extension
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def load(self, name: str) -> pb.LoadExtensionResponse:
        """Connect. Raises as Client.call."""
        request = pb.LoadExtensionRequest(request_id=_id(), name=name)
        return await self._client.call(self._stub.LoadExtension, request, pb.LoadExtensionResponse)

    async def unload(self, name: str) -> None:
        """Disconnect. Raises as Client.call."""
        request = pb.UnloadExtensionRequest(request_id=_id(), name=name)
        await self._client.call(self._stub.UnloadExtension, request, pb.UnloadExtensionResponse)

    async def remove(self, extension_id: str) -> None:
        """Take one away. Raises as Client.call."""
        request = pb.DeleteExtensionRequest(request_id=_id(), extension_id=extension_id)
        await self._client.call(self._stub.DeleteExtension, request, pb.DeleteExtensionResponse)

    async def tools(self, name: str) -> list[extension_pb2.Tool]:
        """All tools. Raises as Client.call."""
        request = pb.ListToolsRequest(name=name)
        found: list[extension_pb2.Tool] = []
        while True:
            page = await self._client.call(self._stub.ListTools, request, pb.ListToolsResponse)
            found += page.tools
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def call(self, request: pb.CallToolRequest) -> AsyncIterator[pb.CallToolResponse]:
        """Call a tool: what happens, then the outcome.

        Raises:
            ServiceRefusedError: the service said no.
            UnreachableError: nothing answered.
        """
        target = self._client.target
        stream = (("dapr-stream", "true"),) if target.app_id else ()
        call = self._stub.CallTool(request, metadata=(*target.metadata(), *stream))
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            failure = Failure.of(error)
            if failure.reason or not failure.is_transient:
                raise ServiceRefusedError(failure) from error
            raise UnreachableError(f"{target.address} does not answer: {failure}") from error
        finally:
            call.cancel()


def _id() -> str:
    return f"cli-{uuid.uuid4()}"
