"""Calls to another service of the mesh, through the own sidecar."""

from collections.abc import Callable
from typing import Any

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from gaggle.common.v1 import error_reason_pb2
from services.runtime.call import remaining_seconds
from services.runtime.errors import (
    ConflictError,
    FailedPreconditionError,
    GaggleError,
    InvalidArgumentError,
    NotFoundError,
)
from services.runtime.sidecar import Sidecar, translate

_TIMEOUT_SECONDS = 10.0


class Peer:
    """Another service: its generated stub on the sidecar's channel."""

    def __init__(self, sidecar: Sidecar, app_id: str, stub_class: Callable[[grpc.aio.Channel], Any]) -> None:
        """`app_id` with the mesh's suffix; `stub_class` is the generated one."""
        self._sidecar = sidecar
        self._app_id = app_id
        self._stub = stub_class(sidecar.channel)

    async def call(self, method: str, request: Any, token: str) -> Any:
        """Call a unary method for the user of `token`.

        Raises NotFoundError, ConflictError, InvalidArgumentError and FailedPreconditionError as the other service told
        them (the caller's own words), else UnavailableError or DeadlineError.
        """
        try:
            return await getattr(self._stub, method)(
                request,
                timeout=remaining_seconds(_TIMEOUT_SECONDS),
                metadata=self._sidecar.invocation(self._app_id, token),
            )
        except grpc.aio.AioRpcError as error:
            raise self._error(error) from error

    def _error(self, error: grpc.aio.AioRpcError) -> Exception:
        return _told(rpc_status.from_call(error)) or translate(error, self._app_id)


def _told(status: status_pb2.Status | None) -> GaggleError | None:
    """Read a refusal that concerns what was asked, not whether the other service is well."""
    violations: dict[str, str] = {}
    facts: dict[str, str] = {}
    reason = error_reason_pb2.ERROR_REASON_UNSPECIFIED
    for detail in status.details if status is not None else ():
        bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
        if detail.Unpack(bad):
            violations.update({one.field: one.description for one in bad.field_violations})
        elif detail.Unpack(info):
            reason = error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{info.reason}")
            facts = dict(info.metadata)
    if status is None or not reason:
        return None
    errors: dict[int, GaggleError] = {
        code_pb2.INVALID_ARGUMENT: InvalidArgumentError(violations, reason=reason),
        code_pb2.NOT_FOUND: NotFoundError(facts.get("type", "entity"), facts.get("id", "")),
        code_pb2.ABORTED: ConflictError(status.message, reason=reason, metadata=facts),
        code_pb2.FAILED_PRECONDITION: FailedPreconditionError(status.message, reason=reason, metadata=facts),
    }
    return errors.get(status.code)
