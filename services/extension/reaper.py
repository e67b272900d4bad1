"""Ends what a replica has started, if the replica itself was killed and could not.

One small process beside each replica, in a session of its own. The replica holds the other end of its standard input
and never closes it: when that ends, the replica is gone, and every process that carries its mark in the environment,
or belongs to a process group that it named, is killed. It uses the standard library alone, so that it is small.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

MARK = "GAGGLE_EXTENSION_TREE"
"""The environment variable that every child process inherits: its value begins with the replica's mark."""

_ROUNDS = 5


def marked(mark: str) -> Iterator[int]:
    """Find the processes whose environment carries a mark, where the system lets us look (Linux)."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(one.startswith(wanted) for one in (entry / "environ").read_bytes().split(b"\0")):
                yield int(entry.name)


def kill_marked(mark: str) -> None:
    """Kill all processes with a mark; those that start others meanwhile are met again."""
    for _ in range(_ROUNDS):
        found = [pid for pid in marked(mark) if pid != os.getpid()]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def kill_group(group: int) -> None:
    """Kill a process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def main(mark: str) -> None:
    """Note groups, `+1234` and `-1234` a line, until the replica is gone; then kill."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line[0] == "+":
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        kill_group(group)
    kill_marked(mark)


if __name__ == "__main__":
    main(sys.argv[1])
