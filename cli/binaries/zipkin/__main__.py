"""Writes jars.lock anew, from what Maven gives for pom.xml."""

from cli.binaries.java import write_lock
from cli.binaries.zipkin import FOLDER

write_lock("Zipkin", FOLDER)
