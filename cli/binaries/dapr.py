"""Dapr's own programs: an installed 1.18 is used, else the pinned one is built."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cli.binaries.build import Program, Progress, ensure_built

VERSION = "1.18.2"
# Any patch release of the minor that the mesh is tested with.
_FITTING = VERSION.rsplit(".", 1)[0] + "."
FLAGS = ("-tags=stablecomponents", f"-ldflags=-s -w -X github.com/dapr/dapr/pkg/buildinfo.version={VERSION}")
NAMES = ("daprd", "scheduler", "placement")
# Released daprds have the components of the conversation API; so has dapr/daprd/main.go.
_SOURCES = {"daprd": "./daprd"}
# An earlier build, without them, lies under the plain version.
BUILD = f"{VERSION}-conversation"
PROGRAMS = [
    Program(name, "dapr", _SOURCES.get(name, f"github.com/dapr/dapr/cmd/{name}"), BUILD, FLAGS) for name in NAMES
]
SENTRY = Program("sentry", "dapr", "github.com/dapr/dapr/cmd/sentry", BUILD, FLAGS)


@dataclass(frozen=True)
class DaprBinaries:
    """Paths of the three programs that a mesh on one machine runs."""

    daprd: Path
    scheduler: Path
    placement: Path


def dapr_binaries(progress: Progress) -> DaprBinaries:
    """Dapr 1.18: from PATH, else where `dapr init --slim` puts it, else from the cache, else built into it.

    Raises:
        MissingTool: it is not installed, and there is no Go to build it with.
        CommandError: the build failed.
    """
    found = find_installed()
    if found is not None:
        return found
    ensure_built(PROGRAMS, progress)
    daprd, scheduler, placement = (program.path for program in PROGRAMS)
    return DaprBinaries(daprd=daprd, scheduler=scheduler, placement=placement)


def sentry_binary(binaries: DaprBinaries, progress: Progress) -> Path:
    """The authority that gives sidecars their identities: beside daprd, else built. `dapr init --slim` brings none.

    Raises:
        MissingTool: it is not installed, and there is no Go to build it with.
        CommandError: the build failed.
    """
    beside = binaries.daprd.with_name("sentry")
    if beside.exists():
        return beside
    ensure_built([SENTRY], progress)
    return SENTRY.path


def find_installed() -> DaprBinaries | None:
    """The first folder of PATH and ~/.dapr/bin that holds all three programs, in a version that fits."""
    folders = [*os.get_exec_path(), str(Path.home() / ".dapr" / "bin")]
    for folder in dict.fromkeys(folders):
        paths = [shutil.which(name, path=folder) for name in NAMES]
        if all(paths) and _fits(str(paths[0])):
            daprd, scheduler, placement = (Path(str(path)) for path in paths)
            return DaprBinaries(daprd=daprd, scheduler=scheduler, placement=placement)
    return None


def _fits(daprd: str) -> bool:
    try:
        said = subprocess.run([daprd, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return said.strip().removeprefix("v").startswith(_FITTING)
