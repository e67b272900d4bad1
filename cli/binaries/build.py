"""Builds one pinned Go program into the cache, telling how far it is."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cli.binaries.cache import cache_directory, exclusive
from cli.binaries.golang import find_go
from cli.errors import CommandError

MODULES = Path(__file__).parent
_ERROR_LINES = 15


@dataclass(frozen=True)
class Program:
    """A program and how it is built.

    Attributes:
        name: the binary's name.
        module: the folder beside this file whose go.mod pins it.
        package: the Go package of its main function.
        version: as pinned; it names the cache's folder.
        flags: further flags of `go build`.
    """

    name: str
    module: str
    package: str
    version: str
    flags: tuple[str, ...] = ("-ldflags=-s -w",)

    @property
    def path(self) -> Path:
        """Where the cache keeps it."""
        return cache_directory() / "bin" / f"{self.module}-{self.version}" / self.name


class Progress(Protocol):
    """Takes what is being done, for a person to see."""

    def __call__(self, what: str, packages: int) -> None:
        """`what` is being built and `packages` of its packages are compiled so far."""


def ensure_built(programs: Sequence[Program], progress: Progress) -> None:
    """Builds what the cache lacks, one after the other: the first compiles most of what the next ones share.

    Raises:
        MissingTool: there is no Go.
        CommandError: the compiler failed; the text ends with what it said.
    """
    if all(program.path.exists() for program in programs):
        return
    with exclusive(cache_directory() / "build.lock", waiting=lambda: progress("waiting for another build", 0)):
        for program in programs:
            # The other build may have made it.
            if not program.path.exists():
                _build(program, progress)


def _build(program: Program, progress: Progress) -> None:
    progress(program.name, 0)
    go = find_go()
    program.path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = program.path.with_name(f".{program.name}.{os.getpid()}")
    # The module file decides, not what a person has set for other projects.
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
    command = [str(go), "build", "-v", "-mod=readonly", "-trimpath", "-buildvcs=false", *program.flags]
    said: list[str] = []
    with subprocess.Popen(
        [*command, "-o", str(unfinished), program.package],
        cwd=MODULES / program.module,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as build:
        assert build.stdout is not None
        for line in build.stdout:
            said.append(line.rstrip())
            progress(program.name, len(said))
    if build.returncode != 0:
        unfinished.unlink(missing_ok=True)
        raise CommandError(f"Building {program.name} {program.version} failed:\n" + "\n".join(said[-_ERROR_LINES:]))
    unfinished.replace(program.path)
