"""A browser without a screen, for looking at pages: an installed one, else Debian's, unpacked into the cache."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from cli.binaries.build import Progress
from cli.binaries.debian import unpacked
from cli.errors import MissingTool

_PACKAGE = "chromium"
_FONTS = "fonts-inter"
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FONT_CONFIGURATION = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{fonts}</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir>{cache}</cachedir>
</fontconfig>
"""


@dataclass(frozen=True)
class Chromium:
    """The program, and what its environment must have beside."""

    program: Path
    environment: dict[str, str] = field(default_factory=dict)

    def arguments(self, *more: str) -> list[str]:
        """A command line that shows nothing, asks nothing and keeps nothing to itself."""
        own = [str(self.program), "--headless=new", "--disable-gpu", "--hide-scrollbars", "--mute-audio"]
        own += ["--no-first-run", "--no-default-browser-check", "--disable-dev-shm-usage", "--disable-extensions"]
        own += ["--disable-background-networking", "--disable-component-update", "--no-proxy-server"]
        if os.geteuid() == 0:
            # Its sandbox refuses root.
            own.append("--no-sandbox")
        return [*own, *more]


def chromium(progress: Progress) -> Chromium:
    """An installed browser, else the one in the cache, else Debian's, unpacked into it.

    Raises:
        MissingTool: there is none, and this is no Debian.
        CommandError: it cannot be downloaded.
    """
    for name in _NAMES:
        if (installed := shutil.which(name)) is not None:
            return Chromium(Path(installed))
    root = unpacked(_PACKAGE, progress)
    program = root / "usr" / "lib" / "chromium" / "chromium"
    if not program.exists():
        raise MissingTool(f"{root} holds no Chromium: remove that folder and try again.")
    libraries = [root / "usr" / "lib" / "chromium", *_library_folders(root)]
    fonts = unpacked(_FONTS, progress)
    configuration = root / "fonts.conf"
    if not configuration.exists():
        text = _FONT_CONFIGURATION.format(fonts=fonts / "usr" / "share" / "fonts", cache=root / "fonts-cache")
        unfinished = configuration.with_name(f".fonts.conf.{os.getpid()}")
        unfinished.write_text(text)
        unfinished.replace(configuration)
    return Chromium(
        program,
        {"LD_LIBRARY_PATH": ":".join(map(str, libraries)), "FONTCONFIG_FILE": str(configuration)},
    )


def _library_folders(root: Path) -> list[Path]:
    """Where its libraries lie; some of Debian's have a folder of their own within that of the architecture."""
    folders = {library.parent for library in root.glob("usr/lib/*-linux-gnu/**/*.so*")}
    return sorted(folders | {library.parent for library in root.glob("lib/*-linux-gnu/*.so*")})
