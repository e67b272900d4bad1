"""Apicurio, a schema registry that speaks Confluent's API, by Maven into the cache, and the Java to run it.

After a change of pom.xml: `python -m cli.binaries.apicurio` writes jars.lock anew.
"""

from dataclasses import dataclass
from pathlib import Path

from cli.binaries import java
from cli.binaries.build import Progress
from cli.errors import MissingTool

VERSION = "2.6.13.Final"
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Apicurio:
    """Java, and the jar that it starts with; what else it needs lies beside that."""

    java: Path
    jar: Path


def apicurio(progress: Progress) -> Apicurio:
    """Apicurio from the cache, else from Maven's repository into it (a hundred megabytes).

    Raises:
        MissingTool: there is no Java, or no Maven to fetch it with.
        CommandError: it cannot be had, or is not that of jars.lock.
    """
    found = java.find_java("Apicurio")
    folder = java.jars("Apicurio", VERSION, FOLDER, progress)
    for jar in folder.glob("apicurio-registry-app-*-runner.jar"):
        return Apicurio(found, jar)
    raise MissingTool(f"{folder} holds no Apicurio: remove that folder and try again.")
