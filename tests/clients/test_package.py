"""The client's package: built from a checkout, it stands alone."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from cli.mesh.data import PROJECT_ROOT

pytestmark = pytest.mark.slow

_FOLDER = PROJECT_ROOT / "clients" / "python"
_SECONDS = 120


def _run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_stands_alone(tmp_path: Path) -> None:
    """A wheel has the client and the stubs that it needs and no more; a source distribution builds the same wheel."""
    _run(sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path), cwd=_FOLDER)
    (wheel,) = tmp_path.glob("*.whl")
    names = sorted(name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name)
    assert {name.split("/")[0] for name in names} == {"gaggle", "gaggle_client"}
    assert "gaggle/conversation/v1/conversation_service_pb2_grpc.py" in names
    assert "gaggle_client/py.typed" in names
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (unpacked,) = (tmp_path / "source").iterdir()
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "again"), cwd=unpacked)
    (again,) = (tmp_path / "again").glob("*.whl")
    assert sorted(name for name in zipfile.ZipFile(again).namelist() if ".dist-info/" not in name) == names

    place = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(place)  # noqa: S202 - just built
    # Without the checkout, which an editable install has on the path.
    script = (
        "import sys; root = sys.argv[1]; sys.path = [sys.argv[2], *(p for p in sys.path if p and "
        "(not p.startswith(root) or '.venv' in p))]; import gaggle_client; "
        "from gaggle.conversation.v1 import conversation_service_pb2 as stub; "
        "print(gaggle_client.__file__); print(stub.__file__); "
        "print(gaggle_client.GaggleSession('a', None).session_id)"
    )
    out = _run(sys.executable, "-c", script, str(PROJECT_ROOT), str(place), cwd=tmp_path, PYTHONPATH="").splitlines()
    assert out == [
        str(place / "gaggle_client" / "__init__.py"),
        str(place / "gaggle" / "conversation" / "v1" / "conversation_service_pb2.py"),
        "a",
    ]
