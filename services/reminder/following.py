"""Keeps a task's reminders in line with the task: by its events, by its callers, and by asking."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import structlog
from google.protobuf import json_format

from gaggle.task.v1 import task_pb2
from services.reminder import domain, tasks
from services.reminder.domain import Document, Edit, Past
from services.reminder.store import ReminderStore
from services.runtime.callbacks import Outcome, TopicEvent
from services.runtime.errors import FailedPreconditionError, GaggleError
from services.runtime.ids import new_id

_log = structlog.get_logger()


class Following:
    """Applies what a task has become. What is older than what was applied before changes nothing."""

    def __init__(self, store: ReminderStore) -> None:
        """`store` has the reminders."""
        self._store = store

    async def on_task_events(self, events: Sequence[TopicEvent]) -> list[Outcome]:
        """Take events of topic `task-events`."""
        return [await self._take(event) for event in events]

    async def _take(self, event: TopicEvent) -> Outcome:
        try:
            body = json.loads(event.data)
            await self._apply(body)
        except (ValueError, KeyError, TypeError, AttributeError, json_format.ParseError) as error:
            _log.warning("event_not_readable", topic=event.topic, id=event.id, error=str(error))
            return Outcome.DROP
        except FailedPreconditionError as error:
            # An erased user's: there is nothing to be done, now or later.
            _log.info("event_without_effect", topic=event.topic, id=event.id, error=str(error))
        except GaggleError as error:
            _log.warning("event_put_off", topic=event.topic, id=event.id, error=str(error))
            return Outcome.RETRY
        return Outcome.SUCCESS

    async def _apply(self, body: dict[str, Any]) -> None:
        user_id, task_id = str(body["user_id"]), str(body["entity_id"])
        traceparent = str(body.get("metadata", {}).get("traceparent", ""))
        if body["event_type"] == "task.deleted":
            await self.deleted(user_id, task_id, int(body["revision"]), traceparent)
            return
        task = task_pb2.Task()
        json_format.ParseDict(body["data"]["task"], task, ignore_unknown_fields=True)
        if task.id != task_id:
            raise ValueError("the event's task is another one")
        since = datetime.fromisoformat(str(body["timestamp"]))
        await self.align(user_id, task, traceparent, since=min(since.astimezone(UTC), self._store.now()))

    async def align(
        self, user_id: str, task: task_pb2.Task, traceparent: str | None = None, *, since: datetime | None = None
    ) -> Document:
        """Bring reminders in line with a task; what came due since it became so fires late.

        Raises UnavailableError, ConflictError, FailedPreconditionError (an erased user).
        """

        def apply(edit: Edit) -> bytes:
            align(edit, task, since=since)
            return b""

        document, _ = await self._store.change(user_id, task.id, apply, traceparent=traceparent)
        return document

    async def deleted(self, user_id: str, task_id: str, revision: int = 0, traceparent: str | None = None) -> Document:
        """Cancel the reminders of a task that is gone. `revision` 0: whatever was seen before."""

        def apply(edit: Edit) -> bytes:
            if not revision or revision > edit.document.task_revision:
                gone(edit, revision)
            return b""

        document, _ = await self._store.change(user_id, task_id, apply, traceparent=traceparent)
        return document


def align(edit: Edit, task: task_pb2.Task, *, since: datetime | None = None) -> None:
    """Bring reminders in line with a task, unless something newer of it is known."""
    said = tasks.read(task)
    newer = not known(edit.document, said.revision)
    if not said.open and (newer or said.revision == edit.document.task_revision):
        # Even if it was known: something may have been set since.
        edit.note_task(said)
        edit.cancel_all(domain.COMPLETED)
        return
    if not newer:
        return
    wanted = [(new_id(), when) for when in tasks.times(task)]
    # A time that had gone by when the task became so is not reminded of; one that has since then is late.
    domain.follow(edit, said, wanted, None, Past(since=since), from_task=True)


def gone(edit: Edit, revision: int = 0) -> None:
    """Note that the task is deleted."""
    edit.cancel_all(domain.DELETED)
    if not edit.document.task_gone or edit.document.task_revision < revision:
        edit.document.task_gone = True
        edit.document.task_revision = max(edit.document.task_revision, revision)
        edit.changed = True


def known(document: Document, revision: int) -> bool:
    """Tell whether this revision of the task has been followed, or a newer one.

    After a deletion its id may begin again.
    """
    return bool(revision) and revision <= document.task_revision and not document.task_gone
