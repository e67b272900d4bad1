"""`gaggle cluster ready`, which `helm test` runs."""

import pytest
from typer.testing import CliRunner

from cli.cluster import app
from cli.errors import CommandError
from tests.mesh_fixture import Mesh

pytestmark = pytest.mark.mesh


def test_readiness_is_asked_of_all_and_told_of_each(mesh: Mesh) -> None:
    """It fails and names every service that takes no calls, beside those that do."""
    there = [mesh.service(name).replicas[0].address for name in ("conversation", "audit", "sync")]
    away = ["127.0.0.1:1", "127.0.0.1:2"]
    runner = CliRunner()

    assert runner.invoke(app, ["ready", *there]).exit_code == 0
    result = runner.invoke(app, ["ready", *away, *there, "--timeout", "1"])

    assert [line.split(": ") for line in result.stdout.splitlines()[2:]] == [[one, "SERVING"] for one in there]
    assert isinstance(result.exception, CommandError)
    assert all(f"{one} is DEADLINE_EXCEEDED" in str(result.exception) for one in away)
