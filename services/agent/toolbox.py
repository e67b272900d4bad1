"""The tools that a turn may call, under the names that its model knows."""

import asyncio
import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gaggle.extension.v1 import extension_pb2
from services.agent.models.base import OfferedTool
from services.agent.peers import Extensions

_MOST_NAME = 64
_LOADED = frozenset({extension_pb2.CONNECTION_STATE_LOADED, extension_pb2.CONNECTION_STATE_RESTARTING})
_UNFIT = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool, and where it is."""

    offered: OfferedTool
    extension_id: str
    name: str
    """As its server knows it."""

    read_only: bool
    """So its server claims."""


class Toolbox:
    """Tools by the model's names: `{extension}__{tool}`, made to fit what providers allow."""

    def __init__(self, tools: Sequence[Tool] = ()) -> None:
        """`tools` in the order in which they are offered."""
        self._tools = {one.offered.name: one for one in tools}

    @property
    def offered(self) -> list[OfferedTool]:
        """What the model is told of."""
        return [one.offered for one in self._tools.values()]

    def find(self, name: str) -> Tool | None:
        """Find a tool by the model's name."""
        return self._tools.get(name)


async def open_toolbox(
    extensions: Extensions, user_id: str, names: Sequence[str], own: Collection[str] = ()
) -> Toolbox:
    """List the tools of some loaded extensions. Raises what the extension service tells.

    `own`: the deployment's, which are loaded for whoever has not done so.
    """

    async def of(name: str) -> list[Tool]:
        found = await extensions.find(user_id, name)
        if name in own and found.connection.state not in _LOADED:
            await extensions.load(user_id, found.id)
        return [
            Tool(
                OfferedTool(model_name(found.key, tool.name), tool.description, tool.input_schema_json),
                found.id,
                tool.name,
                tool.annotations.read_only,
            )
            for tool in await extensions.tools(user_id, found.id)
        ]

    listed = await asyncio.gather(*(of(name) for name in dict.fromkeys(names)))
    return Toolbox([tool for tools in listed for tool in tools])


def model_name(key: str, tool: str) -> str:
    """Join extension and tool as [A-Za-z0-9_-]{1,64}; what does not fit ends in a digest, so that it stays unique."""
    plain = f"{key}__{tool}"
    name = _UNFIT.sub("_", plain)
    if name == plain and len(name) <= _MOST_NAME:
        return name
    digest = hashlib.blake2b(plain.encode(), digest_size=4).hexdigest()
    return f"{name[: _MOST_NAME - len(digest) - 1]}_{digest}"
