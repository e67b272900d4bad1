"""Calls passed on to the replica that holds a connection: the same call, by the caller's own token.

Replicas of one service have one app id, and a sidecar would send the call to any of them; so it goes straight to the
replica's own port, which the signpost names. The holder says at once, in the initial metadata, that it is the one; if
that does not come in time it counts as away.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from gaggle.extension.state.v1 import document_pb2
from services.runtime.call import trace_metadata
from services.runtime.errors import UnavailableError
from services.runtime.identity import current_caller
from services.runtime.invocation import told_error
from services.runtime.sidecar import CHANNEL_OPTIONS

PASSED_ON = "gaggle-passed-on"
"""Metadata of a call that was passed on: the process that is meant."""

HOLDER = "gaggle-holder"
"""Initial metadata of the answer: the process that took it."""

_HOLDS = "the replica that holds the connection"
_ACCEPT_SECONDS = 3.0
_SERVICE = "/gaggle.extension.v1.ExtensionService"

_log = structlog.get_logger()


class AwayError(Exception):
    """The replica that was named did not take the call."""


class Peers:
    """The other replicas."""

    def __init__(self, process: str, credentials: grpc.ChannelCredentials | None) -> None:
        """`process` is this one's; with credentials the others are called by TLS."""
        self._process = process
        self._credentials = credentials
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def accept(self, context: Any) -> bool:
        """Tell whether a call was passed on to this process; says so to the one who did.

        Raises UnavailableError if it was meant for another process.
        """
        meant = next((value for name, value in context.invocation_metadata() if name == PASSED_ON), None)
        if meant is None:
            return False
        if meant != self._process:
            raise UnavailableError("the replica that was meant")
        await context.send_initial_metadata(((HOLDER, self._process),))
        return True

    async def unary(self, post: document_pb2.Post, method: str, request: Message, seconds: float | None) -> bytes:
        """Pass a unary call on. Raises AwayError, or what the holder answered."""
        stub: Any = self._channel(post.address).unary_unary(f"{_SERVICE}/{method}")
        call = stub(request.SerializeToString(), metadata=_metadata(post), timeout=seconds)
        await _taken(call, post)
        try:
            return bytes(await call)
        except grpc.aio.AioRpcError as error:
            raise told_error(error, _HOLDS) from error

    async def stream(
        self, post: document_pb2.Post, method: str, request: Message, seconds: float | None
    ) -> AsyncIterator[bytes]:
        """Pass a streaming call on. Raises AwayError before the first response, or what the holder answered."""
        stub: Any = self._channel(post.address).unary_stream(f"{_SERVICE}/{method}")
        call = stub(request.SerializeToString(), metadata=_metadata(post), timeout=seconds)
        try:
            await _taken(call, post)
            try:
                async for response in call:
                    yield bytes(response)
            except grpc.aio.AioRpcError as error:
                raise told_error(error, _HOLDS) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            options = (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0))
            self._channels[address] = (
                grpc.aio.insecure_channel(address, options=options)
                if self._credentials is None
                else grpc.aio.secure_channel(address, self._credentials, options=options)
            )
        return self._channels[address]


def _metadata(post: document_pb2.Post) -> tuple[tuple[str, str], ...]:
    token = current_caller().token
    return (("authorization", f"Bearer {token}"), (PASSED_ON, post.process), *trace_metadata())


async def _taken(call: Any, post: document_pb2.Post) -> None:
    taken = False
    with suppress(TimeoutError, grpc.aio.AioRpcError):
        metadata = await asyncio.wait_for(asyncio.shield(call.initial_metadata()), _ACCEPT_SECONDS)
        taken = metadata is not None and any((name, value) == (HOLDER, post.process) for name, value in metadata)
    if not taken:
        call.cancel()
        _log.info("replica_away", address=post.address)
        raise AwayError(post.address)
