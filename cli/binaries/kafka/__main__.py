"""Writes jars.lock anew, from what Maven gives for pom.xml."""

import tempfile
from pathlib import Path

from cli.binaries.kafka import fetch, hashes

with tempfile.TemporaryDirectory() as temporary:
    jars = Path(temporary) / "jars"
    fetch(jars)
    Path(__file__).with_name("jars.lock").write_text(hashes(jars))
