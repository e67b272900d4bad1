"""The `gaggle` command as a person runs it, and the tiny mesh that its tests start."""

import os
import subprocess
import sys
from pathlib import Path

MINI_MESH = Path(__file__).with_name("mini-mesh.yaml")


def gaggle(*arguments: str, data: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs `gaggle ARGUMENTS --data DATA` to its end, at most two minutes."""
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments, "--data", str(data)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )
