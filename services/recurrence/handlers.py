"""What becomes of a completed task: an event brings it, or the sweep finds it."""

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import structlog

from gaggle.owner.v1 import owner_service_pb2
from gaggle.task.v1 import occurrence_service_pb2, task_service_pb2
from services.recurrence import domain
from services.runtime.callbacks import Outcome, TopicEvent
from services.runtime.errors import ConflictError, FailedPreconditionError, GaggleError, NotFoundError
from services.runtime.invocation import Peer
from services.runtime.recurrence import RuleError
from services.runtime.telemetry import part

_ATTEMPTS = 5
_ACTS_FOR_ITSELF = "recurrence"
_log = structlog.get_logger()


class Continuation:
    """Has the task service create the next occurrence.

    Nothing is kept here. That a task has one next occurrence and no second is decided by the task service, in the
    commit that creates it; so events may come twice, late, to two replicas at once, or not at all.
    """

    def __init__(self, tasks: Peer, series: Peer, owner: Peer, issue: Callable[[str], str]) -> None:
        """The three services of the task app; `issue` gives this service's own token for a user."""
        self._tasks = tasks
        self._series = series
        self._owner = owner
        self._issue = issue

    async def take(self, events: Sequence[TopicEvent]) -> list[Outcome]:
        """Take events of the topic `task-events`; all but completions are somebody else's."""
        return [await self._take(event) for event in events]

    async def _take(self, event: TopicEvent) -> Outcome:
        try:
            completed = _read(event)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("event_not_readable", topic=event.topic, id=event.id, error=str(error))
            return Outcome.DROP
        if completed is None:
            return Outcome.SUCCESS
        user_id, task_id, traceparent = completed
        try:
            with part("task completed", traceparent=traceparent):
                await self.follow(user_id, task_id)
        except GaggleError as error:
            _log.warning("event_put_off", topic=event.topic, id=event.id, error=error.message)
            return Outcome.RETRY
        return Outcome.SUCCESS

    async def follow(self, user_id: str, task_id: str) -> str:
        """See that a completed task has its next occurrence; gives that one's id, empty if none is to be.

        Raises UnavailableError or DeadlineError, and ConflictError if others keep changing the task.
        """
        token = self._issue(user_id)
        for attempt in range(_ATTEMPTS):
            try:
                asked = task_service_pb2.GetTaskRequest(task_id=task_id)
                task = (await self._tasks.call("GetTask", asked, token)).task
                if not domain.waits(task):
                    return str(task.series.next_task_id)
                request = occurrence_service_pb2.ContinueSeriesRequest(task_id=task_id, etag=task.etag)
                # In a thread: a series that began years ago has many times to go through.
                found = await asyncio.to_thread(domain.following, task, datetime.now(UTC))
                if found is not None:
                    request.next.CopyFrom(found)
                answer = await self._series.call("ContinueSeries", request, token)
                return str(answer.next_task_id)
            except NotFoundError:
                return ""
            except (FailedPreconditionError, RuleError) as error:
                _log.warning("series_not_continued", task=task_id, error=str(error))
                return ""
            except ConflictError:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def sweep(self) -> int:
        """Look at every user's tasks that wait for their next occurrence; gives how many were followed up."""
        count = 0
        page_token = ""
        while True:
            request = owner_service_pb2.ListUsersRequest(page_token=page_token)
            users = await self._owner.call("ListUsers", request, self._issue(_ACTS_FOR_ITSELF))
            for user_id in users.user_ids:
                asked = occurrence_service_pb2.ListWaitingRequest()
                waiting = await self._series.call("ListWaiting", asked, self._issue(user_id))
                for task_id in waiting.task_ids:
                    count += await self._try(user_id, task_id)
            page_token = users.next_page_token
            if not page_token:
                return count

    async def _try(self, user_id: str, task_id: str) -> bool:
        """Follow one up; what hinders that must not hinder the others."""
        try:
            return bool(await self.follow(user_id, task_id))
        except GaggleError as error:
            _log.warning("series_put_off", task=task_id, error=error.message)
            return False

    async def sweep_forever(self, seconds: float) -> None:
        """Sweep at once and every so often; run in the background."""
        while True:
            try:
                if count := await self.sweep():
                    _log.info("series_continued_by_sweep", count=count)
            except GaggleError as error:
                _log.warning("sweep_put_off", error=error.message)
            await asyncio.sleep(seconds)


def _read(event: TopicEvent) -> tuple[str, str, str] | None:
    """Give user, task and trace of a recurring task's completion; None for any other event."""
    body = json.loads(event.data)
    if body["event_type"] != "task.completed":
        return None
    # Other apps may publish here too: an event that does not say whether its task recurs is asked about.
    if not body["data"].get("task", {"recurrence": {"rule": "?"}}).get("recurrence"):
        return None
    return str(body["user_id"]), str(body["entity_id"]), str(body.get("metadata", {}).get("traceparent", ""))
