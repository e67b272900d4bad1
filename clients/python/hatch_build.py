"""Puts the conversation service's generated stubs into the package, from where they are generated to."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PACKAGE = Path("gaggle/conversation/v1")
_STUBS = ("conversation", "conversation_service", "message")
_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


class StubsHook(BuildHookInterface):  # type: ignore[type-arg]
    """In the repository they lie in gen/, in a source distribution in stubs/."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files. Raises FileNotFoundError if they are not there."""
        root = Path(self.root)
        shipped = root / "stubs"
        source = shipped if shipped.exists() else root.parent.parent / "gen"
        target = Path() if self.target_name == "wheel" else Path("stubs")
        if version == "editable":
            raise RuntimeError("install it without -e: its stubs lie outside of this folder")
        for stub in _STUBS:
            for suffix in _SUFFIXES:
                file = source / _PACKAGE / f"{stub}{suffix}"
                if not file.exists():
                    if suffix.startswith("_pb2_grpc"):
                        continue  # Messages alone have none.
                    raise FileNotFoundError(file)
                build_data["force_include"][str(file)] = str(target / _PACKAGE / file.name)
