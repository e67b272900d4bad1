"""A real browser without a screen, driven by what its command line can do."""

import os
import subprocess
import tempfile
from pathlib import Path

from cli.binaries.chromium import Chromium

_BUDGET_MILLISECONDS = 9_000
_SECONDS = 120


def dom(browser: Chromium, address: str, *options: str) -> str:
    """The page as it stands once its scripts have run for nine seconds of their own time."""
    return _run(browser, "--dump-dom", *options, address)


def screenshot(browser: Chromium, address: str, path: Path, *, width: int, height: int, dark: bool = False) -> None:
    """A picture of the page."""
    scheme = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    _run(browser, f"--screenshot={path}", f"--window-size={width},{height}", *scheme, address)


def _run(browser: Chromium, *arguments: str) -> str:
    with tempfile.TemporaryDirectory() as profile:
        result = subprocess.run(
            browser.arguments(
                f"--user-data-dir={profile}", f"--virtual-time-budget={_BUDGET_MILLISECONDS}", *arguments
            ),
            env={**os.environ, **browser.environment, "HOME": profile},
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout
