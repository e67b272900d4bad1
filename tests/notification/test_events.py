"""What becomes of other services' events, as their contracts write them."""

from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.notification.v1 import notification_pb2
from gaggle.recipe.v1 import event_pb2, execution_pb2
from gaggle.reminder.v1 import event_pb2 as reminder_event_pb2
from services.notification.domain import News
from services.notification.handlers import Events
from services.notification.store import Once
from services.runtime import topics
from services.runtime.callbacks import Outcome, TopicEvent
from services.runtime.events import Change, Telling, build_events

_COMPLETED = notification_pb2.NOTIFICATION_KIND_RECIPE_COMPLETED
_FAILED = notification_pb2.NOTIFICATION_KIND_RECIPE_FAILED


class _Writer:
    """Takes what users are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, News]] = []

    async def tell(self, user_id: str, news: News, once: Once) -> None:
        del once
        self.told.append((user_id, news))


@pytest.fixture
def writer() -> _Writer:
    """In place of the service's own."""
    return _Writer()


async def _take(
    writer: _Writer, topic: str, payload: Any, *, event_type: str = "", entity: str = "execution"
) -> Outcome:
    """Have an event taken as the outbox of its owner writes it."""
    keep_names = topic in topics.SNAKE_CASE_TOPICS
    data = json_format.MessageToDict(payload, preserving_proto_field_name=keep_names)
    change = Change(
        entity_type=entity,
        entity_id="e1",
        user_id="ann",
        revision=3,
        incarnation=1,
        time=datetime.now(UTC),
        traceparent="00-aa-bb-01",
    )
    (event,) = build_events(change, [Telling(topic, event_type or topic, data)])
    taken = TopicEvent("cloud-event", topic, event_type or topic, event.payload, "application/json")
    (outcome,) = await Events(writer, {}).take([taken])  # type: ignore[arg-type]
    return outcome


async def test_recipe_completed(writer: _Writer) -> None:
    """goose.recipe.completed, as the recipe service's contract has it, names the recipe and the execution."""
    payload = event_pb2.ExecutionEvent(
        recipe_id="r1",
        execution_id="e1",
        name="nightly-report",
        recipe_version=2,
        status=execution_pb2.EXECUTION_STATUS_COMPLETED,
        total_steps=3,
        completed_steps=3,
    )
    assert await _take(writer, topics.RECIPE_COMPLETED, payload) is Outcome.SUCCESS
    ((user_id, news),) = writer.told
    assert user_id == "ann"
    assert (news.kind, news.title, news.body) == (_COMPLETED, "Recipe nightly-report completed", "")
    assert (news.subject_type, news.subject_id) == ("execution", "e1")
    assert news.source_event_id.startswith("execution.")


@pytest.mark.parametrize(
    ("error", "body"),
    [
        ({"reason": "STEP_FAILED", "step_id": "build"}, "STEP_FAILED (step build)"),
        ({"reason": "TIMEOUT"}, "TIMEOUT"),
        ({"reason": "STEP_FAILED", "message": "no disk", "step_id": "build"}, "no disk (step build)"),
        (None, ""),
    ],
    ids=["step", "reason", "message", "none"],
)
async def test_recipe_failed(writer: _Writer, error: dict[str, str] | None, body: str) -> None:
    """goose.recipe.failed tells why, and at which step."""
    payload = event_pb2.ExecutionEvent(execution_id="e1", name="nightly", recipe_id="r1")
    if error is not None:
        payload.error.CopyFrom(execution_pb2.ExecutionError(**error))
    assert await _take(writer, topics.RECIPE_FAILED, payload) is Outcome.SUCCESS
    ((_, news),) = writer.told
    assert (news.kind, news.title, news.body) == (_FAILED, "Recipe nightly failed", body)


async def test_every_field_that_is_read_is_one_of_the_contract(writer: _Writer) -> None:
    """A recipe without a name is told by its id: what is read of the event are names of its contract."""
    payload = event_pb2.ExecutionEvent(recipe_id="r1", execution_id="e1")
    assert await _take(writer, topics.RECIPE_FAILED, payload) is Outcome.SUCCESS
    ((_, news),) = writer.told
    assert (news.title, news.subject_id) == ("Recipe r1 failed", "e1")


async def test_reminder_due(writer: _Writer) -> None:
    """reminder.due, as the reminder service's contract has it, tells title and due time on the user's clock."""
    due = Timestamp()
    due.FromDatetime(datetime(2031, 7, 1, 10, tzinfo=UTC))
    payload = reminder_event_pb2.ReminderDueEvent(
        task_id="t1", user_id="ann", title="Water", due_at=due, time_zone="Europe/Berlin"
    )
    outcome = await _take(writer, topics.REMINDERS, payload, event_type="reminder.due", entity="reminder")
    assert outcome is Outcome.SUCCESS
    ((_, news),) = writer.told
    assert (news.title, news.body) == ("Water", "Due 2031-07-01 12:00 (Europe/Berlin)")
    assert (news.subject_type, news.subject_id) == ("task", "t1")
