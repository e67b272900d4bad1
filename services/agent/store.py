"""The agent's documents in the state store: keys, and commits that survive races.

Every change reads the documents it touches, judges, and writes them over the ETags just read, in one transaction with
what it has to tell. docs/state.md lists every key.
"""

import asyncio
import inspect
import random
import zlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.agent.state.v1 import document_pb2
from gaggle.agent.v1 import turn_pb2
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from services.runtime.errors import ConflictError
from services.runtime.keys import user_part
from services.runtime.locks import KeyedLocks
from services.runtime.outbox import Number, Outbox
from services.runtime.state import Item, Put, Remove, StateStore
from services.runtime.users import Users

WATCHLISTS = 64
_ATTEMPTS = 12

M = TypeVar("M", bound=Message)
T = TypeVar("T")


def session_key(user_id: str, session_id: str) -> str:
    """Key of a session."""
    return f"session:{user_part(user_id)}:{session_id}"


def index_key(user_id: str, bucket: int | None = None) -> str:
    """Key of a user's index: the newest sessions, or a bucket of 256 older ones."""
    return f"agent:{user_part(user_id)}" + ("" if bucket is None else f":b{bucket}")


def day_key(user_id: str, day: int, part: str = "") -> str:
    """Key of what a user's turns did on a day (since 1970-01-01), or of a block of it."""
    return f"agent-day:{user_part(user_id)}:{day}" + (f":{part}" if part else "")


def lane_key(user_id: str, conversation_id: str) -> str:
    """Key of a conversation's turns."""
    return f"lane:{user_part(user_id)}:{conversation_id}"


def turn_key(user_id: str, turn_id: str) -> str:
    """Key of a turn."""
    return f"turn:{user_part(user_id)}:{turn_id}"


def log_key(user_id: str, turn_id: str, row: int) -> str:
    """Key of a row of a turn's log."""
    return f"{turn_key(user_id, turn_id)}:l{row}"


def checkpoint_key(user_id: str, turn_id: str, attempt: int) -> str:
    """Key of what one attempt says of itself."""
    return f"{turn_key(user_id, turn_id)}:c{attempt}"


def watchlist_key(user_id: str, turn_id: str) -> str:
    """Key of the list that names a turn somebody has to look at."""
    return watchlist(zlib.crc32(f"{user_id}\0{turn_id}".encode()) % WATCHLISTS)


def watchlist(number: int) -> str:
    """Key of one of the lists."""
    return f"turns-watched:{number}"


def now() -> Timestamp:
    """Give the time, by this process's clock."""
    moment = Timestamp()
    moment.GetCurrentTime()
    return moment


def timestamp(moment: datetime) -> Timestamp:
    """Write a time."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def today() -> int:
    """Give the day in UTC, counted from 1970-01-01."""
    return datetime.now(UTC).toordinal() - datetime(1970, 1, 1, tzinfo=UTC).toordinal()


class Transaction:
    """Documents as they were read, and what is to become of them."""

    def __init__(self, found: dict[str, Item]) -> None:
        """`found`: what there is of the keys that were asked for."""
        self._found = found
        self._writes: dict[str, tuple[Message | None, int]] = {}
        self.events: list[runtime_pb2.OutboxEvent] = []
        self.puts: list[Put | Remove] = []
        """Writes of others' making, as they are."""

        self.numbered: list[Callable[[Number], None]] = []
        """Told the number of the commit before anything is serialized."""

    def item(self, key: str) -> Item | None:
        """Give what lay under a key."""
        return self._found.get(key)

    def read(self, key: str, kind: type[M]) -> M | None:
        """Read a document of one's own to change; None if there is none."""
        item = self._found.get(key)
        return None if item is None else kind.FromString(item.value)

    def put(self, key: str, document: Message, *, ttl_seconds: int = 0) -> None:
        """Write a document that was asked for, over what was read."""
        self._writes[key] = (document, ttl_seconds)

    def remove(self, key: str) -> None:
        """Delete a document that was asked for."""
        self._writes[key] = (None, 0)

    @property
    def empty(self) -> bool:
        """There is nothing to do."""
        return not (self._writes or self.puts or self.events)

    def operations(self) -> list[Put | Remove]:
        """Give the transaction's writes."""
        operations: list[Put | Remove] = []
        for key, (document, ttl_seconds) in self._writes.items():
            item = self._found.get(key)
            if document is None:
                if item is not None:
                    operations.append(Remove(key, etag=item.etag))
                continue
            value = document.SerializeToString()
            etag = item.etag if item else ""
            operations.append(Put(key, value, etag=etag, create=item is None, ttl_seconds=ttl_seconds))
        return operations + self.puts


class AgentStore:
    """Reads and changes documents."""

    def __init__(self, state: StateStore, outbox: Outbox) -> None:
        """Both are shared by the whole process."""
        self.state = state
        self.outbox = outbox
        self.users = Users(state)
        self._locks = KeyedLocks()

    async def change(
        self,
        keys: Sequence[str],
        apply: "Callable[[Transaction], T | Awaitable[T]]",
        *,
        confirm: Collection[str] = (),
    ) -> T:
        """Read these documents, have them changed, and commit; again as long as others are faster.

        `apply` may be called several times. `confirm`: of these an absence is judged, and so is made sure of.
        Raises ConflictError after many races, what `apply` raises, and UnavailableError or DeadlineError: the effect
        may have happened.
        """
        async with self._locks.alone(*keys):
            for attempt in range(_ATTEMPTS):
                found = await self.state.get_many(list(keys), confirm=list(keys) if attempt else confirm)
                transaction = Transaction(found)
                applied = apply(transaction)
                result: T = await applied if inspect.isawaitable(applied) else applied
                if transaction.empty:
                    return result
                try:
                    await self._commit(transaction)
                except ConflictError:
                    await asyncio.sleep(random.uniform(0, 0.005 * 2 ** min(attempt, 5)))  # noqa: S311 - a jitter
                    continue
                return result
        raise ConflictError("other writers kept winning; try again")

    async def _commit(self, transaction: Transaction) -> None:
        number = await self.outbox.reserve()
        for told in transaction.numbered:
            told(number)
        row = runtime_pb2.OutboxRow(events=transaction.events)
        await self.outbox.commit_reserved(number, row, transaction.operations())

    async def read(self, key: str, kind: type[M]) -> M | None:
        """Read one document; None if there is none. Strong."""
        item = await self.state.get(key)
        return None if item is None else kind.FromString(item.value)

    async def turn(self, user_id: str, turn_id: str) -> document_pb2.TurnDocument | None:
        """Read a turn."""
        return await self.read(turn_key(user_id, turn_id), document_pb2.TurnDocument)

    async def log(self, user_id: str, turn_id: str, rows: Sequence[int]) -> list[turn_pb2.TurnEvent]:
        """Read rows of a turn's log, in order; rows that have run out are left out."""
        events: list[turn_pb2.TurnEvent] = []
        for start in range(0, len(rows), 8):
            keys = [log_key(user_id, turn_id, row) for row in rows[start : start + 8]]
            found = await self.state.get_many(keys, confirm=keys)
            for key in keys:
                if key in found:
                    events += document_pb2.TurnLog.FromString(found[key].value).events
        return events

    async def checkpoint(self, user_id: str, turn_id: str, attempt: int) -> document_pb2.Checkpoint | None:
        """Read what an attempt says of itself."""
        return await self.read(checkpoint_key(user_id, turn_id, attempt), document_pb2.Checkpoint)
