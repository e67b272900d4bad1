"""One mesh per app-id suffix on a machine, and one supervisor per data directory.

Sidecars find each other by mDNS, so two meshes with the same app ids would call into one another. Both locks are
flock(2): the kernel drops them with the process that holds them, however it ends, so none is ever stale.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from cli.errors import Refused
from cli.mesh.data import DataDirectory

# Not the user's own temporary directory, which may differ between two shells: the question is the machine's.
_MACHINE_DIRECTORY = Path("/tmp")  # noqa: S108 -- the file holds no data that anybody trusts


@contextlib.contextmanager
def hold_mesh_locks(data: DataDirectory, suffix: str) -> Iterator[None]:
    """Holds both locks.

    Raises:
        Refused: another mesh has one of them; the text says which, and what to do.
    """
    with contextlib.ExitStack() as held:
        holder = held.enter_context(_try_lock(data.supervisor_lock, str(os.getpid())))
        if holder is not None:
            raise Refused(f"A mesh runs on {data.path} already (process {holder}): `gaggle status`, `gaggle down`.")
        machine = machine_lock(suffix)
        holder = held.enter_context(_try_lock(machine, str(data.path)))
        if holder is not None:
            named = f"with the app-id suffix {suffix!r}" if suffix else "without an app-id suffix"
            raise Refused(
                f"Another mesh {named} runs on this machine, on {holder}. Their sidecars would find each other's "
                "services by mDNS: stop it, or give this one a suffix of its own (GAGGLE_APP_ID_SUFFIX=-2)."
            )
        yield


def machine_lock(suffix: str) -> Path:
    """The lock file that the meshes of one suffix share."""
    return _MACHINE_DIRECTORY / f"gaggle-mesh{suffix}.lock"


@contextlib.contextmanager
def _try_lock(path: Path, holder: str) -> Iterator[str | None]:
    """Locks `path` and writes `holder` into it, yielding None; or yields what the present holder wrote.

    The file is removed when it is let go.
    """
    while True:
        with os.fdopen(_open_shared(path), "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield file.read().strip() or "unknown"
                return
            # Whoever held it may have removed it between our opening and our locking.
            if not _is_at(path, file):
                continue
            file.truncate(0)
            file.write(holder)
            file.flush()
            try:
                yield None
            finally:
                path.unlink(missing_ok=True)
            return


def _open_shared(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        # Separate from the open above: a sticky directory refuses O_CREAT on a file that another user made.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        # The mask took the others' right to it, and another user's mesh must be able to find it locked.
        with contextlib.suppress(PermissionError):
            os.fchmod(descriptor, 0o666)
        return descriptor
    except PermissionError as error:
        raise Refused(f"{path} cannot be opened: it belongs to another user.") from error


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
