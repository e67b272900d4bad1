"""Writes jars.lock anew, from what Maven gives for pom.xml."""

from cli.binaries.java import write_lock
from cli.binaries.kafka import FOLDER

write_lock("Kafka", FOLDER)
