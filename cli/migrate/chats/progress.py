"""How far a phase is: a bar on a terminal, a line every few seconds elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_SECONDS = 5.0


class PhaseProgress:
    """A context manager that shows a phase over so many conversations."""

    def __init__(self, console: Console, phase: str, conversations: int) -> None:
        self._console = console
        self._phase = phase
        self._total = conversations
        self._done = 0
        self._messages = 0
        self._began = self._told = time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn(f"{phase} conversations"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(phase, total=conversations)

    def __enter__(self) -> Self:
        """Shows the bar."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the bar away."""
        if self._bar:
            self._bar.stop()

    def did(self, messages: int) -> None:
        """Moves it on by one conversation."""
        self._done += 1
        self._messages += messages
        if self._bar:
            self._bar.advance(self._task)
            return
        now = time.monotonic()
        if now - self._told >= _LINE_SECONDS:
            self._told = now
            rate = self._messages / (now - self._began)
            text = f"{self._phase}: {self._done:,} of {self._total:,} conversations, {rate:,.0f} messages a second"
            self._console.print(text, highlight=False)
