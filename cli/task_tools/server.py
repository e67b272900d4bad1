"""The server: the tools, offered by the official SDK on standard streams."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import ParamSpec

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ToolAnnotations

from cli.task_tools.mesh import Where, open_peers
from cli.task_tools.tools import TaskTools
from cli.task_tools.wording import refused

P = ParamSpec("P")

_INSTRUCTIONS = (
    "Tasks and reminders of the user. Times may be given as people say them and are meant in the user's time zone. "
    "A task is named by its id, its title, or a part of its title."
)


def build(tools: TaskTools) -> MCPServer:
    """Offer the tools."""
    server = MCPServer("gaggle-tasks", title="Gaggle tasks", version="0.1.0", instructions=_INSTRUCTIONS)
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    adds = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
    changes = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
    for tool, annotations in (
        (tools.add_task, adds),
        (tools.list_tasks, reads),
        (tools.complete_task, adds),
        (tools.update_task, changes),
        (tools.delete_task, changes),
        (tools.set_reminder, adds),
    ):
        server.tool(annotations=annotations)(_in_words(tool))
    return server


def _in_words(tool: Callable[P, Awaitable[CallToolResult]]) -> Callable[P, Awaitable[CallToolResult]]:
    """Say what a tool refuses as it says it; the SDK puts "Error executing tool" before it."""

    @wraps(tool)
    async def call(*arguments: P.args, **named: P.kwargs) -> CallToolResult:
        try:
            return await tool(*arguments, **named)
        except ToolError as error:
            return refused(str(error))

    return call


async def serve(where: Where, zone: str, timeout_seconds: float) -> None:
    """Serve on standard streams until the client leaves. Raises CommandError where there is no mesh."""
    async with open_peers(where, timeout_seconds) as peers:
        await build(TaskTools(peers, zone)).run_stdio_async()
