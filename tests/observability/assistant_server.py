"""An MCP server as assistants have one: its tool sets a task with a reminder, as a client of the task service.

Run as `python assistant_server.py ADDRESS`; the environment's TOKEN says for whom. It goes on with the trace that it
is called in, which the protocol hands over in `_meta`.
"""

import os
import sys
import time
from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from gaggle.task.v1 import task_service_pb2, task_service_pb2_grpc

server = MCPServer("assistant", version="1.0")
_DUE_SECONDS = 4


@server.tool()
async def remind(title: str, ctx: Context) -> str:
    """Remind of something in two seconds; gives the task's id."""
    meta: dict[str, Any] = {**(ctx.request_context.meta or {})}
    metadata = [("authorization", f"Bearer {os.environ['TOKEN']}")]
    if "traceparent" in meta:
        metadata.append(("traceparent", str(meta["traceparent"])))
    request = task_service_pb2.CreateTaskRequest(
        title=title,
        due_time=Timestamp(seconds=int(time.time()) + _DUE_SECONDS),
        reminder_offsets=[Duration(seconds=2)],
    )
    async with grpc.aio.insecure_channel(sys.argv[1], options=(("grpc.enable_http_proxy", 0),)) as channel:
        stub = task_service_pb2_grpc.TaskServiceStub(channel)
        answer = await stub.CreateTask(request, metadata=metadata, timeout=20)
    return str(answer.task.id)


if __name__ == "__main__":
    server.run()
