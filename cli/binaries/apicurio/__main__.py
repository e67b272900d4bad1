"""Writes jars.lock anew, from what Maven gives for pom.xml."""

from cli.binaries.apicurio import FOLDER
from cli.binaries.java import write_lock

write_lock("Apicurio", FOLDER)
