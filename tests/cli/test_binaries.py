"""Finding Dapr, Go and the tools; building is proven by `make test` on a machine without caches."""

import sys
from pathlib import Path

import pytest

from cli.binaries import build, dapr, golang
from cli.binaries.build import Program, ensure_built
from cli.binaries.tools import TOOLS
from cli.errors import CommandError, MissingTool


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an empty cache, an empty home and nothing on PATH."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "")


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def _install(folder: Path, version: str, names: tuple[str, ...] = dapr.NAMES) -> Path:
    for name in names:
        _script(folder / name, f"echo {version}")
    return folder


def _silent(what: str, packages: int) -> None:
    pass


def test_an_installed_dapr_of_the_right_minor_is_used(tmp_path: Path) -> None:
    """Who ran `dapr init --slim` with 1.18 builds nothing."""
    folder = _install(tmp_path / "home" / ".dapr" / "bin", "1.18.7")

    assert dapr.dapr_binaries(_silent).daprd == folder / "daprd"


@pytest.mark.parametrize(
    ("version", "names"),
    [
        pytest.param("1.17.9", dapr.NAMES, id="older"),
        pytest.param("1.19.0", dapr.NAMES, id="newer"),
        pytest.param("edge", dapr.NAMES, id="a build of somebody's own"),
        pytest.param("1.18.2", ("daprd", "placement"), id="without the scheduler"),
    ],
)
def test_a_dapr_that_does_not_fit_is_not_used(tmp_path: Path, version: str, names: tuple[str, ...]) -> None:
    """The mesh runs on the version that it was tested with, or says that it has none."""
    _install(tmp_path / "home" / ".dapr" / "bin", version, names)

    assert dapr.find_installed() is None


def test_path_comes_before_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a person put on PATH is what runs."""
    _install(tmp_path / "home" / ".dapr" / "bin", "1.18.1")
    chosen = _install(tmp_path / "chosen", "1.18.2")
    monkeypatch.setenv("PATH", str(chosen))

    found = dapr.find_installed()

    assert found is not None
    assert found.scheduler == chosen / "scheduler"


def test_what_the_cache_holds_is_not_built_again() -> None:
    """The second clone on a machine starts as quickly as the first one's second run."""
    for program in dapr.PROGRAMS:
        _script(program.path, "exit 1")

    assert dapr.dapr_binaries(_silent).placement == dapr.PROGRAMS[2].path


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26, 8)),
        ("go version go1.27 darwin/arm64", (1, 27, 0)),
        ("gofish", None),
    ],
    ids=["patch release", "first release", "something else"],
)
def test_the_version_of_go_is_read(tmp_path: Path, said: str, version: tuple[int, int, int] | None) -> None:
    """A Go that is too old, or none, is noticed before it fails half-way."""
    assert golang.go_version(_script(tmp_path / "go", f"echo {said}")) == version


def test_without_go_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that can neither find nor fetch Go gets the two ways out, in one sentence."""
    monkeypatch.setattr(sys, "executable", str(_script(tmp_path / "python", "echo no network >&2; exit 1")))

    with pytest.raises(MissingTool, match=r"no network.*go\.dev/dl.*dapr init --slim"):
        ensure_built([TOOLS["grpcurl"]], _silent)


def test_a_failed_build_shows_the_compilers_words_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that breaks is told with its reason, and is tried anew the next time."""
    go = _script(tmp_path / "go", "echo package one; echo undefined: frobnicate >&2; exit 1")
    monkeypatch.setattr(build, "find_go", lambda: go)
    program = Program("grpcurl", "grpcurl", "example.com/grpcurl", "0")
    seen: list[tuple[str, int]] = []

    with pytest.raises(CommandError, match="undefined: frobnicate"):
        ensure_built([program], lambda what, packages: seen.append((what, packages)))

    assert seen[0] == ("grpcurl", 0)
    assert seen[-1] == ("grpcurl", 2)
    assert list(program.path.parent.iterdir()) == []


def test_every_pinned_program_has_its_module() -> None:
    """What is built, and the Go that builds it, are named once by version and pinned by their hashes."""
    assert golang._LOCK.read_text().startswith(f"{golang._WHEEL} \\\n    --hash=sha256:")
    for program in [*dapr.PROGRAMS, *TOOLS.values()]:
        module = Path(build.__file__).with_name(program.module)
        package = program.package
        if package == "./daprd":
            # Dapr's own main function, with more components.
            package = "github.com/dapr/dapr/cmd/daprd"
            assert f'"{package}/app"' in (module / program.package / "main.go").read_text()
        assert package in (module / "go.mod").read_text()
        # What follows the version names the way it is built.
        version = program.version.removesuffix("-conversation")
        assert f"{package.split('/cmd/')[0]} v{version}" in (module / "go.sum").read_text()
