"""Fixtures: users of the extension service of the shared mesh."""

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from tests.extension.asking import Asker
from tests.mesh_fixture import Mesh


@pytest.fixture
async def channel(mesh: Mesh) -> AsyncIterator[grpc.aio.Channel]:
    """The service's own port."""
    async with mesh.channel("extension") as open_channel:
        yield open_channel


@pytest.fixture
def asker(mesh: Mesh, channel: grpc.aio.Channel, user: str) -> Asker:
    """The test's user."""
    return Asker(channel, mesh.metadata(user))


@pytest.fixture
def stranger(mesh: Mesh, channel: grpc.aio.Channel, user: str) -> Asker:
    """Another user."""
    return Asker(channel, mesh.metadata(f"{user}-stranger"))


@pytest.fixture
def admin(mesh: Mesh, channel: grpc.aio.Channel, user: str) -> Asker:
    """Someone with the role."""
    return Asker(channel, mesh.metadata(f"{user}-admin", roles=["admin"]))
