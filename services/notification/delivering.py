"""Delivers what waits in an inbox: e-mail and webhook, at least once, with a stable key.

One process at a time delivers for a user: it writes its name and a time into the inbox, sends, then writes what came of
it. If it dies in between, the time runs out, the sweep finds the user by it, and what had been sent perhaps is sent
again under the same key.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from gaggle.notification.v1 import notification_pb2
from services.notification import domain, mail
from services.notification.domain import EMAIL, PAGE, WEBHOOK, Edit, Inbox, Notification, Pending
from services.notification.mail import Mailer
from services.notification.metrics import NotificationMetrics
from services.notification.outcome import DeliveryError
from services.notification.settings import NotificationSettings
from services.notification.store import NotificationStore
from services.notification.webhook import Webhooks
from services.runtime.errors import ConflictError, FailedPreconditionError, GaggleError
from services.runtime.locks import KeyedLocks

_WORKERS = 16
_BATCH = 50
_MOST_WAITING = 10_000
_PAUSES_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Result:
    """What came of deliveries that went together."""

    group: list[Pending]
    key: str = ""
    error: DeliveryError | None = None
    unwanted: bool = False
    """Nobody wants it any more."""


class Delivery:
    """Delivers, for one user after the other and several at once."""

    def __init__(
        self,
        store: NotificationStore,
        mailer: Mailer,
        webhooks: Webhooks,
        settings: NotificationSettings,
        metrics: NotificationMetrics,
        *,
        holder: str,
    ) -> None:
        """`holder` names this process."""
        self.holder = holder
        self._store = store
        self._mailer = mailer
        self._webhooks = webhooks
        self._settings = settings
        self._metrics = metrics
        self._waiting: asyncio.Queue[str] = asyncio.Queue(_MOST_WAITING)
        self._queued: set[str] = set()
        self._locks = KeyedLocks()
        # A send that began must be over, and written down, before the claim is.
        self._longest = settings.smtp_timeout_seconds * 3 + settings.webhook_timeout_seconds
        self._claim = settings.claim_seconds + self._longest

    def claim(self, edit: Edit) -> None:
        """Have this process deliver what a change has made due; called in the change, then `look`."""
        if edit.due() and not edit.held():
            edit.claim(self.holder, self._claim)

    def look(self, user_id: str) -> None:
        """Deliver soon for a user what is due; never waits. What finds no place, the sweep finds again."""
        if user_id not in self._queued:
            try:
                self._waiting.put_nowait(user_id)
            except asyncio.QueueFull:
                return
            self._queued.add(user_id)

    async def run(self) -> None:
        """Deliver, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_WORKERS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            user_id = await self._waiting.get()
            self._queued.discard(user_id)
            try:
                await self.deliver(user_id)
            except (GaggleError, OSError) as error:
                _log.warning("delivery_put_off", user=user_id, error=str(error))
            except Exception:  # noqa: BLE001 - one user's trouble is not another's
                _log.exception("delivery_failed", user=user_id)

    async def deliver(self, user_id: str) -> None:
        """Deliver what is due for a user, unless another process does. Raises GaggleError."""
        async with self._locks.alone(user_id):
            while True:
                document = await self._begin(user_id)
                if document is None:
                    return
                results = await self._send(user_id, document)
                await self._settle(user_id, results)

    async def _begin(self, user_id: str) -> Inbox | None:
        """Claim a user whose deliveries are due; None if there is nothing to be done here."""
        mine = False

        def apply(edit: Edit) -> bytes:
            nonlocal mine
            mine = bool(edit.due()) and edit.claim(self.holder, self._claim)
            if not edit.due() and edit.document.deliverer == self.holder:
                edit.release()
            return b""

        try:
            document, _ = await self._store.change(user_id, apply)
        except FailedPreconditionError:
            return None  # Erased.
        return document if mine else None

    async def _send(self, user_id: str, document: Inbox) -> list[_Result]:
        now = self._store.now()
        due = [one for one in document.pending if one.due_time.ToDatetime(UTC) <= now][:_BATCH]
        told = await self._told(user_id, document, due)
        end = asyncio.get_running_loop().time() + self._claim - self._longest
        gathered = [one for one in due if one.digest and one.channel == EMAIL]
        mails = [gathered] if gathered else []
        mails += [[one] for one in due if not one.digest and one.channel == EMAIL]
        posts = [[one] for one in due if one.channel == WEBHOOK]
        preferences = document.preferences

        async def by_mail(found: Sequence[Notification]) -> None:
            await self._mailer.send(user_id, preferences.email_address, preferences.time_zone, found)

        async def by_webhook(found: Sequence[Notification]) -> None:
            await self._webhooks.send(preferences.webhook, found[0])

        done = await asyncio.gather(
            self._each(mails, told, preferences, by_mail, end), self._each(posts, told, preferences, by_webhook, end)
        )
        return [one for results in done for one in results]

    @staticmethod
    async def _each(
        groups: Sequence[list[Pending]],
        told: dict[str, Notification],
        preferences: notification_pb2.Preferences,
        send: Callable[[Sequence[Notification]], Awaitable[None]],
        end: float,
    ) -> list[_Result]:
        """Send one after the other, while there is time; what fails does not hold up the next."""
        results = []
        for group in groups:
            if asyncio.get_running_loop().time() > end:
                break
            wanted = [
                one
                for one in group
                if one.notification_id in told and one.channel in domain.channels(preferences, one.kind)
            ]
            if unwanted := [one for one in group if one not in wanted]:
                results.append(_Result(unwanted, unwanted=True))
            if not wanted:
                continue
            found = [told[one.notification_id] for one in wanted]
            key = f"{wanted[0].channel}.{mail.key(found)}"
            try:
                await send(found)
            except DeliveryError as error:
                results.append(_Result(wanted, key, error))
            else:
                results.append(_Result(wanted, key))
        return results

    async def _told(self, user_id: str, document: Inbox, due: Sequence[Pending]) -> dict[str, Notification]:
        """Find the notifications that are to be delivered; those that are kept no longer are left out."""
        there = {one.id: one for one in document.notifications}
        kept = {one.page for one in document.pages}
        places = [domain.position_of(one.notification_id) or 0 for one in due if one.notification_id not in there]
        if numbers := sorted({place // PAGE for place in places} & kept):
            for page in (await self._store.pages(user_id, numbers)).values():
                there |= {one.id: one for one in page.notifications}
        return there

    async def _settle(self, user_id: str, results: Sequence[_Result]) -> None:
        """Write down what came of it, for as long as nobody else can have taken over."""
        outcomes: list[tuple[str, str]] = []

        def apply(edit: Edit) -> bytes:
            outcomes.clear()
            for result in results:
                outcome = self._note(edit, result)
                outcomes.extend((_name(one), outcome) for one in result.group)
            if edit.document.deliverer == self.holder:
                edit.release()
                self.claim(edit)
            return b""

        end = asyncio.get_running_loop().time() + self._longest / 2
        for attempt in range(1000):
            try:
                await self._store.change(user_id, apply)
                break
            except FailedPreconditionError:
                return  # Erased.
            except (GaggleError, ConflictError):
                if asyncio.get_running_loop().time() > end:
                    raise
                await asyncio.sleep(_PAUSES_SECONDS[min(attempt, len(_PAUSES_SECONDS) - 1)])
        self._observe(user_id, results, outcomes)

    def _observe(self, user_id: str, results: Sequence[_Result], outcomes: Sequence[tuple[str, str]]) -> None:
        for channel, outcome in outcomes:
            self._metrics.deliveries.labels(channel, outcome).inc()
        now = self._store.now()
        for result in results:
            if result.error is not None:
                _log.warning("not_delivered", user=user_id, key=result.key, error=str(result.error))
            elif not result.unwanted:
                for one in result.group:
                    late = (now - one.first_due_time.ToDatetime(UTC)).total_seconds()
                    self._metrics.lateness.observe(max(late, 0.0))

    def _note(self, edit: Edit, result: _Result) -> str:
        if result.unwanted:
            for one in result.group:
                edit.cancelled(one)
            return "cancelled"
        if result.error is None:
            edit.delivered(result.group, result.key)
            return "delivered"
        again = [self._again(edit, one, result.error) for one in result.group]
        for one, at in zip(result.group, again, strict=True):
            edit.failed(one, str(result.error), at)
        return "failed" if again[0] is not None else "parked"

    def _again(self, edit: Edit, one: Pending, error: DeliveryError) -> datetime | None:
        """Say when to try again; None: not any more."""
        patience = timedelta(seconds=self._settings.patience_seconds)
        if error.for_good or edit.now - one.first_due_time.ToDatetime(UTC) > patience:
            return None
        pause = domain.pause(one.attempts + 1, self._settings.first_pause_seconds, self._settings.longest_pause_seconds)
        at = edit.now + pause
        return domain.quiet_until(edit.document.preferences, one.kind, at) or at


def _name(one: Pending) -> str:
    return notification_pb2.Channel.Name(one.channel).removeprefix("CHANNEL_").lower()
