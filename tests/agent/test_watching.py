"""A stream's events reach whoever follows, however slowly they are taken."""

import asyncio
from contextlib import aclosing
from typing import Any

from gaggle.agent.v1 import turn_pb2
from services.agent.journal import Journal
from services.agent.running import Signal
from services.agent.watching import Watcher

_SOON = 1.0
"""Seconds; less than a stream waits where nothing happens."""


class _Run:
    """An attempt that says what the test has it say."""

    def __init__(self) -> None:
        self.journal = Journal(1)
        self.changed = Signal()
        self.over = False
        self.unsaved_answer = None

    def say(self, text: str) -> None:
        self.journal.add(turn_pb2.TurnEvent(text_delta=turn_pb2.TextDelta(text=text)))
        self.changed.set()


async def test_what_comes_while_a_caller_is_slow() -> None:
    """What is said while an earlier piece is being taken is given at once, and so is the end."""
    run = _Run()
    nobody: Any = None
    watcher = Watcher(nobody, nobody, poll_seconds=60)
    attempt: Any = run
    run.say("one")
    events = watcher._live(attempt, run.journal.base)
    async with aclosing(events):  # type: ignore[type-var]
        assert (await anext(events)).text_delta.text == "one"
        run.say("two")
        assert (await asyncio.wait_for(anext(events), _SOON)).text_delta.text == "two"
        run.over = True
        run.changed.set()
        assert await asyncio.wait_for(anext(events, None), _SOON) is None


async def test_a_signal_taken_before_is_not_missed() -> None:
    """What is set after one looked wakes, also if that was before one began to wait."""
    signal = Signal()
    seen = signal.next
    signal.set()
    await asyncio.wait_for(seen.wait(), _SOON)
    assert not signal.next.is_set()
