"""Calls that would wait for each other are made as one.

A sidecar is asked at once while little is asked of it. What comes while it is busy waits for an answer to return, and
then goes together: the more callers there are, the less each of them costs, and a lone one waits for nobody. The call
begins after all of its askers asked, so a read of the store stays as strong as it was. bench/README.md has the figures.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.runtime.call import remaining_seconds, set_deadline
from services.runtime.errors import DeadlineError

_LOOKED_AT = 64

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Asker(Generic[Item, Answer]):
    item: Item
    answer: asyncio.Future[Answer]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)


@dataclass(slots=True)
class _Turn:
    """A call that the others wait for."""

    began: float
    over: asyncio.TimerHandle | None = None
    """Ends the waiting, once there is somebody who waits."""


class ApartError(Exception):
    """Items can't be asked for together, and nothing came of it: each is asked for alone."""


class Joined(Generic[Item, Answer]):
    """Asks for items one by one while that is quick, and for several together while it is not."""

    def __init__(
        self,
        alone: Callable[[Item], Awaitable[Answer]],
        together: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        *,
        patience_seconds: float,
        timeout_seconds: float,
        fits: Callable[[Sequence[Item], Item], bool],
    ) -> None:
        """`together` gives an answer for each item, or raises for all of them, or ApartError.

        One call runs at a time, but after `patience_seconds` another may: one that hangs must not hold up the rest.
        `timeout_seconds` bounds the wait of an asker without a deadline of its own. `fits` says whether an item may
        join others.
        """
        self._alone = alone
        self._together = together
        self._patience = patience_seconds
        self._timeout = timeout_seconds
        self._fits = fits
        self._turn: _Turn | None = None
        self._askers: deque[_Asker[Item, Answer]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, item: Item) -> Answer:
        """Give the answer for one item. Raises DeadlineError, and what the functions raise."""
        loop = asyncio.get_running_loop()
        if self._turn is None:
            turn = self._turn = _Turn(loop.time())
            try:
                return await self._alone(item)
            finally:
                self._end(turn)
        asker: _Asker[Item, Answer] = _Asker(item, loop.create_future())
        timer = loop.call_later(remaining_seconds(self._timeout), _give_up, asker.answer)
        self._askers.append(asker)
        if self._turn.over is None:
            self._turn.over = loop.call_at(self._turn.began + self._patience, self._next)
        try:
            return await asker.answer
        finally:
            timer.cancel()

    def _end(self, turn: _Turn) -> None:
        if turn.over is not None:
            turn.over.cancel()
        if turn is self._turn:
            if self._askers:
                # Those who are about to ask, in this turn of the loop, come along.
                asyncio.get_running_loop().call_soon(self._next)
            else:
                self._turn = None

    def _next(self) -> None:
        """The call whose turn it was has ended, or takes too long: begin another for those who wait."""
        self._turn = None
        chosen = self._choose()
        if chosen:
            loop = asyncio.get_running_loop()
            turn = self._turn = _Turn(loop.time())
            if self._askers:
                turn.over = loop.call_at(turn.began + self._patience, self._next)
            task = loop.create_task(self._run(chosen, turn), context=chosen[0].context)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _choose(self) -> list[_Asker[Item, Answer]]:
        chosen: list[_Asker[Item, Answer]] = []
        passed: list[_Asker[Item, Answer]] = []
        while self._askers and len(chosen) + len(passed) < _LOOKED_AT:
            asker = self._askers.popleft()
            if asker.answer.done():
                continue  # Nobody waits for it any more.
            fits = not chosen or self._fits([one.item for one in chosen], asker.item)
            (chosen if fits else passed).append(asker)
        self._askers.extendleft(reversed(passed))
        return chosen

    async def _run(self, askers: Sequence[_Asker[Item, Answer]], turn: _Turn) -> None:
        set_deadline(None)  # The first one's is not the others'.
        try:
            if len(askers) == 1:
                answers: Sequence[Answer | Exception] = [await self._alone(askers[0].item)]
            else:
                answers = await self._ask_together([asker.item for asker in askers])
        except Exception as error:  # noqa: BLE001 - it is the askers'
            answers = [error] * len(askers)
        finally:
            self._end(turn)
        for asker, answer in zip(askers, answers, strict=True):
            if asker.answer.done():
                continue
            if isinstance(answer, Exception):
                asker.answer.set_exception(answer)
            else:
                asker.answer.set_result(answer)

    async def _ask_together(self, items: Sequence[Item]) -> Sequence[Answer | Exception]:
        try:
            return await self._together(items)
        except ApartError:
            return await asyncio.gather(*map(self._answer, items))

    async def _answer(self, item: Item) -> Answer | Exception:
        try:
            return await self._alone(item)
        except Exception as error:  # noqa: BLE001 - as above
            return error


def _give_up(answer: asyncio.Future[Answer]) -> None:
    if not answer.done():
        answer.set_exception(DeadlineError("this call"))
