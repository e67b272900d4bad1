"""What a user's inbox is, and when what leaves the mesh may leave. Knows neither gRPC nor Dapr.

All of a user is one document, the Inbox, and pages of 32 older notifications. An Edit is a change to it in the making:
it keeps count of what has to be told, of the pages that change with it, and of deliveries that are given up.
"""

import random
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from google.protobuf import json_format
from google.protobuf.message import Message

from gaggle.notification.state.v1 import document_pb2
from gaggle.notification.v1 import event_pb2, notification_pb2
from gaggle.notification.v1 import notification_service_pb2 as api
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from services.runtime import topics
from services.runtime.errors import NotFoundError
from services.runtime.events import Telling
from services.runtime.ids import new_id
from services.runtime.times import find_zone, on_wall_clock, parse_time_of_day, timestamp

PAGE = 32
"""Sequences of a page."""

MAX_PENDING = 500
"""Deliveries of a user that wait; more are parked."""

MAX_TITLE_BYTES = 1024
MAX_BODY_BYTES = 2048
MAX_ERROR_CHARACTERS = 300
EVENT_REFERENCES = 64
ENTITY, ENTITY_ID = "notification", "inbox"

Inbox = document_pb2.Inbox
Pending = document_pb2.Pending
Notification = notification_pb2.Notification
Preferences = notification_pb2.Preferences
Kind = notification_pb2.NotificationKind
Channel = notification_pb2.Channel
EMAIL, WEBHOOK = notification_pb2.CHANNEL_EMAIL, notification_pb2.CHANNEL_WEBHOOK
_MUTED_BY_DEFAULT = frozenset({notification_pb2.NOTIFICATION_KIND_RECIPE_COMPLETED})
_POSITION = 2**32
_DAY = timedelta(days=1)


# -- ids that know their place


def id_at(position: int) -> str:
    """Make a UUIDv7 whose last 32 bits say where the thing lies, so that finding it takes no index."""
    return str(uuid.UUID(int=uuid.UUID(new_id()).int // _POSITION * _POSITION + position % _POSITION))


def position_of(thing_id: str) -> int | None:
    """Read where a thing of this id would lie; None if it is no UUID."""
    try:
        return uuid.UUID(thing_id).int % _POSITION
    except ValueError:
        return None


# -- when to tell


def kind_preferences(preferences: Preferences, kind: int) -> notification_pb2.KindPreferences:
    """Give what a user wants of a kind, by default if they never said."""
    for one in preferences.kinds:
        if one.kind == kind:
            return one
    return notification_pb2.KindPreferences(
        kind=kind,  # type: ignore[arg-type]
        muted=kind in _MUTED_BY_DEFAULT,
        email=True,
        webhook=True,
    )


def channels(preferences: Preferences, kind: int) -> list[int]:
    """Give the ways by which a kind leaves the mesh now."""
    wanted = kind_preferences(preferences, kind)
    found: list[int] = []
    if not wanted.muted and wanted.email and preferences.email_address:
        found.append(EMAIL)
    if not wanted.muted and wanted.webhook and preferences.webhook.url:
        found.append(WEBHOOK)
    return found


def _zone(preferences: Preferences) -> ZoneInfo:
    return find_zone(preferences.time_zone) or ZoneInfo("UTC")


def quiet_until(preferences: Preferences, kind: int, now: datetime) -> datetime | None:
    """Give the end of the quiet hours that `now` lies in; None outside of them.

    They are spans between two moments, so that an hour that comes twice can't begin them anew.
    """
    hours = preferences.quiet_hours
    start, end = parse_time_of_day(hours.start), parse_time_of_day(hours.end)
    if start is None or end is None or start == end or kind in hours.exempt_kinds:
        return None
    zone = _zone(preferences)
    today = now.astimezone(zone).date()
    for day in (today - _DAY, today):
        begins = on_wall_clock(datetime.combine(day, start), zone)
        ends = on_wall_clock(datetime.combine(day if end > start else day + _DAY, end), zone)
        if begins <= now < ends:
            return ends
    return None


def next_digest(preferences: Preferences, kind: int, now: datetime) -> datetime | None:
    """Give when the next digest leaves that a kind goes into; None if it goes into none."""
    digest = preferences.digest
    times = [at for at in map(parse_time_of_day, digest.times_of_day) if at is not None]
    if not times or (digest.kinds and kind not in digest.kinds):
        return None
    zone = _zone(preferences)
    today = now.astimezone(zone).date()
    moments = (on_wall_clock(datetime.combine(today + days * _DAY, at), zone) for days in range(3) for at in times)
    return min(moment for moment in moments if moment > now)


def due_time(preferences: Preferences, kind: int, channel: int, now: datetime) -> tuple[datetime, bool]:
    """Say when something of this kind may leave, and whether in a digest."""
    at, digest = now, False
    if channel == EMAIL and (gathered := next_digest(preferences, kind, now)) is not None:
        at, digest = gathered, True
    return quiet_until(preferences, kind, at) or at, digest


def pause(attempts: int, first_seconds: float, longest_seconds: float) -> timedelta:
    """Say how long to wait after so many attempts: exponential, with up to a quarter more by chance."""
    seconds = min(first_seconds * 2.0 ** min(attempts - 1, 30), longest_seconds)
    return timedelta(seconds=seconds * random.uniform(1, 1.25))  # noqa: S311 - spreads load, guards nothing


# -- changes


@dataclass(frozen=True, slots=True)
class News:
    """What somebody is to be told."""

    kind: int
    title: str
    body: str = ""
    subject_type: str = ""
    subject_id: str = ""
    source_event_id: str = ""


@dataclass(slots=True)
class Edit:
    """A change of a user's inbox in the making."""

    document: Inbox
    user_id: str
    now: datetime
    pages: dict[int, document_pb2.InboxPage] = field(default_factory=dict)
    """Those that were read for it."""

    traceparent: str = ""
    told: list[Telling] = field(default_factory=list)
    """With the inbox's next revision."""

    asides: list[tuple[str, Telling, str]] = field(default_factory=list)
    """Told without a revision: what makes the event's id, the event, its trace."""

    parked: list[api.ParkedDelivery] = field(default_factory=list)
    dirty: set[int] = field(default_factory=set)
    """Pages to be written."""

    dropped: list[int] = field(default_factory=list)
    """Pages that are kept no longer."""

    changed: bool = False

    # -- the inbox

    def unread(self) -> int:
        """Count what is not read."""
        newest = sum(not self.is_read(one) for one in self.document.notifications)
        return newest + sum(one.unread for one in self.document.pages)

    def is_read(self, one: Notification) -> bool:
        """Tell whether a notification is read."""
        return one.read or one.sequence <= self.document.read_through

    def add(self, news: News, kept: int) -> Notification:
        """Put something into the inbox, and plan how it leaves the mesh. `kept`: how many stay."""
        document = self.document
        document.last_sequence += 1
        self._make_room(kept)
        one = document.notifications.add(
            id=id_at(document.last_sequence),
            sequence=document.last_sequence,
            kind=news.kind,
            title=news.title,
            body=news.body,
            subject_type=news.subject_type,
            subject_id=news.subject_id,
            create_time=timestamp(self.now),
        )
        self.changed = True
        for channel in channels(document.preferences, news.kind):
            at, digest = due_time(document.preferences, news.kind, channel, self.now)
            self.plan(one.id, news.kind, channel, at, digest=digest, create_time=self.now)
        payload = event_pb2.NotificationCreatedEvent(
            notification_id=one.id,
            sequence=one.sequence,
            kind=one.kind,
            title=one.title,
            subject_type=one.subject_type,
            subject_id=one.subject_id,
            create_time=one.create_time,
            unread_count=self.unread(),
            source_event_id=news.source_event_id,
        )
        self.tell("notification.created", payload)
        return one

    def _make_room(self, kept: int) -> None:
        """Move the oldest page out of the document once there are two."""
        document = self.document
        newest = document.notifications
        if not newest or newest[0].sequence // PAGE + 2 > document.last_sequence // PAGE:
            return
        number = newest[0].sequence // PAGE
        moved = [one for one in newest if one.sequence // PAGE == number]
        self.pages[number] = document_pb2.InboxPage(notifications=moved)
        self.dirty.add(number)
        document.pages.add(page=number, unread=sum(not self.is_read(one) for one in moved))
        del newest[: len(moved)]
        while len(document.pages) * PAGE > kept:
            self.dropped.append(document.pages[0].page)
            del document.pages[0]

    def find(self, notification_id: str) -> Notification | None:
        """Find a notification in the document and the pages that were read."""
        pages = (one.notifications for one in self.pages.values())
        for found in (self.document.notifications, *pages):
            for one in found:
                if one.id == notification_id:
                    return one
        return None

    def mark(self, ids: Iterable[str], through: int) -> None:
        """Mark as read. Raises NotFoundError for an id that is not there."""
        newly = []
        for notification_id in ids:
            one = self.find(notification_id)
            if one is None or not self._kept(one.sequence):
                raise NotFoundError("notification", notification_id)
            if not self.is_read(one):
                one.read = True
                newly.append(one.id)
                self.dirty |= {one.sequence // PAGE} & self.pages.keys()
        before = self.unread()
        through = min(through, self.document.last_sequence)
        self.document.read_through = max(self.document.read_through, through)
        for page in self.document.pages:
            if page.page in self.pages:
                page.unread = sum(not self.is_read(one) for one in self.pages[page.page].notifications)
            elif page.page * PAGE + PAGE - 1 <= through:
                page.unread = 0
        if newly or (through and self.unread() != before):
            self.changed = True
            payload = event_pb2.NotificationReadEvent(
                notification_ids=newly, through_sequence=through, unread_count=self.unread()
            )
            self.tell("notification.read", payload)

    def _kept(self, sequence: int) -> bool:
        number = sequence // PAGE
        newest = self.document.notifications
        return any(one.page == number for one in self.document.pages) or (
            bool(newest) and sequence >= newest[0].sequence
        )

    def prefer(self, fields: Iterable[str]) -> None:
        """Note that preferences have changed."""
        self.document.preferences_revision += 1
        self.changed = True
        self.tell(
            "notification.preferences_changed", event_pb2.NotificationPreferencesChangedEvent(fields=sorted(fields))
        )

    # -- what leaves the mesh

    def plan(
        self, notification_id: str, kind: int, channel: int, at: datetime, *, digest: bool, create_time: datetime
    ) -> None:
        """Have something delivered; what comes to too many is parked."""
        one = Pending(
            notification_id=notification_id,
            channel=channel,  # type: ignore[arg-type]
            kind=kind,  # type: ignore[arg-type]
            due_time=timestamp(at),
            first_due_time=timestamp(at),
            digest=digest,
            create_time=timestamp(create_time),
            traceparent=self.traceparent,
        )
        self.changed = True
        if len(self.document.pending) >= MAX_PENDING:
            self._park(one, f"more than {MAX_PENDING} deliveries of this user wait")
        else:
            self.document.pending.append(one)

    def due(self) -> list[Pending]:
        """Give what may leave now."""
        return [one for one in self.document.pending if one.due_time.ToDatetime(UTC) <= self.now]

    def _take(self, wanted: Pending) -> Pending | None:
        for place, one in enumerate(self.document.pending):
            if same_delivery(one, wanted):
                found = Pending()
                found.CopyFrom(one)
                del self.document.pending[place]
                self.changed = True
                return found
        return None

    def delivered(self, group: list[Pending], key: str) -> None:
        """Note what has left."""
        if found := [one for one in map(self._take, group) if one is not None]:
            payload = event_pb2.NotificationDeliveredEvent(
                notification_ids=[one.notification_id for one in found], channel=found[0].channel
            )
            telling = Telling(topics.NOTIFICATIONS, "notification.delivered", _json(payload))
            self.asides.append((f"notification.delivered.{key}", telling, found[0].traceparent))

    def cancelled(self, one: Pending) -> None:
        """Note that nobody wants it delivered any more."""
        self._take(one)

    def failed(self, wanted: Pending, error: str, at: datetime | None) -> None:
        """Note a failure: try again at a time, or park it."""
        one = self._take(wanted)
        if one is None:
            return
        one.attempts += 1
        if at is None:
            self._park(one, error)
        else:
            one.due_time.CopyFrom(timestamp(at))
            self.document.pending.append(one)

    def _park(self, one: Pending, error: str) -> None:
        error = error[:MAX_ERROR_CHARACTERS]
        self.parked.append(
            api.ParkedDelivery(
                user_id=self.user_id,
                notification_id=one.notification_id,
                channel=one.channel,
                kind=one.kind,
                attempts=one.attempts,
                error=error,
                create_time=one.create_time,
                park_time=timestamp(self.now),
            )
        )
        payload = event_pb2.NotificationParkedEvent(
            notification_id=one.notification_id, channel=one.channel, error=error
        )
        telling = Telling(topics.NOTIFICATIONS, "notification.parked", _json(payload))
        key = f"notification.parked.{one.notification_id}.{one.channel}.{int(self.now.timestamp() * 1000)}"
        self.asides.append((key, telling, one.traceparent))

    def claim(self, holder: str, seconds: float) -> bool:
        """Take over the deliveries of this user for a while; False while another process has them."""
        document = self.document
        if self.held() and document.deliverer != holder:
            return False
        document.deliverer = holder
        document.deliver_until.CopyFrom(timestamp(self.now + timedelta(seconds=seconds)))
        self.changed = True
        return True

    def held(self) -> bool:
        """Tell whether somebody delivers."""
        document = self.document
        # One further ahead than is ever given was taken by a clock that was ahead.
        ahead = document.deliver_until.ToDatetime(UTC) - self.now
        return bool(document.deliverer) and timedelta(0) < ahead < timedelta(minutes=10)

    def release(self) -> None:
        """Let others deliver."""
        self.document.deliverer = ""
        self.document.ClearField("deliver_until")
        self.changed = True

    def wake(self) -> datetime | None:
        """Say when somebody has to look again, and note it."""
        document = self.document
        at: datetime | None = None
        if document.pending:
            at = min(one.due_time.ToDatetime(UTC) for one in document.pending)
            if self.held():
                at = max(at, document.deliver_until.ToDatetime(UTC))
        before = document.wake_time.ToDatetime(UTC) if document.HasField("wake_time") else None
        if at == before:
            return None
        document.ClearField("wake_time")
        if at is not None:
            document.wake_time.CopyFrom(timestamp(at))
        self.changed = True
        return at

    def tell(self, event_type: str, payload: Message) -> None:
        """Have an event told with this change."""
        self.told.append(Telling(topics.NOTIFICATIONS, event_type, _json(payload)))


def same_delivery(one: Pending, other: Pending) -> bool:
    """Tell whether two are of one notification by one channel."""
    return one.notification_id == other.notification_id and one.channel == other.channel


def refer(document: Inbox, reference: runtime_pb2.EventReference) -> None:
    """Remember which outbox row tells of a revision."""
    document.events.append(reference)
    del document.events[: max(0, len(document.events) - EVENT_REFERENCES)]


def cut(text: str, most_bytes: int) -> str:
    """Cut a text to so many bytes, between characters."""
    return text.encode()[:most_bytes].decode(errors="ignore")


def shown_preferences(document: Inbox) -> Preferences:
    """Give preferences as their user may see them: every kind, no secret."""
    shown = Preferences()
    shown.CopyFrom(document.preferences)
    shown.ClearField("kinds")
    shown.kinds.extend(kind_preferences(document.preferences, kind) for kind in Kind.values() if kind)
    shown.time_zone = shown.time_zone or "UTC"
    if shown.HasField("webhook"):
        shown.webhook.secret_set = bool(shown.webhook.secret)
        shown.webhook.secret = ""
    shown.etag = str(document.preferences_revision)
    return shown


def wall_clock(moment: datetime, zone: str) -> str:
    """Write a moment for a person."""
    return f"{moment.astimezone(find_zone(zone) or ZoneInfo('UTC')):%Y-%m-%d %H:%M} ({zone or 'UTC'})"


def _json(payload: Message) -> Mapping[str, object]:
    return json_format.MessageToDict(payload)
