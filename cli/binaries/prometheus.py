"""Prometheus and its promtool: installed ones, else Debian's package unpacked into the cache."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from cli.binaries.build import Progress
from cli.binaries.debian import unpacked
from cli.errors import MissingTool

_PACKAGE = "prometheus"


@dataclass(frozen=True)
class Prometheus:
    """Paths of the server and of the tool that checks its files."""

    server: Path
    promtool: Path


def prometheus(progress: Progress) -> Prometheus:
    """An installed Prometheus, else the one in the cache, else Debian's, unpacked into it.

    Raises:
        MissingTool: it is not installed, and this is no Debian.
        CommandError: it cannot be downloaded.
    """
    server, promtool = shutil.which("prometheus"), shutil.which("promtool")
    if server is not None and promtool is not None:
        return Prometheus(Path(server), Path(promtool))
    programs = unpacked(_PACKAGE, progress) / "usr" / "bin"
    found = Prometheus(programs / "prometheus", programs / "promtool")
    if not found.server.exists() or not found.promtool.exists():
        raise MissingTool(f"{programs} holds no Prometheus: remove that folder and try again.")
    return found
