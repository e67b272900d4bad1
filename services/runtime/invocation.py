"""Calls to another service of the mesh, through the own sidecar."""

from collections.abc import Callable
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from gaggle.common.v1 import error_reason_pb2
from services.runtime.call import remaining_seconds
from services.runtime.errors import GaggleError, InvalidArgumentError, UnavailableError
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

        Raises InvalidArgumentError as the other service told it (the caller's own words), else UnavailableError
        or DeadlineError.
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
        if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
            return _invalid(rpc_status.from_call(error)) or UnavailableError(self._app_id)
        return translate(error, self._app_id)


def _invalid(status: status_pb2.Status | None) -> GaggleError | None:
    violations: dict[str, str] = {}
    reason = error_reason_pb2.ERROR_REASON_INVALID_FIELD
    for detail in status.details if status is not None else ():
        bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
        if detail.Unpack(bad):
            violations.update({one.field: one.description for one in bad.field_violations})
        elif detail.Unpack(info):
            reason = error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{info.reason}")
    return InvalidArgumentError(violations, reason=reason) if violations else None
