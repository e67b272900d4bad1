"""Kafka's jars, by Maven from their pinned versions into the cache, and the Java to run them.

After a change of pom.xml: `python -m cli.binaries.kafka` writes jars.lock anew.
"""

from dataclasses import dataclass
from pathlib import Path

from cli.binaries import java
from cli.binaries.build import Progress

VERSION = "4.1.0"
FOLDER = Path(__file__).parent


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
    found = java.find_java("Kafka")
    return Kafka(java=found, jars=java.jars("Kafka", VERSION, FOLDER, progress))
