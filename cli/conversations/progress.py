"""How far an import is: a bar on a terminal, a line a conversation elsewhere, nothing if asked so."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.text import Text

from cli.bars import work_bar
from cli.conversations.importing import Outcome, Plan

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class ImportProgress:
    """A context manager that shows an import of `plans`, as `cli.conversations.importing.Progress`."""

    def __init__(self, console: Console, plans: list[Plan], *, quiet: bool = False) -> None:
        """`console` is where it is shown; a bar only if that is a terminal."""
        self._console = console
        self._quiet = quiet
        self._total = sum(len(plan.messages) for plan in plans)
        self._bar: Bar | None = None
        if console.is_terminal and not quiet:
            self._bar = work_bar(console)
            what = plans[0].file if len({plan.file for plan in plans}) == 1 else f"{len(plans)} conversations"
            self._task = self._bar.add_task(what, total=self._total)

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

    def began(self, plan: Plan, stored: int) -> None:
        """What is stored already counts as done, and not for the rate."""
        if self._bar and stored:
            self._total -= stored
            self._bar.update(self._task, total=self._total)
            if stored < len(plan.messages):
                self._bar.console.print(Text(f"{plan.file}: goes on after message {stored}"))

    def advanced(self, plan: Plan, messages: int) -> None:
        """Moves the bar."""
        del plan
        if self._bar:
            self._bar.advance(self._task, messages)

    def ended(self, plan: Plan, outcome: Outcome) -> None:
        """Tells what came of a conversation."""
        if self._quiet:
            return
        if not outcome.stored_now:
            told = f"there already, {outcome.stored_before} messages"
        elif outcome.stored_before:
            told = f"{outcome.stored_now} messages stored after the {outcome.stored_before} of an earlier run"
        else:
            told = f"{outcome.stored_now} messages stored"
        text = Text.assemble((plan.file, "bold"), f": {told}: ", (outcome.conversation_id, "cyan"))
        self._console.print(text, soft_wrap=True)
