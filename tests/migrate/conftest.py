"""Fixtures: a chatbot with its tables, beside the mesh."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh_fixture import Mesh
from tests.migrate.chatbot import Chatbot, chatbot


@pytest.fixture
def bot(mesh: Mesh, user: str, tmp_path: Path) -> Iterator[Chatbot]:
    """A project with empty tables."""
    with chatbot(mesh, user.replace("-", "_"), tmp_path) as made:
        yield made


@pytest.fixture
def users(user: str) -> list[str]:
    """Users of the test's own."""
    return [f"{user}-{n}" for n in range(4)]
