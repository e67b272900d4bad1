"""The turns that this process works on, and those that nobody does."""

import asyncio
import contextvars

import structlog

from gaggle.agent.state.v1 import document_pb2
from gaggle.agent.v1 import turn_pb2
from services.agent.running import Parts, Signal, TurnRun
from services.agent.store import WATCHLISTS, now, turn_key, watchlist
from services.runtime.errors import GaggleError

_log = structlog.get_logger()
_Key = tuple[str, str]
_WAITING = turn_pb2.TOOL_CALL_STATUS_WAITING_APPROVAL


class Runs:
    """Starts, finds and stops attempts; takes up what other processes have left."""

    def __init__(self, parts: Parts) -> None:
        """`parts` is what all turns share."""
        self._parts = parts
        self._runs: dict[_Key, TurnRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.changed = Signal()
        """Set whenever a turn begins here."""

    def get(self, user_id: str, turn_id: str) -> TurnRun | None:
        """Give this process's attempt at a turn."""
        return self._runs.get((user_id, turn_id))

    def start(self, turn: document_pb2.TurnDocument) -> TurnRun:
        """Begin an attempt that this process has taken."""
        run = TurnRun(self._parts, turn, self._ended)
        self._runs[turn.user_id, turn.id] = run
        run.start()
        self.changed.set()
        return run

    def _ended(self, run: TurnRun, following: str) -> None:
        key = (run.turn.user_id, run.turn.id)
        if self._runs.get(key) is run:
            del self._runs[key]
        if following:
            self.spawn(run.turn.user_id, following)

    def spawn(self, user_id: str, turn_id: str) -> None:
        """Take a turn up in the background; if that fails, recovery does it."""
        task = asyncio.get_running_loop().create_task(self._take(user_id, turn_id), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, user_id: str, turn_id: str) -> None:
        try:
            turn = await self._parts.turns.take_up(user_id, turn_id)
        except GaggleError as error:
            _log.warning("turn_not_taken_up", turn=turn_id, error=error.message)
            return
        if turn is not None:
            self.start(turn)

    async def end(
        self, user_id: str, turn_id: str, status: "turn_pb2.TurnStatus.ValueType"
    ) -> document_pb2.TurnDocument | None:
        """Take a turn away from whoever works on it and end it so; None if it has ended, or had not begun."""
        partial = ""
        run = self.get(user_id, turn_id)
        if run is not None:
            partial = run.partial_text
        else:
            found = await self._parts.turns.store.turn(user_id, turn_id)
            if found is not None:
                checkpoint = await self._parts.turns.store.checkpoint(user_id, turn_id, found.attempt)
                partial = unfinished_text(checkpoint)
        turn = await self._parts.turns.take_up(user_id, turn_id, ending=status, partial_text=partial)
        if turn is not None:
            if run is not None:
                await run.stop()
            self.start(turn)
        return turn

    # -- what others have left

    async def recover_forever(self) -> None:
        """Look at every interval for turns that nobody works on."""
        while True:
            await self.recover()
            await asyncio.sleep(self._parts.settings.recovery_seconds)

    async def recover(self) -> int:
        """Take up what is due; gives how many."""
        store = self._parts.turns.store
        found = await store.state.get_many([watchlist(number) for number in range(WATCHLISTS)])
        moment = now()
        taken = 0
        for item in found.values():
            for entry in document_pb2.Watchlist.FromString(item.value).turns:
                if (entry.user_id, entry.turn_id) in self._runs:
                    continue
                if entry.HasField("due_time") and entry.due_time.ToNanoseconds() > moment.ToNanoseconds():
                    continue
                try:
                    taken += await self._look(entry.user_id, entry.turn_id)
                except GaggleError as error:
                    _log.warning("turn_not_looked_at", turn=entry.turn_id, error=error.message)
        return taken

    async def _look(self, user_id: str, turn_id: str) -> bool:
        turns = self._parts.turns
        item = await turns.store.state.get(turn_key(user_id, turn_id))
        turn = document_pb2.TurnDocument.FromString(item.value) if item else None
        if turn is not None and turn.status == turn_pb2.TURN_STATUS_WAITING_APPROVAL:
            return await self._expire(user_id, turn_id)
        if turn is not None and turn.status == turn_pb2.TURN_STATUS_RUNNING:
            checkpoint = await turns.store.checkpoint(user_id, turn_id, turn.attempt)
            if checkpoint is not None and not turns.is_dead(checkpoint):
                return False
        taken = await turns.take_up(user_id, turn_id, after_attempt=turn.attempt if turn else None)
        if taken is None or self.get(user_id, turn_id) is not None:
            return False
        _log.warning("turn_taken_over", turn=turn_id, attempt=taken.attempt)
        self.start(taken)
        return True

    async def _expire(self, user_id: str, turn_id: str) -> bool:
        moment = now().ToNanoseconds()

        def decision(turn: document_pb2.TurnDocument) -> bool:
            late = [
                call for call in turn.calls if call.status == _WAITING and call.expire_time.ToNanoseconds() <= moment
            ]
            for call in late:
                call.status = turn_pb2.TOOL_CALL_STATUS_DENIED
                call.expired = True
            return bool(late)

        turn, goes_on = await self._parts.turns.decide(user_id, turn_id, decision)
        if goes_on:
            self.start(turn)
        return goes_on

    # -- the end of the process

    async def stop(self) -> None:
        """Stop all attempts, so that other processes go on with them at once."""
        for task in self._tasks:
            task.cancel()
        runs = list(self._runs.values())
        for run in runs:
            await run.stop()
            await run.hand_over()
        await self._parts.catalog.close()


def unfinished_text(checkpoint: document_pb2.Checkpoint | None) -> str:
    """Give what an unfinished step has said, as far as it was saved."""
    if checkpoint is None:
        return ""
    texts: list[str] = []
    for event in checkpoint.events:
        kind = event.WhichOneof("event")
        if kind == "text_delta":
            texts.append(event.text_delta.text)
        elif kind in {"usage", "restarted", "tool_result"}:
            texts.clear()
    return "".join(texts)
