"""Which occurrence comes next. Knows neither gRPC nor Dapr."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from gaggle.recurrence.v1 import recurrence_service_pb2 as api
from gaggle.task.v1 import occurrence_service_pb2, task_pb2
from services.runtime.recurrence import Occurrence, Rule, RuleError, next_occurrence, occurrences, parse_rule
from services.runtime.times import find_zone, timestamp


def waits(task: task_pb2.Task) -> bool:
    """Tell whether a task is to be followed by another."""
    completed = task.status == task_pb2.TASK_STATUS_COMPLETED
    return completed and task.HasField("recurrence") and not task.series.next_task_id


def following(task: task_pb2.Task, now: datetime) -> occurrence_service_pb2.NextOccurrence | None:
    """Say which occurrence follows a completed one; None: the series ends. Raises RuleError.

    It may take tens of milliseconds for a series that began years ago.
    """
    zone = find_zone(task.series.time_zone)
    if zone is None:
        raise RuleError(f"zone {task.series.time_zone!r} is not known here")
    each = task.recurrence.catch_up == task_pb2.CATCH_UP_EACH
    found = next_occurrence(
        parse_rule(task.recurrence.rule),
        task.series.start_time.ToDatetime(UTC),
        zone,
        Occurrence(task.series.occurrence, task.series.occurrence_time.ToDatetime(UTC)),
        not_before=None if each else now,
    )
    if found is None:
        return None
    return occurrence_service_pb2.NextOccurrence(occurrence=found.number, occurrence_time=timestamp(found.time))


@dataclass(frozen=True, slots=True)
class Preview:
    """What to show of a rule."""

    rule: Rule
    start: datetime
    zone: ZoneInfo
    after: datetime | None
    most: int

    def response(self) -> api.PreviewOccurrencesResponse:
        """Compute it; takes up to a second for a time centuries away."""
        left = self._left()
        response = api.PreviewOccurrencesResponse()
        for one in itertools.islice(left, self.most):
            local = one.time.astimezone(self.zone).isoformat()
            response.occurrences.add(occurrence=one.number, time=timestamp(one.time), local_time=local)
        response.complete = next(left, None) is None
        return response

    def _left(self) -> Iterator[Occurrence]:
        found = occurrences(self.rule, self.start, self.zone)
        after = self.after
        return found if after is None else (one for one in found if one.time > after)
