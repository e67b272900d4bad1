"""The log and the read model, through the output binding: one statement a call, one JSON value in, one out.

The binding reports a connection lost half-way through a result as a complete, shorter result. Every function of the
schema therefore answers with exactly one row, so that a cut-off answer has none and is told from a whole one.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from services.audit.domain import DeadLetter, LoggedEvent
from services.runtime.errors import GaggleError, UnavailableError

MAX_RESPONSE_BYTES = 3_000_000
"""A page ends here, earlier than asked if need be."""

# Classes of SQLSTATE that say that the data is at fault and not the moment: data exception, integrity violation.
_REFUSED = re.compile(r"SQLSTATE (22|23)\w{3}")

JsonObject = dict[str, Any]


class Sql(Protocol):
    """Runs a query of a PostgreSQL binding: `services.runtime.sidecar.Sidecar`."""

    async def sql(self, name: str, statement: str, parameters: Sequence[object] = ()) -> list[list[Any]]:
        """Give the rows."""
        ...


class RefusedError(Exception):
    """The database will never take this, however often it is tried."""


@dataclass(frozen=True, slots=True)
class IndexWork:
    """A conversation whose messages are to be fetched."""

    user_id: str
    conversation_id: str
    incarnation: int
    indexed_sequence: int
    last_sequence: int
    attempts: int
    wants_snapshot: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A conversation as its owner knows it. Times are RFC 3339."""

    user_id: str
    id: str
    incarnation: int
    revision: int
    deleted: bool = False
    title: str = ""
    metadata: Mapping[str, str] | None = None
    created_at: str | None = None
    updated_at: str | None = None
    last_sequence: int = 0
    message_count: int = 0
    first_sequence: int = 1
    summary_sequence: int = 0
    fence: int = 0
    max_messages: int = 0
    ttl_seconds: float | None = None
    forked_from_id: str | None = None
    forked_from_sequence: int | None = None


@dataclass(frozen=True, slots=True)
class IndexedMessage:
    """The text of a message."""

    sequence: int
    message_id: str
    role: str
    create_time: str | None
    content: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Revisions of an entity that its owner has and the log has not; both ends included."""

    user_id: str
    id: str
    incarnation: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a list."""

    items: list[JsonObject]
    more: bool
    head: int = 0
    """The log's newest position when it was read."""


class AuditStore:
    """Every call raises UnavailableError or DeadlineError if the database can't be reached in time."""

    def __init__(self, sql: Sql, component: str, *, index_delay_seconds: float) -> None:
        """`index_delay_seconds`: from a change until its conversation is due for the indexer."""
        self._sql = sql
        self._component = component
        self._index_delay = index_delay_seconds

    async def append(self, events: Sequence[LoggedEvent]) -> tuple[int, int]:
        """Log events, each once; give how many were new, and the log's newest position. Raises RefusedError."""
        request = {"events": [one.as_row() for one in events], "index_delay_seconds": self._index_delay}
        answer = await self._call("append_events", request)
        return answer["appended"], answer["head"]

    async def add_dead_letters(self, letters: Sequence[DeadLetter]) -> None:
        """Keep what could not be read, each delivery once."""
        rows = [asdict(one) | {"payload": base64.b64encode(one.payload).decode()} for one in letters]
        await self._call("add_dead_letters", {"dead_letters": rows})

    async def list_dead_letters(self, after: int, limit: int) -> Page:
        """Give dead letters after a position."""
        request = {"after": after, "limit": limit, "max_bytes": MAX_RESPONSE_BYTES}
        return _page(await self._call("list_dead_letters", request))

    async def list_events(self, event_filter: JsonObject, *, limit: int, descending: bool = False) -> Page:
        """Give the events of a filter in the order of their positions."""
        request = event_filter | {"limit": limit, "max_bytes": MAX_RESPONSE_BYTES, "descending": descending}
        return _page(await self._call("list_events", request))

    async def count_events(self, event_filter: JsonObject, *, by: str, limit: int) -> tuple[list[JsonObject], int]:
        """Count the events of a filter; give the first counts and the total of all."""
        answer = await self._call("count_events", event_filter | {"by": by, "limit": limit})
        return answer["items"], answer["total"]

    async def head(self) -> int:
        """Give the log's newest position."""
        return int((await self._call("log_head"))["head"])

    async def lag(self, after: int) -> float:
        """Give how many seconds late the freshest of the events came that lie after a position; 0: there are none."""
        return float((await self._call("log_lag", {"after": after}))["seconds"])

    async def search(self, request: JsonObject) -> Page:
        """Find messages; see goose.search_messages."""
        return _page(await self._call("search_messages", request))

    async def query_conversations(self, request: JsonObject) -> Page:
        """Give conversations; see goose.query_conversations."""
        return _page(await self._call("query_conversations", request))

    async def now(self) -> str:
        """Give the database's clock, RFC 3339."""
        return str((await self._call("now"))["now"])

    # -- the read model

    async def apply_snapshots(
        self, snapshots: Sequence[Snapshot], *, again: bool = False, delay_seconds: float | None = None
    ) -> None:
        """Take over what the owner says; `again` makes the rows anew and drops their text."""
        delay = self._index_delay if delay_seconds is None else delay_seconds
        rows = [asdict(one) for one in snapshots]
        await self._call("apply_snapshots", {"snapshots": rows, "again": again, "index_delay_seconds": delay})

    async def prune_conversations(self, before: str, user_id: str | None) -> int:
        """Take away rows not written since `before`, of one user or of all."""
        request = {"before": before, "user_id": user_id}
        return int((await self._call("prune_conversations", request))["pruned"])

    async def begin_entities(self, user_id: str | None) -> None:
        """Let any event be newer than the rows of recipes, executions, extensions and sessions, of one user or all."""
        await self._call("begin_entities", {"user_id": user_id})

    async def refold_entities(self, after: int, limit: int) -> tuple[int, bool]:
        """Write what the next events tell of them; give the position, and whether there are more."""
        answer = await self._call("refold_entities", {"after": after, "limit": limit})
        return int(answer["position"]), bool(answer["more"])

    async def prune_entities(self, user_id: str | None) -> int:
        """Take away rows that no event tells of; give how many there are."""
        return int((await self._call("prune_entities", {"user_id": user_id}))["entities"])

    async def claim_index_work(self, limit: int, lease_seconds: float) -> list[IndexWork]:
        """Take conversations to index; they are nobody else's for so long."""
        answer = await self._call("claim_index_work", {"limit": limit, "lease_seconds": lease_seconds})
        return [IndexWork(**one) for one in answer["items"]]

    async def index_messages(self, work: IndexWork, messages: Sequence[IndexedMessage], indexed_sequence: int) -> None:
        """Write text; all up to `indexed_sequence` counts as fetched from then on."""
        request = {
            "user_id": work.user_id,
            "conversation_id": work.conversation_id,
            "incarnation": work.incarnation,
            "messages": [asdict(one) for one in messages],
            "indexed_sequence": indexed_sequence,
        }
        await self._call("index_messages", request)

    async def finish_index_work(self, work: IndexWork, *, error: str | None = None, retry_seconds: float = 0) -> None:
        """Give a conversation back: done, or to be tried again."""
        request = {
            "user_id": work.user_id,
            "conversation_id": work.conversation_id,
            "error": error,
            "retry_seconds": retry_seconds,
        }
        await self._call("finish_index_work", request)

    # -- reconciliation, erasure, leases

    async def find_gaps(self, entity_type: str, snapshots: Sequence[Snapshot]) -> list[Gap]:
        """Give the revisions that these have and the log has not."""
        entities = [
            {"user_id": one.user_id, "id": one.id, "incarnation": one.incarnation, "revision": one.revision}
            for one in snapshots
        ]
        answer = await self._call("find_gaps", {"entity_type": entity_type, "entities": entities})
        return [Gap(**one) for one in answer["items"]]

    async def mark_lost(self, entity_type: str, gaps: Sequence[Gap]) -> None:
        """Note what an owner can't publish again."""
        await self._call("mark_lost", {"entity_type": entity_type, "gaps": [asdict(one) for one in gaps]})

    async def open_erasures(self, limit: int) -> list[JsonObject]:
        """Give erasures that are not yet done and told, oldest first."""
        answer = await self._call("open_erasures", {"limit": limit})
        return list(answer["items"])

    async def erase_user(self, user_id: str, erasure_id: str, limit: int) -> JsonObject:
        """Take away some of a user's rows and payloads; `complete_time` is set when nothing was left."""
        return await self._call("erase_user", {"user_id": user_id, "erasure_id": erasure_id, "limit": limit})

    async def report_erasure(self, user_id: str, erasure_id: str) -> None:
        """Note that an erasure was told of."""
        await self._call("report_erasure", {"user_id": user_id, "erasure_id": erasure_id})

    async def take_lease(self, name: str, holder: str, seconds: float) -> bool:
        """Take or keep a piece of work that one process at a time is enough for; with 0 seconds, let go of it."""
        answer = await self._call("take_lease", {"name": name, "holder": holder, "seconds": seconds})
        return bool(answer["taken"])

    async def renew_statistics(self) -> None:
        """Have the planner look at the tables as they are."""
        tables = ("events", "revisions", "conversations", "index_work", "message_search")
        await self._rows(f"ANALYZE {', '.join(f'goose.{name}' for name in tables)}", [])

    async def refresh_hourly_counts(self) -> None:
        """Make the hourly counts again."""
        await self._rows("REFRESH MATERIALIZED VIEW CONCURRENTLY goose.event_counts_hourly", [])

    async def _call(self, function: str, request: JsonObject | None = None) -> JsonObject:
        if request is None:
            rows = await self._rows(f"SELECT goose.{function}()", [])
        else:
            given = {name: value for name, value in request.items() if value is not None}
            rows = await self._rows(f"SELECT goose.{function}($1::jsonb)", [json.dumps(given, ensure_ascii=False)])
        if len(rows) != 1:
            raise UnavailableError(self._component)
        answer = json.loads(rows[0][0])
        assert isinstance(answer, dict)
        return answer

    async def _rows(self, statement: str, parameters: list[object]) -> list[list[Any]]:
        try:
            return await self._sql.sql(self._component, statement, parameters)
        except GaggleError as error:
            details = getattr(error.__cause__, "details", None)
            said = str(details()) if callable(details) else ""
            if _REFUSED.search(said):
                raise RefusedError(said) from error
            raise


def _page(answer: JsonObject) -> Page:
    return Page(answer["items"], answer["more"], answer.get("head", 0))
