"""A state store that cannot keep what is promised is refused before any call is taken."""

from pathlib import Path

import pytest

from cli.errors import CommandError
from tests.mesh_fixture import start_mesh
from tests.stores.swapping import with_store

pytestmark = [pytest.mark.mesh, pytest.mark.slow]


def test_a_store_that_does_not_roll_back_is_refused_at_start(tmp_path: Path) -> None:
    """state.redis, of whose transactions half may stay, ends the service with a line that says why."""
    components = with_store("redis", tmp_path / "sets")

    with pytest.raises(CommandError, match=r"'statestore' is state\.redis, whose transactions do not roll back"):
        start_mesh(tmp_path / "data", components=str(components), only=["conversation"])
