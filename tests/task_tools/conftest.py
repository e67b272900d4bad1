"""Fixtures: `gaggle mcp` as a process of its own, asked by the official client."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest
from mcp import Client, StdioServerParameters

from tests.mesh_fixture import Mesh
from tests.task.tasking import Tasker
from tests.task_tools.asking import Open, Tools


@pytest.fixture
def tools(mesh: Mesh, user: str) -> Open:
    """Starts the server for the test's user, by a token."""

    @asynccontextmanager
    async def start(*arguments: str, token: str | None = None, zone: str = "Europe/Berlin") -> AsyncIterator[Tools]:
        environment = {"GAGGLE_DATA": str(mesh.data.path), "GAGGLE_TIME_ZONE": zone}
        given = mesh.token(user) if token is None else token
        if given:
            environment["GAGGLE_TOKEN"] = given
        command = ["-m", "cli.main", "mcp", *arguments]
        server = StdioServerParameters(command=sys.executable, args=command, env=environment)
        async with Client(server) as client:
            yield Tools(client)

    return start


@pytest.fixture
async def tasker(mesh: Mesh, user: str) -> AsyncIterator[Tasker]:
    """The test's user at the task service itself."""
    async with mesh.channel("task") as channel:
        yield Tasker(channel, mesh.metadata(user))


@pytest.fixture
async def reminder_channel(mesh: Mesh) -> AsyncIterator[grpc.aio.Channel]:
    """The reminder service."""
    async with mesh.channel("reminder") as channel:
        yield channel
