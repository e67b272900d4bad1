"""Takes away what is kept of an erased user, and says so.

Hearing of an erasure and doing it are apart: the log notes it in the transaction that logs the event, and this goes
on from there, however often the process ends in between. Its own event is published at least once, by the same id.
"""

import asyncio
import json
from datetime import datetime
from typing import Any, Protocol

import structlog

from services.audit.store import AuditStore
from services.runtime import topics
from services.runtime.events import Change, envelope

_ROWS_AT_ONCE = 2000
_ERASURES_AT_ONCE = 10
_SERVICE = "audit"

_log = structlog.get_logger()


class Publisher(Protocol):
    """Publishes JSON: `services.runtime.sidecar.Sidecar`."""

    async def publish(self, pubsub: str, topic: str, data: bytes, metadata: dict[str, str] | None = None) -> None:
        """Raise UnavailableError if it may not have reached the broker."""
        ...


class Erasure:
    """Works off goose.erased_users."""

    def __init__(self, store: AuditStore, publisher: Publisher, *, pubsub: str, poll_seconds: float) -> None:
        """Several may run at once: taking away twice does no harm."""
        self._store = store
        self._publisher = publisher
        self._pubsub = pubsub
        self._poll = poll_seconds

    async def run(self) -> None:
        """Erase what is to be erased, until cancelled."""
        while True:
            for erasure in await self._store.open_erasures(_ERASURES_AT_ONCE):
                await self._erase(erasure)
            await asyncio.sleep(self._poll)

    async def _erase(self, erasure: dict[str, Any]) -> None:
        user_id, erasure_id = erasure["user_id"], erasure["erasure_id"]
        while erasure["complete_time"] is None:
            erasure = await self._store.erase_user(user_id, erasure_id, _ROWS_AT_ONCE)
        await self._publisher.publish(self._pubsub, topics.USER_ERASURE_COMPLETED, completed_event(erasure))
        await self._store.report_erasure(user_id, erasure_id)
        _log.info("user_erased", erasure_id=erasure_id, items=erasure["items"])


def completed_event(erasure: dict[str, Any]) -> bytes:
    """Write goose.user.erasure.completed; the same erasure gives the same bytes."""
    change = Change(
        entity_type="user",
        entity_id=erasure["user_id"],
        user_id=erasure["user_id"],
        revision=0,
        incarnation=0,
        time=datetime.fromisoformat(erasure["complete_time"]),
    )
    data = {"erasureId": erasure["erasure_id"], "service": _SERVICE, "items": str(erasure["items"])}
    event_id = f"erasure.{erasure['erasure_id']}.{_SERVICE}"
    body = json.loads(envelope(change, topics.USER_ERASURE_COMPLETED, event_id, data))
    for counted in ("revision", "part", "parts", "incarnation"):
        del body[counted]
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
