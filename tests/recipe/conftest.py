"""Fixtures: users of the recipe service of the shared mesh."""

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from tests.mesh_fixture import Mesh
from tests.recipe.running import Cook


@pytest.fixture
async def channel(mesh: Mesh) -> AsyncIterator[grpc.aio.Channel]:
    """The service's own port."""
    async with mesh.channel("recipe") as open_channel:
        yield open_channel


@pytest.fixture
def cook(mesh: Mesh, channel: grpc.aio.Channel, user: str) -> Cook:
    """The test's user."""
    return Cook(channel, mesh.metadata(user))


@pytest.fixture
def stranger(mesh: Mesh, channel: grpc.aio.Channel, user: str) -> Cook:
    """Another user."""
    return Cook(channel, mesh.metadata(f"{user}-stranger"))
