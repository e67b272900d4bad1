"""Debian's packages, unpacked into the cache: nothing is installed, no script of a package runs, nothing needs root.

apt verifies what it downloads by its archive's signatures. Its lists and archives lie in the cache, too, so that the
system's own are neither needed nor touched. What the machine has installed already is not downloaded again.
"""

import os
import shutil
import subprocess
from pathlib import Path

from cli.binaries.build import Progress
from cli.binaries.cache import cache_directory, exclusive
from cli.errors import CommandError, MissingTool

_ERROR_LINES = 10


def unpacked(package: str, progress: Progress) -> Path:
    """The folder that stands for / of a package and of all that it needs and this machine lacks.

    Raises:
        MissingTool: this is no Debian.
        CommandError: the packages cannot be had; the text ends with what apt said.
    """
    home = cache_directory() / "debian" / package
    if home.exists():
        return home
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise MissingTool(f"{package} is neither installed nor to be had without {program}: install it yourself.")
    with exclusive(home.with_name(f"{package}.lock"), waiting=lambda: progress("waiting for another download", 0)):
        if not home.exists():
            _unpack(package, home, progress)
    return home


def _unpack(package: str, home: Path, progress: Progress) -> None:
    progress(f"{package}, from Debian's packages", 0)
    work = home.with_name(f".{package}.{os.getpid()}")
    lists, archives, root = work / "lists", work / "cache" / "archives", work / "root"
    for folder in (lists / "partial", archives / "partial", root):
        folder.mkdir(parents=True)
    apt = ["apt-get", "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={work / 'cache'}", "--quiet"]
    # The system's locks are for who changes the system.
    apt += ["-o", "Debug::NoLocking=1"]
    try:
        _run([*apt, "update"])
        _run([*apt, "install", "--download-only", "--yes", "--no-install-recommends", package])
        for archive in sorted(archives.glob("*.deb")):
            _run(["dpkg-deb", "--extract", str(archive), str(root)])
        if not any(root.iterdir()):
            raise CommandError(f"apt-get downloaded nothing for {package}: it is installed, and was not found.")
        root.rename(home)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(arguments: list[str]) -> None:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(
        arguments,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        said = "\n".join(result.stdout.strip().splitlines()[-_ERROR_LINES:])
        raise CommandError(f"{' '.join(arguments)} failed:\n{said}")
