"""How the command line shows that it is at work."""

import time

from rich.console import Console

from cli.binaries.build import Progress

_PLAIN_EVERY_SECONDS = 15.0


def build_progress(console: Console) -> Progress:
    """Shows a build as one line that counts, or as a line now and then where the output is no terminal."""
    began = time.monotonic()
    shown_at = 0.0
    shown_what = ""

    def show(what: str, packages: int) -> None:
        nonlocal shown_at, shown_what
        now = time.monotonic()
        pause = 0.2 if console.is_terminal else _PLAIN_EVERY_SECONDS
        if what == shown_what and now - shown_at < pause:
            return
        if not shown_what:
            console.print(
                "Fetching and building what is pinned, once per machine (Dapr: about four minutes on two cores)."
            )
        shown_at, shown_what = now, what
        minutes, seconds = divmod(int(now - began), 60)
        text = f"  {minutes}:{seconds:02} {what}" + (f": {packages} packages compiled" if packages else "")
        console.print(text, end="\r" if console.is_terminal else "\n", highlight=False)

    return show
