"""What becomes of events: those that a user wants to hear of are put into the inbox, once for each event id."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog

from gaggle.notification.v1 import notification_pb2
from services.notification import domain
from services.notification.domain import MAX_BODY_BYTES, MAX_TITLE_BYTES, News
from services.notification.store import Once
from services.notification.writing import Writer
from services.runtime import topics
from services.runtime.callbacks import Outcome, Subscription, TopicEvent, TopicHandler
from services.runtime.errors import FailedPreconditionError, GaggleError
from services.runtime.telemetry import part

_MAX_USER_BYTES = 128
_MAX_TYPE_BYTES = 64
_MAX_ID_BYTES = 128
_PREFIX = "NOTIFICATION_KIND_"

_log = structlog.get_logger()

Body = Mapping[str, Any]


class UnreadableEventError(Exception):
    """It does not say what it has to; the text says what."""


class Events:
    """Takes events of several topics."""

    def __init__(self, writer: Writer, others: Mapping[str, TopicHandler]) -> None:
        """`writer` tells; `others` take topics that nobody is told of."""
        self._writer = writer
        self._others = others

    def subscriptions(self, dead_letter_topic: str) -> list[Subscription]:
        """Give what is subscribed to; what was delivered in vain is taken once more from the dead letters."""
        return [
            *(Subscription(topic, self.take, dead_letter_topic=dead_letter_topic) for topic in _READERS),
            *(Subscription(topic, take, dead_letter_topic=dead_letter_topic) for topic, take in self._others.items()),
            Subscription(dead_letter_topic, self.take_late, raw=True),
        ]

    async def take(self, events: Sequence[TopicEvent]) -> list[Outcome]:
        """Take events as their topics bring them."""
        return [await self._take(event, event.topic) for event in events]

    async def take_late(self, events: Sequence[TopicEvent]) -> list[Outcome]:
        """Take what was delivered in vain before; what can't be read stays with the audit log's dead letters."""
        outcomes: list[Outcome] = []
        for event in events:
            topic = str(event.extensions.get("topic", ""))
            if (take := self._others.get(topic)) is not None:
                outcomes += await take([event])
            else:
                outcomes.append(await self._take(event, topic))
        return [Outcome.SUCCESS if one is Outcome.DROP else one for one in outcomes]

    async def _take(self, event: TopicEvent, topic: str) -> Outcome:
        try:
            body = json.loads(event.data)
            if not isinstance(body, dict):
                raise UnreadableEventError("it is no object")  # noqa: TRY301 - one exit
            news = _news(topic, body, _text(body, "event_id") or event.id)
            if news is None:
                return Outcome.SUCCESS
            user_id = _text(body, "user_id") or _text(_data(body), "user_id")
            if not 0 < len(user_id.encode()) <= _MAX_USER_BYTES:
                raise UnreadableEventError("it names no user")  # noqa: TRY301 - one exit
        except (ValueError, RecursionError, UnreadableEventError) as error:
            _log.warning("event_not_readable", topic=topic, id=event.id, error=str(error))
            return Outcome.DROP
        metadata = body.get("metadata")
        trace = str(metadata.get("traceparent", "")) if isinstance(metadata, dict) else ""
        try:
            with part("event", traceparent=trace):
                await self._writer.tell(user_id, news, Once(event_id=news.source_event_id))
        except FailedPreconditionError:
            return Outcome.SUCCESS  # Erased: nobody is there to be told.
        except GaggleError as error:
            _log.warning("event_put_off", topic=topic, id=event.id, error=str(error))
            return Outcome.RETRY
        return Outcome.SUCCESS


def _news(topic: str, body: Body, event_id: str) -> News | None:
    """Read what a user is to be told; None: nothing. Raises UnreadableEventError."""
    reader = _READERS.get(topic)
    told = reader(body, _data(body)) if reader is not None else None
    if told is None:
        return None
    if not event_id:
        raise UnreadableEventError("it has no id")
    kind, title, text, subject_type, subject_id = told
    return News(
        kind,
        domain.cut(title, MAX_TITLE_BYTES),
        domain.cut(text, MAX_BODY_BYTES),
        domain.cut(subject_type, _MAX_TYPE_BYTES),
        domain.cut(subject_id, _MAX_ID_BYTES),
        source_event_id=event_id,
    )


_Told = tuple[int, str, str, str, str]
"""Kind, title, body, and what it is about: type and id."""


def _reminder(body: Body, data: Body) -> _Told | None:
    if _text(body, "event_type") != "reminder.due":
        return None
    due, zone = _text(data, "due_at"), _text(data, "time_zone")
    text = ""
    try:
        text = f"Due {domain.wall_clock(datetime.fromisoformat(due), zone)}" if due else ""
    except (ValueError, OverflowError):
        text = f"Due {due}"
    title = _text(data, "title") or "Reminder"
    return notification_pb2.NOTIFICATION_KIND_REMINDER_DUE, title, text, "task", _text(data, "task_id")


def _recipe(kind: int, what: str) -> Callable[[Body, Body], _Told]:
    def read(body: Body, data: Body) -> _Told:
        name = _text(data, "recipe_name") or _text(data, "title") or _text(data, "name") or _text(data, "recipe_id")
        title = f"Recipe {name} {what}" if name else f"Recipe {what}"
        subject = _text(data, "execution_id") or _text(body, "entity_id")
        return kind, title, _failure(data) or _text(data, "summary"), "execution", subject

    return read


def _failure(data: Body) -> str:
    """Say why a recipe failed: ours tell an ExecutionError, other publishers a text."""
    error = data.get("error")
    if isinstance(error, dict):
        said = _text(error, "message") or _text(error, "reason")
        step = _text(error, "step_id")
        return f"{said} (step {step})" if said and step else said
    return _text(data, "error")


def _requested(body: Body, data: Body) -> _Told | None:
    if _text(body, "event_type") != "notification.requested":
        return None  # Ours, or another's that asks for nothing.
    name = _text(data, "kind").upper().removeprefix(_PREFIX)
    if name == "UNSPECIFIED" or f"{_PREFIX}{name}" not in notification_pb2.NotificationKind.keys():  # noqa: SIM118
        raise UnreadableEventError("it names no kind of notification")
    kind = notification_pb2.NotificationKind.Value(f"{_PREFIX}{name}")
    title = _text(data, "title").strip()
    if not title:
        raise UnreadableEventError("it has no title")
    return kind, title, _text(data, "body"), _text(data, "subject_type"), _text(data, "subject_id")


_READERS: Mapping[str, Callable[[Body, Body], _Told | None]] = {
    topics.REMINDERS: _reminder,
    topics.RECIPE_COMPLETED: _recipe(notification_pb2.NOTIFICATION_KIND_RECIPE_COMPLETED, "completed"),
    topics.RECIPE_FAILED: _recipe(notification_pb2.NOTIFICATION_KIND_RECIPE_FAILED, "failed"),
    topics.NOTIFICATIONS: _requested,
}


def _data(body: Body) -> Body:
    """Give the payload; publishers without our envelope write it beside the rest."""
    data = body.get("data")
    return data if isinstance(data, dict) else body


def _text(body: Body, name: str) -> str:
    """Read a text in either spelling; what is none is empty."""
    head, *rest = name.split("_")
    for spelling in (name, head + "".join(one.capitalize() for one in rest)):
        value = body.get(spelling)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
    return ""
