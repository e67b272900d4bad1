"""Whether a process of the mesh is ready, asked the way its clients would."""

import asyncio
import contextlib
import ssl
import struct
import sys
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cli.channels import open_channel
from cli.mesh.ports import LOOPBACK

# One question; a process that takes longer is not ready.
_ANSWER_SECONDS = 2.0
# Questions come from another address than the mesh's own. The kernel gives connections to one place one port after the
# other, out of a range that the mesh's ports lie in; one that was just asked from can't be listened at for a minute.
_ASKED_FROM = ("127.0.0.2", 0) if sys.platform == "linux" else None


async def http_is_ok(port: int, path: str) -> bool:
    """Whether GET answers 2xx; `path` is one of Dapr's health endpoints."""
    request = f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nConnection: close\r\n\r\n".encode()
    answer = await _exchange(port, request)
    return answer is not None and answer.startswith(b"HTTP/1.1 2")


async def redis_is_ready(port: int, password: str) -> bool:
    """Whether Redis answers PING: while it still loads its file, it answers an error."""
    answer = await _exchange(port, f"AUTH {password}\r\nPING\r\nQUIT\r\n".encode(), to_the_end=True)
    return answer is not None and b"+PONG" in answer


async def tcp_is_open(port: int) -> bool:
    """Whether something listens."""
    return await _exchange(port, b"", answers=False) is not None


async def rabbitmq_is_ready(port: int, context: ssl.SSLContext | None) -> bool:
    """Whether RabbitMQ begins a conversation (AMQP 0-9-1, 2.2.4): its listeners open once the rest is there."""
    answer = await _exchange(port, b"AMQP\x00\x00\x09\x01", context)
    # A method frame on channel 0.
    return answer is not None and answer.startswith(b"\x01\x00\x00")


async def kafka_is_ready(port: int, context: ssl.SSLContext | None) -> bool:
    """Whether Kafka answers ApiVersions, the one request that it takes before a client has proved itself."""
    # https://kafka.apache.org/protocol#protocol_messages: key 18, version 0, a correlation id, no client id.
    request = struct.pack(">hhih", 18, 0, 1, -1)
    answer = await _exchange(port, struct.pack(">i", len(request)) + request, context)
    # Size, correlation id, error code.
    return answer is not None and answer[4:10] == struct.pack(">ih", 1, 0)


async def _exchange(
    port: int, request: bytes, context: ssl.SSLContext | None = None, *, answers: bool = True, to_the_end: bool = False
) -> bytes | None:
    """What comes first of an answer, or all of it from a server that ends it; None if nobody listens."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=context, local_addr=_ASKED_FROM)
            if not answers:
                return b""
            writer.write(request)
            await writer.drain()
            return await reader.read(-1 if to_the_end else 4096)
    except (OSError, TimeoutError):
        return None
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class GrpcHealth:
    """grpc.health.v1 of one server, asked over one channel."""

    def __init__(self, port: int, authority: Path | None = None) -> None:
        """`authority` is the file of who signed the server's certificate, if it serves by TLS."""
        # The default back-off (up to two minutes) would leave a restarted service unnoticed.
        options = (
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 500),
        )
        self._channel = open_channel(f"{LOOPBACK}:{port}", authority=authority, options=options)
        self._stub = health_pb2_grpc.HealthStub(self._channel)

    async def is_serving(self) -> bool:
        """Whether the server listens."""
        return bool(await self._status("") == health_pb2.HealthCheckResponse.SERVING)

    async def takes_calls(self) -> bool:
        """Whether it has what it needs; an app that does not tell `ready` apart does as soon as it listens."""
        status = await self._status("ready")
        return status is None or bool(status == health_pb2.HealthCheckResponse.SERVING)

    async def _status(self, name: str) -> int | None:
        """The status of a name; None if the server knows no such name."""
        try:
            answer = await self._stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=_ANSWER_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return None
            return int(health_pb2.HealthCheckResponse.UNKNOWN)
        return int(answer.status)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()
