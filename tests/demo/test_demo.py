"""`gaggle demo`."""

import asyncio
import os
import subprocess
import sys

import pytest

from cli.demo.measuring import Latencies, measure
from cli.mesh.data import PROJECT_ROOT
from tests.mesh_fixture import Mesh


def test_percentiles() -> None:
    """Median and 99th percentile are values that were measured, at any count."""
    hundred = Latencies.of([float(number) for number in range(100, 0, -1)])
    assert (hundred.median, hundred.percentile(99), hundred.percentile(100)) == (50, 99, 100)
    assert Latencies.of([7.0]).percentile(99) == Latencies.of([7.0]).median == 7
    assert Latencies.of([10.0, 30.0]).per_second == 50


async def test_warm_up_is_not_counted() -> None:
    """Calls made to warm up are made, and left out."""
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)

    assert len((await measure(call, 30)).milliseconds) == 30
    assert calls == 50


@pytest.mark.mesh
@pytest.mark.slow
async def test_demo_shows_the_main_job_and_may_be_repeated(mesh: Mesh, user: str) -> None:
    """On a running mesh the demo goes through all its steps, checks what it shows, and does so again the next time."""
    path = os.pathsep.join([str(PROJECT_ROOT), str(PROJECT_ROOT / "gen")])
    told = []
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli.main", "demo", "--user", user, "--reads", "20"),
            env=os.environ | {"GAGGLE_DATA": str(mesh.data.path), "PYTHONPATH": path, "COLUMNS": "120"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        told.append(out.decode())
    assert "440 messages stored" in told[0]
    assert "there already, 440 messages" in told[1]
    app_id = mesh.service("conversation").app_id
    for words in map(str.split, told):
        text = " ".join(words)
        assert "It runs already" in text
        assert "is told of once, and no revision of the" in text
        assert "append one message, durable" in text
        assert f"dapr-app-id: {app_id}" in text
