"""The least that a mesh takes for a service: health, for people and for its sidecar. The supervisor's tests run it."""

import asyncio
import os
import signal

import grpc.aio
from dapr.proto.runtime.v1 import appcallback_pb2, appcallback_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as aio_health


class _SidecarHealth(appcallback_pb2_grpc.AppCallbackHealthCheckServicer):
    async def HealthCheck(self, _request: object, _context: object) -> object:  # noqa: N802
        return appcallback_pb2.HealthCheckResponse()


async def _serve() -> None:
    server = grpc.aio.server()
    health = aio_health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    appcallback_pb2_grpc.add_AppCallbackHealthCheckServicer_to_server(_SidecarHealth(), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"127.0.0.1:{os.environ['APP_PORT']}")
    await server.start()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(grace=1)


if __name__ == "__main__":
    asyncio.run(_serve())
