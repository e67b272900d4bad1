"""Streams of a turn's events: from this process where it works on the turn, else from the state store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from gaggle.agent.state.v1 import document_pb2
from gaggle.agent.v1 import turn_pb2
from services.agent import journal
from services.agent.running import TurnRun
from services.agent.runs import Runs
from services.agent.store import AgentStore, lane_key
from services.agent.turns import ENDED, ended_event
from services.runtime.errors import NotFoundError, UnavailableError

_LAST = frozenset({"ended", "waiting"})
_LIVE_SECONDS = 5.0


class Watcher:
    """Serves one stream after another. Who leaves changes nothing."""

    def __init__(self, store: AgentStore, runs: Runs, *, poll_seconds: float) -> None:
        """`poll_seconds`: how often the store is asked about a turn that another process works on."""
        self._store = store
        self._runs = runs
        self._poll = poll_seconds

    async def follow(self, user_id: str, turn_id: str, position: int) -> AsyncIterator[turn_pb2.TurnEvent]:
        """Give a turn's events after a position, until it ends or waits for a person. Raises NotFoundError."""
        read_rows = 0
        told_ahead = -1
        asked = 0
        while True:
            run = self._runs.get(user_id, turn_id)
            if run is not None and (run.journal.base <= position or (run.turn.attempt == 1 and not position)):
                async with contextlib.aclosing(self._live(run, position)) as events:  # type: ignore[type-var]
                    async for event in events:
                        position = max(position, event.position)
                        yield event
                        if event.WhichOneof("event") in _LAST:
                            return
                await asyncio.sleep(0)
                continue
            changed = self._runs.changed
            try:
                turn = await self._turn(user_id, turn_id)
                if turn.status == turn_pb2.TURN_STATUS_QUEUED:
                    ahead = await self._ahead(turn)
                    if ahead != told_ahead:
                        told_ahead = ahead
                        conversation_id = turn.request.conversation_id
                        queued = turn_pb2.TurnQueued(turn_id=turn_id, conversation_id=conversation_id, ahead=ahead)
                        yield turn_pb2.TurnEvent(position=position, queued=queued)
                    await changed.wait(self._poll)
                    continue
                stored, read_rows = await self._stored(turn, read_rows)
            except UnavailableError:
                # The stream outlives a restart of the sidecar or the store; but not for ever.
                asked += 1
                if asked > _LIVE_SECONDS * 6 / self._poll:
                    raise
                await changed.wait(self._poll)
                continue
            asked = 0
            last = ""
            for event in journal.after(stored, position):
                position = event.position
                last = event.WhichOneof("event") or ""
                yield event
            if turn.status in ENDED:
                if last != "ended":
                    yield turn_pb2.TurnEvent(position=turn.position, ended=ended_event(turn))
                return
            if turn.status == turn_pb2.TURN_STATUS_WAITING_APPROVAL:
                if last != "waiting":
                    waiting = [one.id for one in turn.calls if one.status == turn_pb2.TOOL_CALL_STATUS_WAITING_APPROVAL]
                    told = turn_pb2.TurnWaiting(turn_id=turn_id, call_ids=waiting)
                    yield turn_pb2.TurnEvent(position=turn.position, waiting=told)
                return
            run = self._runs.get(user_id, turn_id)
            if run is not None and run.turn.attempt == turn.attempt:
                # All that lies before this attempt has been told.
                position = max(position, run.journal.base)
                continue
            await changed.wait(self._poll)

    async def _live(self, run: TurnRun, position: int) -> AsyncIterator[turn_pb2.TurnEvent]:
        while True:
            over = run.over
            for event in run.journal.since(position):
                position = event.position
                yield event
            if over:
                return
            answer = run.unsaved_answer
            if answer is not None:
                # The answer is whole, and the store has been away for a while: tell it, with the truth about it.
                ended = ended_event(run.turn, unsaved=True)
                ended.status = turn_pb2.TURN_STATUS_COMPLETED
                ended.message.CopyFrom(answer)
                yield turn_pb2.TurnEvent(position=position, ended=ended)
                return
            await run.changed.wait(_LIVE_SECONDS)

    async def _turn(self, user_id: str, turn_id: str) -> document_pb2.TurnDocument:
        turn = await self._store.turn(user_id, turn_id)
        if turn is None:
            raise NotFoundError("turn", turn_id)
        return turn

    async def _ahead(self, turn: document_pb2.TurnDocument) -> int:
        key = lane_key(turn.user_id, turn.request.conversation_id)
        lane = await self._store.read(key, document_pb2.Lane) or document_pb2.Lane()
        return 1 + list(lane.queue).index(turn.id) if turn.id in lane.queue else 0

    async def _stored(self, turn: document_pb2.TurnDocument, read_rows: int) -> tuple[list[turn_pb2.TurnEvent], int]:
        """Read the rows of the log not yet read, and what the unfinished step has said."""
        rows = list(range(read_rows, turn.log_rows))
        events = await self._store.log(turn.user_id, turn.id, rows)
        checkpoint = None
        if turn.status == turn_pb2.TURN_STATUS_RUNNING:
            checkpoint = await self._store.checkpoint(turn.user_id, turn.id, turn.attempt)
        if checkpoint is not None:
            events += [one for one in checkpoint.events if one.position > turn.position]
        return events, turn.log_rows
