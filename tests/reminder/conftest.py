"""Fixtures: users of the reminder service of the shared mesh."""

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from tests.mesh_fixture import Mesh
from tests.reminder.reminding import Reminding


@pytest.fixture
async def channels(mesh: Mesh) -> AsyncIterator[tuple[grpc.aio.Channel, grpc.aio.Channel]]:
    """The reminder service's own port, and the task service's."""
    async with mesh.channel("reminder") as reminders, mesh.channel("task") as tasks:
        yield reminders, tasks


@pytest.fixture
def reminding(mesh: Mesh, channels: tuple[grpc.aio.Channel, grpc.aio.Channel], user: str) -> Reminding:
    """The test's user."""
    return Reminding(mesh, *channels, user)


@pytest.fixture
def stranger(mesh: Mesh, channels: tuple[grpc.aio.Channel, grpc.aio.Channel], user: str) -> Reminding:
    """Another user."""
    return Reminding(mesh, *channels, f"{user}-stranger")
