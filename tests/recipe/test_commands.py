"""`gaggle recipes` on the real mesh, as a person types it."""

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.mesh_fixture import Mesh
from tests.recipe.corpus import REAL, SAMPLES, needs_real

pytestmark = pytest.mark.mesh

_SECONDS = 60


@dataclass(frozen=True)
class Said:
    """What a command gave."""

    code: int
    out: str
    err: str


class Typist:
    """Runs commands as one user."""

    def __init__(self, mesh: Mesh, user: str) -> None:
        self._where = ["--data", str(mesh.data.path), "--user", user]

    async def __call__(self, command: str, *arguments: object) -> Said:
        line = [sys.executable, "-m", "cli.main", "recipes", command, *self._where, *map(str, arguments)]
        process = await asyncio.create_subprocess_exec(
            *line, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(), _SECONDS)
        return Said(process.returncode or 0, out.decode(), err.decode())


@pytest.fixture
def gaggle(mesh: Mesh, user: str) -> Typist:
    """The test's user at a terminal."""
    return Typist(mesh, user)


async def test_a_recipe_and_its_part_are_imported_once(gaggle: Typist, tmp_path: Path) -> None:
    """A file is imported with the sub-recipes beside it; again, nothing changes; changed, it is the next version."""
    folder = tmp_path / "recipes"
    (folder / "subrecipes").mkdir(parents=True)
    for name in ("pipeline.yaml", "subrecipes/checker.yaml"):
        (folder / name).write_text((SAMPLES / name).read_text())
    first = await gaggle("import", "--category", "data", folder / "pipeline.yaml")
    assert first.code == 0, first.err
    assert [line.split("  ")[1:] for line in first.out.splitlines()] == [["new", "Checker"], ["new", "Pipeline"]]
    assert "pipeline.yaml:14:5: the sub-recipe 'counter' (./subrecipes/missing.yaml) is not bound" in first.err
    again = await gaggle("import", folder / "pipeline.yaml")
    assert [line.split("  ")[1] for line in again.out.splitlines()] == ["unchanged", "unchanged"]
    (folder / "subrecipes/missing.yaml").write_text("title: Counter\ndescription: Counts\nprompt: say counted\n")
    (folder / "subrecipes/checker.yaml").write_text(
        (SAMPLES / "subrecipes/checker.yaml").read_text().replace("prompt: Check", "prompt: say checked")
    )
    (folder / "pipeline.yaml").write_text((SAMPLES / "pipeline.yaml").read_text().replace("Report on", "say report of"))
    changed = await gaggle("import", folder / "pipeline.yaml")
    assert [line.split("  ")[1] for line in changed.out.splitlines()] == ["changed", "new", "changed"]
    listed = await gaggle("list", "--json", "--category", "data")
    assert [json.loads(line)["name"] for line in listed.out.splitlines()] == ["Pipeline", "Checker"]
    shown = await gaggle("show", "pipeline")
    assert "version 2" in shown.out
    ran = await gaggle("run", "PIPELINE", "data_file=a.csv")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("report of a.csv")
    assert "5/5  prompt: completed" in ran.err
    missing = await gaggle("run", "pipeline")
    assert (missing.code, "data_file" in missing.err) == (1, True)
    detached = await gaggle("run", "pipeline", "data_file=b.csv", "--detach")
    watched = await gaggle("watch", detached.out.strip())
    assert watched.out.startswith("report of b.csv")


async def test_a_file_comes_back(gaggle: Typist, tmp_path: Path) -> None:
    """An exported file is the imported one to the byte, and in the other format equal in meaning."""
    await gaggle("import", SAMPLES / "release-notes.yaml")
    exported = await gaggle("export", "release notes")
    assert exported.out == (SAMPLES / "release-notes.yaml").read_text()
    as_json = await gaggle("export", "release notes", "--format", "json", "-o", tmp_path)
    assert as_json.out.strip() == str(tmp_path / "release-notes.json")
    assert json.loads((tmp_path / "release-notes.json").read_text())["title"] == "Release Notes"


async def test_a_broken_file_is_refused_with_its_place(gaggle: Typist) -> None:
    """A file that is no recipe is refused with line and column; nothing is stored; what isn't there is said."""
    broken = await gaggle("import", SAMPLES / "broken-colon.yaml")
    assert broken.code == 1
    assert "broken-colon.yaml: line 3, column 26: mapping values are not allowed here" in broken.err
    assert not (await gaggle("list", "--json")).out
    assert (await gaggle("import", SAMPLES / "none.yaml")).code == 2
    none = await gaggle("run", "nobody")
    assert (none.code, none.err.strip()) == (1, "gaggle: there is no recipe 'nobody'")


@needs_real
async def test_real_recipes(gaggle: Typist, tmp_path: Path) -> None:
    """The real pipeline is imported with its three parts in one command, and all of them come back."""
    imported = await gaggle("import", "--json", REAL / "data-analysis-pipeline.yaml")
    recipes = [json.loads(line) for line in imported.out.splitlines()]
    assert len(recipes) == 4
    assert "the sub-recipe 'data_validator' (./subrecipes/data-validator.yaml) is not bound" in imported.err
    for recipe in recipes:
        exported = await gaggle("export", recipe["id"], "-o", tmp_path)
        text = await asyncio.to_thread(Path(exported.out.strip()).read_text)
        sources = [path for path in REAL.rglob("*.yaml") if path.read_text() == text]
        assert len(sources) == 1
        assert yaml.safe_load(text)["title"] == recipe["title"]
    refused = await gaggle("run", "Data Analysis Pipeline", "data_file=x.csv")
    assert (refused.code, "SUB_RECIPE_MISSING" in refused.err or "not bound" in refused.err) == (1, True)
