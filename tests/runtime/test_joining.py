"""Calls that would wait for each other are made as one, and nobody is the worse for it."""

import asyncio
import contextvars
from collections.abc import Sequence

import pytest

from services.runtime.call import remaining_seconds, set_deadline
from services.runtime.errors import DeadlineError, UnavailableError
from services.runtime.joining import ApartError, Joined
from tests.runtime.memory import settled

_CALLER = contextvars.ContextVar("caller", default="")


class Asked:
    """What is asked for, and how: answers wait until they are let go."""

    def __init__(self, *, patience: float = 10.0, most: int = 4) -> None:
        self.calls: list[list[int]] = []
        self.callers: list[str] = []
        self.going = asyncio.Semaphore(0)
        self.fails: Exception | None = None
        self.apart = False
        self.joined: Joined[int, str] = Joined(
            self._alone,
            self._together,
            fits=lambda chosen, item: len(chosen) < most and item not in chosen,
            patience_seconds=patience,
            timeout_seconds=10.0,
        )

    async def _alone(self, item: int) -> str:
        await self._called([item])
        if item < 0:
            raise UnavailableError("store")
        return str(item)

    async def _together(self, items: Sequence[int]) -> Sequence[str | Exception]:
        await self._called(list(items))
        if self.apart:
            raise ApartError
        return [str(item) if item >= 0 else UnavailableError("store") for item in items]

    async def _called(self, items: list[int]) -> None:
        self.calls.append(items)
        self.callers.append(_CALLER.get())
        await self.going.acquire()
        if self.fails is not None:
            raise self.fails

    async def start(self, *items: int) -> list[asyncio.Task[str]]:
        """Ask for items, each from a task of its own, and see them ask."""
        tasks = []
        for item in items:
            context = contextvars.copy_context()
            context.run(_CALLER.set, str(item))
            tasks.append(asyncio.create_task(self.joined.ask(item), context=context))
        await asyncio.sleep(0)
        return tasks

    def let_go(self, calls: int = 1) -> None:
        """Answer so many calls."""
        for _ in range(calls):
            self.going.release()


async def test_a_lone_asker_waits_for_nobody() -> None:
    """One after the other, each is asked for at once and alone."""
    asked = Asked()
    asked.let_go(2)
    assert [await asked.joined.ask(1), await asked.joined.ask(2)] == ["1", "2"]
    assert asked.calls == [[1], [2]]


async def test_those_who_wait_go_together() -> None:
    """What comes during a call goes in the next one, everybody gets their own answer, in the context of the first."""
    asked = Asked()
    tasks = await asked.start(1, 2, 3, 4)
    assert asked.calls == [[1]]
    asked.let_go(2)
    assert await asyncio.gather(*tasks) == ["1", "2", "3", "4"]
    assert asked.calls == [[1], [2, 3, 4]]
    assert asked.callers == ["1", "2"]


async def test_what_does_not_fit_waits_for_the_next() -> None:
    """Askers that may not join the others keep their place; no call has more than fit."""
    asked = Asked(most=2)
    tasks = await asked.start(1, 5, 5, 6, 7)
    asked.let_go(4)
    assert await asyncio.gather(*tasks) == ["1", "5", "5", "6", "7"]
    assert asked.calls == [[1], [5, 6], [5, 7]]


async def test_a_call_that_hangs_holds_up_nobody_for_long() -> None:
    """After the patience is over another call begins, though the first has no answer; both are answered in the end."""
    asked = Asked(patience=0.02)
    tasks = await asked.start(1, 2, 3)
    await settled(lambda: asked.calls == [[1], [2, 3]])
    later = await asked.start(4)
    await settled(lambda: len(asked.calls) == 3)
    asked.let_go(3)
    assert await asyncio.gather(*tasks, *later) == ["1", "2", "3", "4"]
    asked.let_go()
    assert await asked.joined.ask(9) == "9"


async def test_each_has_its_own_failure() -> None:
    """An item that fails fails its asker alone."""
    asked = Asked()
    tasks = await asked.start(1, 2, -3)
    asked.let_go(2)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[:2] == ["1", "2"]
    assert isinstance(answers[2], UnavailableError)


async def test_a_failed_call_fails_its_askers_and_no_others() -> None:
    """When a call fails, those who shared it hear of it, and those after them are served."""
    asked = Asked(most=2)
    tasks = await asked.start(1, 2, 3, 4)
    asked.let_go()
    await settled(lambda: len(asked.calls) == 2)
    asked.fails = UnavailableError("store")
    asked.let_go()
    await settled(lambda: len(asked.calls) == 3)
    asked.fails = None
    asked.let_go()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(one, UnavailableError) for one in answers] == [False, True, True, False]


async def test_what_can_t_be_had_together_is_asked_for_alone() -> None:
    """If one of several makes all of them impossible, each is asked for by itself."""
    asked = Asked()
    tasks = await asked.start(1, 2, -3)
    asked.apart = True
    asked.let_go(4)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert asked.calls == [[1], [2, -3], [2], [-3]]
    assert answers[:2] == ["1", "2"]
    assert isinstance(answers[2], UnavailableError)


async def test_a_deadline_ends_the_wait_and_only_one_s_own() -> None:
    """Whoever has no time left is told so and not asked for; the others' time is not shortened by it."""
    asked = Asked()
    first = await asked.start(1)
    left: list[float] = []

    async def hurried() -> str:
        set_deadline(0.05)
        return await asked.joined.ask(2)

    async def patient() -> str:
        return await asked.joined.ask(3)

    late, other = asyncio.create_task(hurried()), asyncio.create_task(patient())
    with pytest.raises(DeadlineError):
        await late
    asked.let_go(2)
    assert [await first[0], await other] == ["1", "3"]
    assert asked.calls == [[1], [3]]

    async def alone(_item: int) -> str:
        left.append(remaining_seconds(10))
        return ""

    asked.joined._alone = alone
    set_deadline(5)
    await asked.joined.ask(1)
    set_deadline(None)
    assert left[0] <= 5


async def test_whoever_goes_away_is_left_out() -> None:
    """A cancelled asker is not asked for and takes nobody with it; cancelling the one who is served frees the way."""
    asked = Asked()
    tasks = await asked.start(1, 2, 3)
    tasks[1].cancel()
    tasks[0].cancel()
    await settled(lambda: asked.calls == [[1], [3]])
    asked.let_go()
    assert await tasks[2] == "3"
    assert tasks[0].cancelled()
    assert tasks[1].cancelled()
