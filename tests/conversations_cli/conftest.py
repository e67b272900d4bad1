"""The command line, called on a service of the test's own."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from cli.mesh.data import DataDirectory
from cli.mesh.keys import ensure_keys
from tests.conversations_cli.fake_service import FakeConversations, Result, Service


@pytest.fixture
def service() -> Iterator[Service]:
    """A conversation service of this test's own."""
    made = Service(FakeConversations())  # type: ignore[abstract]  # what it leaves out is UNIMPLEMENTED
    made.start()
    yield made
    made.kill()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a signing key and no mesh."""
    directory = DataDirectory.at(tmp_path / "mesh")
    directory.create()
    ensure_keys(directory, [])
    return directory.path


@pytest.fixture
def gaggle(
    service: Service, data: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs `gaggle conversations` as user ada on the fake service."""
    monkeypatch.delenv("GAGGLE_TOKEN", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def run(command: str, *arguments: object, user: str = "ada") -> Result:
        where = ["--data", data, "--address", service.address, "--user", user]
        monkeypatch.setattr(sys, "argv", ["gaggle", "conversations", command, *map(str, [*where, *arguments])])
        capfd.readouterr()
        code: Any = 0
        with suppress(KeyboardInterrupt):
            try:
                main()
            except SystemExit as error:
                code = error.code or 0
        return Result(code, *capfd.readouterr())

    return run
