"""Java, and jars by Maven from their pinned versions into the cache.

A program's folder holds pom.xml, and jars.lock with the hash of every file that comes of it. An archive is unpacked.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from cli.binaries.build import Progress
from cli.binaries.cache import cache_directory, exclusive
from cli.errors import CommandError, MissingTool

OLDEST_JAVA = 17

_JAVA_VERSION = re.compile(r'version "(\d+)')
_ERROR_LINES = 10


def find_java(program: str) -> Path:
    """A Java that runs `program`: of JAVA_HOME, else of PATH.

    Raises:
        MissingTool: there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    if found is not None:
        said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False).stderr
        version = _JAVA_VERSION.search(said)
        if version is not None and int(version[1]) >= OLDEST_JAVA:
            return Path(found)
    raise MissingTool(
        f"{program} needs Java {OLDEST_JAVA} or newer, and "
        + (f"{found} is older" if found else "there is none on PATH")
        + ": on Debian it is the package openjdk-17-jre-headless."
    )


def jars(program: str, version: str, folder: Path, progress: Progress) -> Path:
    """The folder of a program's jars in the cache, else from Maven's repository into it; `folder` has pom.xml.

    Raises:
        MissingTool: there is no Maven to fetch them with.
        CommandError: they cannot be had, or are not those of jars.lock.
    """
    home = cache_directory() / "bin" / f"{program.lower()}-{version}"
    if home.exists():
        return home
    with exclusive(home.with_name(f"{home.name}.lock"), waiting=lambda: progress("waiting for another download", 0)):
        if not home.exists():
            progress(f"{program} {version}, from Maven's repository", 0)
            unfinished = home.with_name(f".{home.name}.{os.getpid()}")
            _fetch(program, folder, unfinished)
            if _hashes(unfinished) != (folder / "jars.lock").read_text():
                shutil.rmtree(unfinished)
                raise CommandError(
                    f"Maven's repository gave other jars for {program} {version} than {folder / 'jars.lock'} names."
                )
            for archive in unfinished.glob("*.zip"):
                shutil.unpack_archive(archive, unfinished)
                archive.unlink()
            unfinished.rename(home)
    return home


def write_lock(program: str, folder: Path) -> None:
    """Writes jars.lock anew, from what Maven gives for pom.xml."""
    with tempfile.TemporaryDirectory() as temporary:
        found = Path(temporary) / "jars"
        _fetch(program, folder, found)
        (folder / "jars.lock").write_text(_hashes(found))


def _fetch(program: str, pom: Path, folder: Path) -> None:
    """Has Maven copy the jars of pom.xml to a folder that is made for them."""
    maven = shutil.which("mvn")
    if maven is None:
        raise MissingTool(
            f"{program} is fetched by Maven (mvn), which is not on PATH: on Debian it is the package maven."
        )
    folder.mkdir(parents=True)
    options = ["--quiet", "--batch-mode", f"--file={pom / 'pom.xml'}", "dependency:copy-dependencies"]
    result = subprocess.run(
        [maven, *options, "-DincludeScope=runtime", f"-DoutputDirectory={folder}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        shutil.rmtree(folder)
        said = "\n".join((result.stdout + result.stderr).strip().splitlines()[-_ERROR_LINES:])
        raise CommandError(f"Maven could not fetch {program}:\n{said}")


def _hashes(folder: Path) -> str:
    """SHA-256 and name of each file, a line each, as sha256sum prints them."""
    lines = (f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(folder.iterdir()))
    return "".join(lines)
