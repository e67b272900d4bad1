"""A service that fails as a call tells it: "KEY CODE TIMES" fails so many times, then answers; HANG is a code, too."""

import asyncio
import json
import os
import signal
import time
from collections import defaultdict
from typing import Any

import grpc
import grpc.aio
from dapr.proto.runtime.v1 import appcallback_pb2, appcallback_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as aio_health

DO = "/test.Failing/Do"
"""Do as the request says."""

ATTEMPTS = "/test.Failing/Attempts"
"""When each attempt under a key came, in seconds: a JSON array."""

_HANG_SECONDS = 120.0


class _SidecarHealth(appcallback_pb2_grpc.AppCallbackHealthCheckServicer):
    async def HealthCheck(self, _request: object, _context: object) -> object:  # noqa: N802 - gRPC's name
        return appcallback_pb2.HealthCheckResponse()


class _Failing(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        self._attempts: dict[str, list[float]] = defaultdict(list)

    def service(self, handler_call_details: Any) -> Any:
        handlers = {DO: self._do, ATTEMPTS: self._count}
        handler = handlers.get(handler_call_details.method)
        return None if handler is None else grpc.unary_unary_rpc_method_handler(handler)

    async def _do(self, request: bytes, context: Any) -> bytes:
        key, code, times = request.decode().split()
        attempts = self._attempts[key]
        attempts.append(time.monotonic())
        if len(attempts) > int(times):
            return b"done"
        if code == "HANG":
            await asyncio.sleep(_HANG_SECONDS)
        await context.abort(grpc.StatusCode[code], "as told")
        raise AssertionError

    async def _count(self, request: bytes, _context: Any) -> bytes:
        return json.dumps(self._attempts[request.decode()]).encode()


async def _serve() -> None:
    server = grpc.aio.server()
    health = aio_health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    appcallback_pb2_grpc.add_AppCallbackHealthCheckServicer_to_server(_SidecarHealth(), server)  # type: ignore[no-untyped-call]
    server.add_generic_rpc_handlers((_Failing(),))
    server.add_insecure_port(f"127.0.0.1:{os.environ['APP_PORT']}")
    await server.start()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(grace=0)


if __name__ == "__main__":
    asyncio.run(_serve())
