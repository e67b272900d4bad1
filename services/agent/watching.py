"""Streams of a turn's events: from this process where it works on the turn, else from the state store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from gaggle.agent.state.v1 import document_pb2
from gaggle.agent.v1 import turn_pb2
from services.agent import journal
from services.agent.running import TurnRun, wait
from services.agent.runs import Runs
from services.agent.store import AgentStore, lane_key
from services.agent.turns import ENDED, ended_event
from services.runtime.errors import NotFoundError, UnavailableError

_LAST = frozenset({"ended", "waiting"})
_LIVE_SECONDS = 5.0
_AWAY_SECONDS = 30.0


class Watcher:
    """Serves one stream after another. Who leaves changes nothing."""

    def __init__(self, store: AgentStore, runs: Runs, *, poll_seconds: float) -> None:
        """`poll_seconds`: how often the store is asked about a turn that another process works on."""
        self._store = store
        self._runs = runs
        self._poll = poll_seconds

    async def follow(self, user_id: str, turn_id: str, position: int) -> AsyncIterator[turn_pb2.TurnEvent]:
        """Give a turn's events after a position, until it ends or waits for a person. Raises NotFoundError."""
        place = _Place(user_id, turn_id, position)
        while True:
            run = self._runs.get(user_id, turn_id)
            live = run is not None and run.journal.base <= place.position
            events = self._live(run, place.position) if run is not None and live else self._look(place)
            async with contextlib.aclosing(events) as open_events:  # type: ignore[type-var]
                async for event in open_events:
                    place.position = max(place.position, event.position)
                    yield event
                    if event.WhichOneof("event") in _LAST:
                        return
            # What runs here wakes who waits; what runs elsewhere is asked for again.
            await (asyncio.sleep(0) if live or place.caught_up else wait(place.changed, self._poll))

    async def _look(self, place: "_Place") -> AsyncIterator[turn_pb2.TurnEvent]:
        """Give what the store has of a turn after a place, as far as it was not given before."""
        place.changed, place.caught_up = self._runs.changed.next, False
        try:
            turn = await self._turn(place.user_id, place.turn_id)
            stored = await self._stored(turn, place)
            ahead = await self._ahead(turn) if turn.status == turn_pb2.TURN_STATUS_QUEUED else 0
        except UnavailableError:
            # The stream outlives a restart of the sidecar or the store; but not for ever.
            place.failures += 1
            if place.failures > _AWAY_SECONDS / self._poll:
                raise
            return
        place.failures = 0
        if ahead and ahead != place.ahead:
            place.ahead = ahead
            conversation_id = turn.request.conversation_id
            queued = turn_pb2.TurnQueued(turn_id=turn.id, conversation_id=conversation_id, ahead=ahead)
            yield turn_pb2.TurnEvent(position=place.position, queued=queued)
        last = ""
        for event in journal.after(stored, place.position):
            last = event.WhichOneof("event") or ""
            yield event
        if (closing := _closing(turn)) is not None and last not in _LAST:
            yield closing
        run = self._runs.get(turn.user_id, turn.id)
        if run is not None and run.turn.attempt == turn.attempt:
            # All that lies before this attempt has been given.
            place.position, place.caught_up = max(place.position, run.journal.base), True

    async def _live(self, run: TurnRun, position: int) -> AsyncIterator[turn_pb2.TurnEvent]:
        while True:
            # Whoever is slow to take what is given must not miss what comes meanwhile.
            changed, over = run.changed.next, run.over
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
            await wait(changed, _LIVE_SECONDS)

    async def _turn(self, user_id: str, turn_id: str) -> document_pb2.TurnDocument:
        turn = await self._store.turn(user_id, turn_id)
        if turn is None:
            raise NotFoundError("turn", turn_id)
        return turn

    async def _ahead(self, turn: document_pb2.TurnDocument) -> int:
        key = lane_key(turn.user_id, turn.request.conversation_id)
        lane = await self._store.read(key, document_pb2.Lane) or document_pb2.Lane()
        return 1 + list(lane.queue).index(turn.id) if turn.id in lane.queue else 0

    async def _stored(self, turn: document_pb2.TurnDocument, place: "_Place") -> list[turn_pb2.TurnEvent]:
        """Read the rows of the log not yet read, and what the unfinished step has said."""
        events = await self._store.log(turn.user_id, turn.id, list(range(place.read_rows, turn.log_rows)))
        checkpoint = None
        if turn.status == turn_pb2.TURN_STATUS_RUNNING:
            checkpoint = await self._store.checkpoint(turn.user_id, turn.id, turn.attempt)
        if checkpoint is not None:
            events += [one for one in checkpoint.events if one.position > turn.position]
        place.read_rows = turn.log_rows
        return events


class _Place:
    """Where one stream stands."""

    def __init__(self, user_id: str, turn_id: str, position: int) -> None:
        self.user_id = user_id
        self.turn_id = turn_id
        self.position = position
        self.read_rows = 0
        self.ahead = 0
        self.failures = 0
        self.changed = asyncio.Event()
        self.caught_up = False


def _closing(turn: document_pb2.TurnDocument) -> turn_pb2.TurnEvent | None:
    """Give the event that closes the stream of a turn on which nobody works now."""
    if turn.status in ENDED:
        return turn_pb2.TurnEvent(position=turn.position, ended=ended_event(turn))
    if turn.status == turn_pb2.TURN_STATUS_WAITING_APPROVAL:
        waiting = [one.id for one in turn.calls if one.status == turn_pb2.TOOL_CALL_STATUS_WAITING_APPROVAL]
        told = turn_pb2.TurnWaiting(turn_id=turn.id, call_ids=waiting)
        return turn_pb2.TurnEvent(position=turn.position, waiting=told)
    return None
