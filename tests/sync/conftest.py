"""Fixtures: the sync service in this process."""

from collections.abc import AsyncIterator

import pytest

from tests.sync.serving import Served, serving


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """The service as it comes, save for its patience."""
    async with serving(first_frame_seconds=0.5) as running:
        yield running
