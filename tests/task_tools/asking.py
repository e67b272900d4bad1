"""A server of tasks as any MCP client has it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from mcp import Client


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool answered."""

    text: str
    data: Any
    is_error: bool


class Tools:
    """The server's tools."""

    def __init__(self, client: Client) -> None:
        """`client` is connected."""
        self.client = client

    async def __call__(self, tool: str, /, *, meta: Any = None, **arguments: Any) -> Answer:
        """Call a tool."""
        result: Any = await self.client.call_tool(tool, arguments, meta=meta)
        text = "\n".join(one.text for one in result.content)
        return Answer(text, result.structured_content or {}, bool(result.is_error))


Open = Callable[..., AbstractAsyncContextManager[Tools]]
