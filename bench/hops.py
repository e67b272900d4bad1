"""The two bare services Gaggle is held against: grpc.aio on uvloop and nothing else.

`python -m bench.hops empty FILE` answers with the file's bytes; `python -m bench.hops relay SIDECAR STORE KEY` with
what the sidecar's GetState gives. Prints the port it listens on.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import uvloop
from dapr.proto.runtime.v1 import dapr_pb2_grpc, state_pb2

Method = Callable[[bytes, Any], Awaitable[bytes]]


def empty(file: str) -> Method:
    """Make a method of one line."""
    answer = Path(file).read_bytes()

    async def get(_request: bytes, _context: Any) -> bytes:
        return answer

    return get


def relay(sidecar: str, store: str, key: str) -> Method:
    """Make a method that passes on what lies in the store."""
    stub: Any = dapr_pb2_grpc.DaprStub(grpc.aio.insecure_channel(sidecar))  # type: ignore[no-untyped-call]

    async def get(_request: bytes, _context: Any) -> bytes:
        response = await stub.GetState(state_pb2.GetStateRequest(store_name=store, key=key))
        return bytes(response.data)

    return get


async def _serve(make: Callable[..., Method], arguments: list[str]) -> None:
    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(make(*arguments))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("gaggle.bench.v1.Hop", {"Get": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    makers: dict[str, Callable[..., Method]] = {"empty": empty, "relay": relay}
    uvloop.run(_serve(makers[sys.argv[1]], sys.argv[2:]))
