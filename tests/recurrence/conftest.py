"""Fixtures: users of the task service of the shared mesh, whose tasks recur."""

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from tests.mesh_fixture import Mesh
from tests.task.tasking import Tasker


@pytest.fixture
async def channel(mesh: Mesh) -> AsyncIterator[grpc.aio.Channel]:
    """The task service's own port."""
    async with mesh.channel("task") as open_channel:
        yield open_channel


@pytest.fixture
def tasker(mesh: Mesh, channel: grpc.aio.Channel, user: str) -> Tasker:
    """The test's user."""
    return Tasker(channel, mesh.metadata(user))
