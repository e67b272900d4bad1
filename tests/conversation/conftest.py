"""Fixtures: users of the conversation service of the shared mesh."""

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from tests.conversation.talking import Talker
from tests.mesh_fixture import Mesh


@pytest.fixture
async def channel(mesh: Mesh) -> AsyncIterator[grpc.aio.Channel]:
    """The service's own port."""
    async with mesh.channel("conversation") as open_channel:
        yield open_channel


@pytest.fixture
def talker(mesh: Mesh, channel: grpc.aio.Channel, user: str) -> Talker:
    """The test's user."""
    return Talker(channel, mesh.metadata(user))


@pytest.fixture
def stranger(mesh: Mesh, channel: grpc.aio.Channel, user: str) -> Talker:
    """Another user."""
    return Talker(channel, mesh.metadata(f"{user}-stranger"))
