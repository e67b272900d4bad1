"""Kafka's jars, by Maven from their pinned versions into the cache, and the Java to run them.

After a change of pom.xml: `python -m cli.binaries.kafka` writes jars.lock anew.
"""

import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cli.binaries.build import Progress
from cli.binaries.cache import cache_directory, exclusive
from cli.errors import CommandError, MissingTool

VERSION = "4.1.0"
OLDEST_JAVA = 17

_FOLDER = Path(__file__).parent
_LOCK = _FOLDER / "jars.lock"
_JAVA_VERSION = re.compile(r'version "(\d+)')
_ERROR_LINES = 10


@dataclass(frozen=True)
class Kafka:
    """Java, and the folder of the jars."""

    java: Path
    jars: Path


def kafka(progress: Progress) -> Kafka:
    """Kafka from the cache, else from Maven's repository into it.

    Raises:
        MissingTool: there is no Java, or no Maven to fetch the jars with.
        CommandError: they cannot be had, or are not those of jars.lock.
    """
    java = find_java()
    jars = cache_directory() / "bin" / f"kafka-{VERSION}"
    if not jars.exists():
        with exclusive(
            jars.with_name(f"{jars.name}.lock"), waiting=lambda: progress("waiting for another download", 0)
        ):
            if not jars.exists():
                progress(f"Kafka {VERSION}, from Maven's repository", 0)
                unfinished = jars.with_name(f".{jars.name}.{os.getpid()}")
                fetch(unfinished)
                if hashes(unfinished) != _LOCK.read_text():
                    shutil.rmtree(unfinished)
                    raise CommandError(f"Maven's repository gave other jars for Kafka {VERSION} than {_LOCK} names.")
                unfinished.rename(jars)
    return Kafka(java=java, jars=jars)


def find_java() -> Path:
    """A Java that runs Kafka: of JAVA_HOME, else of PATH.

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
        f"Kafka needs Java {OLDEST_JAVA} or newer, and "
        + (f"{found} is older" if found else "there is none on PATH")
        + ": on Debian it is the package openjdk-17-jre-headless."
    )


def fetch(folder: Path) -> None:
    """Has Maven copy the jars of pom.xml to a folder that is made for them."""
    maven = shutil.which("mvn")
    if maven is None:
        raise MissingTool("Kafka's jars are fetched by Maven (mvn), which is not on PATH: on Debian the package maven.")
    folder.mkdir(parents=True)
    options = ["--quiet", "--batch-mode", f"--file={_FOLDER / 'pom.xml'}", "dependency:copy-dependencies"]
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
        raise CommandError(f"Maven could not fetch Kafka {VERSION}:\n{said}")


def hashes(folder: Path) -> str:
    """SHA-256 and name of each jar, a line each, as sha256sum prints them."""
    lines = (f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {jar.name}\n" for jar in sorted(folder.glob("*.jar")))
    return "".join(lines)
