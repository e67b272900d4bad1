"""Recipe files with the sub-recipes that lie beside them, in the order in which they can be imported."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cli.conversations.errors import BadFileError

MAX_FILES = 100


@dataclass
class RecipeSource:
    """A file to import."""

    path: Path
    content: str
    title: str
    """What it will be named; empty: it does not say."""

    parts: dict[str, Path] = field(default_factory=dict)
    """Name of each sub-recipe that is there to its file."""


def gather(paths: Iterable[Path]) -> list[RecipeSource]:
    """Read files and the sub-recipes they name, each before those that need it. Raises BadFileError.

    What a file says is judged by the service; here it is only looked through for the paths of sub-recipes.
    """
    found: dict[Path, RecipeSource] = {}
    for path in paths:
        _visit(path, found, ())
    return list(found.values())


def _visit(path: Path, found: dict[Path, RecipeSource], above: tuple[Path, ...]) -> None:
    where = path.resolve()
    if where in found:
        return
    if where in above:
        raise BadFileError(f"{path} is a sub-recipe of itself")
    if len(found) >= MAX_FILES:
        raise BadFileError(f"more than {MAX_FILES} files belong together")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFileError(f"{path} can't be read: {error}") from error
    recipe = _look(content)
    parts = {}
    for one in recipe.get("sub_recipes") or ():
        if not isinstance(one, dict) or not isinstance(one.get("path"), str):
            continue
        part = path.parent / one["path"]
        if part.is_file():
            _visit(part, found, (*above, where))
            parts[str(one.get("name"))] = part.resolve()
    name = recipe.get("__name__") or recipe.get("title")
    found[where] = RecipeSource(path, content, name if isinstance(name, str) else "", parts)


def _look(content: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}  # The service says what is wrong with it, and where.
    if not isinstance(document, dict):
        return {}
    inner = document.get("recipe")
    if isinstance(inner, dict):
        return inner | {"__name__": document.get("name")}
    return document
