"""The stream of the sync service, whatever breaks on the way."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from cli.conversations.client import Client
from cli.conversations.errors import Failure, ServiceRefusedError, UnreachableError
from gaggle.sync.v1 import sync_service_pb2 as pb
from gaggle.sync.v1.sync_service_pb2_grpc import SyncServiceStub

SERVICE = "sync"
_PAUSE_SECONDS = 0.2
_SILENCE_SECONDS = 60.0
"""A stream that has nothing to say says so every 20 seconds; one that does not has died unnoticed."""


async def watch(
    client: Client, request: pb.WatchRequest, *, patience_seconds: float
) -> AsyncIterator[pb.WatchResponse]:
    """Everything from `request.after_position` on, each event once; never ends by itself.

    Raises:
        ServiceRefusedError: the service said no.
        UnreachableError: nothing answered for as long as patience lasts.
    """
    stub: Any = SyncServiceStub(client.channel)
    answered = time.monotonic()
    while True:
        target = client.target
        metadata = target.metadata()
        call = stub.Watch(request, metadata=(*metadata, *((("dapr-stream", "true"),) if target.app_id else ())))
        pause = _PAUSE_SECONDS
        try:
            while True:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    response = await call.read()
                if response is grpc.aio.EOF:
                    break
                answered = time.monotonic()
                request.after_position = response.position
                yield response
        except TimeoutError:
            pass
        except grpc.aio.AioRpcError as error:
            failure = Failure.of(error)
            # The local mesh's key signs a new token when the old one ends; a token that was given stays what it is.
            renewed = failure.reason == "EXPIRED_TOKEN" and target.metadata() != metadata
            if not failure.is_transient and not renewed:
                raise ServiceRefusedError(failure) from error
            if time.monotonic() - answered > patience_seconds + _SILENCE_SECONDS:
                raise UnreachableError(f"{target.address} does not answer any more: {failure}") from error
            pause = failure.retry_after_seconds or _PAUSE_SECONDS
        finally:
            call.cancel()
        await asyncio.sleep(pause)
