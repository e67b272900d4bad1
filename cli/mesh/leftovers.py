"""What a killed supervisor left: on Linux its processes end with it (see cli.mesh.leash), and this waits for that."""

import contextlib

import psutil

from cli.errors import CommandError, NotRunning
from cli.mesh.data import DataDirectory
from cli.mesh.description import MeshDescription, ProcessDescription

# PostgreSQL writes a checkpoint before it goes.
_PATIENCE_SECONDS = 10.0
_CLOCK_SECONDS = 0.01


def end_leftovers(data: DataDirectory) -> None:
    """Returns when no process of an earlier mesh on this directory is left, and removes its mesh.json."""
    try:
        mesh = MeshDescription.load(data.mesh_file)
    except (NotRunning, CommandError):
        data.mesh_file.unlink(missing_ok=True)
        return
    left = [process for entry in mesh.processes.values() if (process := find_process(entry)) is not None]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(left, timeout=_PATIENCE_SECONDS)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=_PATIENCE_SECONDS)
    data.mesh_file.unlink(missing_ok=True)


def find_process(entry: ProcessDescription) -> psutil.Process | None:
    """The process that mesh.json describes, or None if it is gone (its id may belong to another one by now)."""
    try:
        process = psutil.Process(entry.pid)
        same = abs(process.create_time() - entry.started) < _CLOCK_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None
