"""The bar of long work on a terminal: what, how much of it, how fast, how long still."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        """One task's."""
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")


def work_bar(console: Console) -> Progress:
    """Make it; it goes away when it is stopped."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
