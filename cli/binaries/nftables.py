"""nft, which sets the kernel's packet filter: an installed one, else Debian's package unpacked into the cache."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from cli.binaries.build import Progress
from cli.binaries.debian import unpacked
from cli.errors import MissingTool

_PACKAGE = "nftables"
# Debian keeps administrators' programs off other people's PATH.
_FOLDERS = "/usr/sbin:/sbin:/usr/local/sbin"


@dataclass(frozen=True)
class Nftables:
    """The program, and what its environment must have beside."""

    program: Path
    environment: dict[str, str] = field(default_factory=dict)


def nftables(progress: Progress) -> Nftables:
    """An installed nft, else the one in the cache, else Debian's, unpacked into it.

    Raises:
        MissingTool: it is not installed, and this is no Debian.
        CommandError: it cannot be downloaded.
    """
    installed = shutil.which("nft") or shutil.which("nft", path=_FOLDERS)
    if installed is not None:
        return Nftables(Path(installed))
    root = unpacked(_PACKAGE, progress)
    program = root / "usr" / "sbin" / "nft"
    if not program.exists():
        raise MissingTool(f"{root} holds no nft: remove that folder and try again.")
    libraries = {str(library.parent) for library in root.glob("**/*-linux-gnu/*.so*")}
    return Nftables(program, {"LD_LIBRARY_PATH": ":".join(sorted(libraries))})
