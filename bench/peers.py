"""The peers' virtual environment: their own, since they want other versions of what we use."""

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from bench.ghz import Failed
from cli.binaries.cache import cache_directory, exclusive

LOCK = Path(__file__).with_name("requirements-peers.lock")


def interpreter() -> Path:
    """Give the peers' Python, installing what the lock file pins if this version of it is not there yet.

    Raises Failed.
    """
    digest = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:12]
    place = cache_directory() / f"bench-venv-{digest}"
    python = place / "bin" / "python"
    installed = place / "installed"
    with exclusive(place.with_suffix(".lock"), waiting=lambda: None):
        if installed.exists():
            return python
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=True)
        done = subprocess.run(
            [
                str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                "--require-hashes", "--requirement", str(LOCK),
            ],
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise Failed(f"the peers could not be installed:\n{done.stderr.strip()[-800:]}")
        installed.touch()
    return python
