"""What the database needs now and then."""

import asyncio

from services.audit.store import AuditStore

_FIRST_EVENTS = 500
_LOOK_SECONDS = 5.0


class Upkeep:
    """Renews statistics while the log is young, and the hourly counts at every interval."""

    def __init__(self, store: AuditStore, *, hourly_counts_interval_seconds: float) -> None:
        """Every process may do it: doing it twice costs time alone."""
        self._store = store
        self._interval = hourly_counts_interval_seconds
        self._head = 0
        self._analyzed = 0

    def logged(self, head: int) -> None:
        """Tell that the log reaches to `head`."""
        self._head = max(self._head, head)

    async def renew_statistics(self) -> None:
        """Whenever the log has doubled, until cancelled.

        PostgreSQL's own renewal comes a minute late, and connections keep plans made for tables of another size.
        """
        while True:
            if self._head >= max(_FIRST_EVENTS, 2 * self._analyzed):
                head = self._head
                await self._store.renew_statistics()
                self._analyzed = head
            await asyncio.sleep(_LOOK_SECONDS)

    async def refresh_hourly_counts(self) -> None:
        """Make them again at every interval, until cancelled."""
        while True:
            await self._store.refresh_hourly_counts()
            await asyncio.sleep(self._interval)
