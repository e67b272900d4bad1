"""How far a migration is: a bar with rate and time left on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.text import Text

from cli.bars import work_bar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINE_EVERY_SECONDS = 5.0


class MigrationProgress:
    """A context manager, as `cli.migrate.goose_phases.Progress`."""

    def __init__(self, console: Console) -> None:
        """`console` is where it is shown."""
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._total = self._done = 0
        self._began = self._told_at = time.monotonic()
        if console.is_terminal:
            self._bar = work_bar(console)

    def __enter__(self) -> Self:
        """Show the bar."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.stop()

    def begin(self, what: str, total: int) -> None:
        """A stretch of so many units begins."""
        self._what, self._total, self._done = what, total, 0
        self._began = self._told_at = time.monotonic()
        if self._bar:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=total)

    def advance(self, units: int) -> None:
        """So many more are done."""
        self._done += units
        if self._bar and self._task is not None:
            self._bar.advance(self._task, units)
            return
        now = time.monotonic()
        if now - self._told_at >= _LINE_EVERY_SECONDS:
            self._told_at = now
            rate = self._done / max(now - self._began, 0.001)
            left = (self._total - self._done) / max(rate, 0.001)
            self.say(f"{self._what}: {self._done:,} of {self._total:,}, {rate:,.0f}/s, {left:,.0f} s left")

    def say(self, text: str) -> None:
        """Something that a person should read."""
        (self._bar.console if self._bar else self._console).print(Text(text), soft_wrap=True)
