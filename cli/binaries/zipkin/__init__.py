"""Zipkin's jar, by Maven into the cache, and the Java to run it.

After a change of pom.xml: `python -m cli.binaries.zipkin` writes jars.lock anew.
"""

from dataclasses import dataclass
from pathlib import Path

from cli.binaries import java
from cli.binaries.build import Progress
from cli.errors import MissingTool

VERSION = "3.4.4"
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Zipkin:
    """Java, and the one jar."""

    java: Path
    jar: Path


def zipkin(progress: Progress) -> Zipkin:
    """Zipkin from the cache, else from Maven's repository into it.

    Raises:
        MissingTool: there is no Java, or no Maven to fetch the jar with.
        CommandError: it cannot be had, or is not that of jars.lock.
    """
    found = java.find_java("Zipkin")
    folder = java.jars("Zipkin", VERSION, FOLDER, progress)
    for jar in folder.glob("zipkin-server-*.jar"):
        return Zipkin(found, jar)
    raise MissingTool(f"{folder} holds no Zipkin: remove that folder and try again.")
