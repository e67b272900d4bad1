"""What every service serves an operator: how much it logs."""

from typing import Any

import structlog

from gaggle.operations.v1 import operations_service_pb2 as api
from gaggle.operations.v1 import operations_service_pb2_grpc as api_grpc
from services.runtime.access import ADMIN, Access
from services.runtime.identity import current_caller
from services.runtime.logs import LEVELS, LogLevel
from services.runtime.validation import Violations

OPERATIONS_ACCESS: dict[str, Access] = {"*": ADMIN}

_MOST_SECONDS = 24 * 3600
_PREFIX = "LOG_LEVEL_"

_log = structlog.get_logger()


class OperationsServicer(api_grpc.OperationsServiceServicer):
    """Serves gaggle.operations.v1.OperationsService."""

    def __init__(self, level: LogLevel) -> None:
        """`level` is the process's."""
        self._level = level

    async def GetLogLevel(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - gRPC's
        """See the contract."""
        return api.GetLogLevelResponse(level=_told(self._level.name), configured_level=_told(self._level.configured))

    async def SetLogLevel(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - gRPC's
        """See the contract."""
        violations = Violations()
        known = api.LogLevel.values()[1:]
        violations.check(ok=request.level in known, field="level", what=f"must be one of {', '.join(LEVELS)}")
        seconds = request.duration.seconds + request.duration.nanos / 1e9
        ok = not request.HasField("duration") or 0 < seconds <= _MOST_SECONDS
        violations.check(ok=ok, field="duration", what=f"must be more than 0 and at most {_MOST_SECONDS} seconds")
        violations.raise_if_any()
        before, name = self._level.name, api.LogLevel.Name(request.level).removeprefix(_PREFIX).lower()
        self._level.set(name, seconds)
        # Whatever the level: that it was changed is always in the log.
        _log.error("log_level_changed", before=before, level=name, seconds=seconds, user=current_caller().user_id)
        return api.SetLogLevelResponse(previous_level=_told(before))


def _told(name: str) -> "api.LogLevel.ValueType":
    return api.LogLevel.Value(f"{_PREFIX}{name.upper()}")
