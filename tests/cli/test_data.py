"""The data directory, its locks and its suffix."""

from pathlib import Path

import pytest

from cli.errors import Refused
from cli.mesh.data import DataDirectory
from cli.mesh.lock import hold_mesh_locks, machine_lock


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    """A data directory of the test's own."""
    directory = DataDirectory.at(tmp_path / "data")
    directory.create()
    return directory


def test_the_suffix_stays_with_the_data(data: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """State keys carry the app id, so data never comes up under another suffix than its own."""
    monkeypatch.setenv("GAGGLE_APP_ID_SUFFIX", "-a")
    data.keep_suffix(data.suffix())
    monkeypatch.delenv("GAGGLE_APP_ID_SUFFIX")
    assert data.suffix() == "-a"

    monkeypatch.setenv("GAGGLE_APP_ID_SUFFIX", "-b")
    with pytest.raises(Refused, match="'-a'"):
        data.suffix()


def test_a_suffix_that_no_app_id_takes_is_refused(data: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dot or a capital would make an app id that Dapr refuses or mDNS cannot find."""
    monkeypatch.setenv("GAGGLE_APP_ID_SUFFIX", ".Two")

    with pytest.raises(Refused, match="GAGGLE_APP_ID_SUFFIX"):
        data.suffix()


def test_one_supervisor_a_directory_and_one_mesh_a_suffix(data: DataDirectory, tmp_path: Path) -> None:
    """Two meshes that would find each other's sidecars never run at once; the second is told who is in the way."""
    other = DataDirectory.at(tmp_path / "other")
    other.create()
    suffix = f"-{tmp_path.parent.name[-12:]}".lower().replace("_", "-")

    with hold_mesh_locks(data, suffix):
        with pytest.raises(Refused, match="already"), hold_mesh_locks(data, f"{suffix}-2"):
            pass
        with pytest.raises(Refused, match=str(data.path)), hold_mesh_locks(other, suffix):
            pass
        with hold_mesh_locks(other, f"{suffix}-2"):
            pass
    # Nothing is stale once it is let go.
    with hold_mesh_locks(other, suffix):
        pass
    assert not machine_lock(suffix).exists()


def test_sockets_fit_the_kernels_limit_wherever_the_data_lies(tmp_path: Path) -> None:
    """A project deep in the file system can still be reached by Unix socket, at the same place each time."""
    deep = DataDirectory.at(tmp_path / ("d" * 120) / "data")

    assert len(str(deep.sockets / ".s.PGSQL.5432.lock")) <= 103
    assert deep.sockets == DataDirectory.at(deep.path).sockets
    near = DataDirectory.at(Path("/srv/gaggle"))
    assert near.sockets == near.path / "run"
