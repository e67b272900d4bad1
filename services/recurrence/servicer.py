"""The recurrence service's methods: read the request, call the domain, shape the answer."""

import asyncio
from datetime import UTC, datetime
from typing import Any

from gaggle.recurrence.v1 import recurrence_service_pb2 as api
from gaggle.recurrence.v1 import recurrence_service_pb2_grpc as api_grpc
from gaggle.task.v1 import task_pb2
from services.recurrence.domain import Preview
from services.runtime.access import Access, user_or
from services.runtime.recurrence import RuleError, parse_rule
from services.runtime.times import find_zone, sensible
from services.runtime.validation import Violations

RECURRENCE_ACCESS: dict[str, Access] = {"*": user_or("agent")}
DEFAULT_OCCURRENCES = 10
MAX_OCCURRENCES = 100


class RecurrenceServicer(api_grpc.RecurrenceServiceServicer):
    """Serves gaggle.recurrence.v1.RecurrenceService."""

    async def PreviewOccurrences(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        return await asyncio.to_thread(_read(request).response)


def _read(request: api.PreviewOccurrencesRequest) -> Preview:
    """Check a request and take what it says. Raises InvalidArgumentError."""
    violations = Violations()
    known = request.recurrence.catch_up in task_pb2.CatchUp.values()
    violations.check(ok=known, field="recurrence.catch_up", what="is not known")
    for name in ("start_time", "after_time"):
        if request.HasField(name):
            ok = sensible(getattr(request, name))
            violations.check(ok=ok, field=name, what="must be a time from 1900 to 2400")
    violations.check(ok=request.max_occurrences >= 0, field="max_occurrences", what="must not be negative")
    zone = find_zone(request.time_zone or "UTC")
    violations.check(ok=zone is not None, field="time_zone", what="is no IANA time zone")
    rule = None
    try:
        rule = parse_rule(request.recurrence.rule)
    except RuleError as error:
        violations.check(ok=False, field="recurrence.rule", what=str(error))
    violations.raise_if_any()
    assert zone is not None
    assert rule is not None
    return Preview(
        rule,
        request.start_time.ToDatetime(UTC) if request.HasField("start_time") else datetime.now(UTC),
        zone,
        request.after_time.ToDatetime(UTC) if request.HasField("after_time") else None,
        min(request.max_occurrences or DEFAULT_OCCURRENCES, MAX_OCCURRENCES),
    )
