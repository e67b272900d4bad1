"""Fixtures: users of the notification service of the shared mesh."""

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from tests.mesh_fixture import Mesh
from tests.notification.notifying import Notified


@pytest.fixture
async def channel(mesh: Mesh) -> AsyncIterator[grpc.aio.Channel]:
    """The service's own port."""
    async with mesh.channel("notification") as one:
        yield one


@pytest.fixture
def notified(mesh: Mesh, channel: grpc.aio.Channel, user: str) -> Notified:
    """The test's user."""
    return Notified(mesh, channel, user)


@pytest.fixture
def stranger(mesh: Mesh, channel: grpc.aio.Channel, user: str) -> Notified:
    """Another user."""
    return Notified(mesh, channel, f"{user}-stranger")
