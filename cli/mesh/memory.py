"""How much memory the processes of a mesh take, theirs and their children's, in one look at the machine."""

from collections.abc import Collection

import psutil


def memory_by_process(roots: Collection[int]) -> dict[int, int]:
    """Resident bytes of each root process and of what it started.

    A child counts without the pages that it shares: PostgreSQL's backends would each count its shared buffers again.
    """
    parents: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for process in psutil.process_iter(["ppid", "memory_info"]):
        memory = process.info["memory_info"]
        # None where another user's process may not be looked at.
        if memory is not None:
            parents[process.pid] = process.info["ppid"]
            # `shared` is Linux's.
            sizes[process.pid] = memory.rss if process.pid in roots else memory.rss - getattr(memory, "shared", 0)
    totals = dict.fromkeys(roots, 0)
    for pid, size in sizes.items():
        root = pid
        while root not in totals and root in parents:
            root = parents[root]
        if root in totals:
            totals[root] += size
    return totals
