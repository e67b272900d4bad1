"""Calls to another service of the mesh, through the own sidecar."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from gaggle.common.v1 import error_reason_pb2
from services.runtime.call import remaining_seconds
from services.runtime.errors import (
    ConflictError,
    DeadlineError,
    FailedPreconditionError,
    GaggleError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
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
            return await self.ask(method, request, token)
        except ToldError as error:
            raise _ours(error, self._app_id) from error

    async def ask(self, method: str, request: Any, token: str, *, timeout_seconds: float = _TIMEOUT_SECONDS) -> Any:
        """Call a unary method; a refusal is raised as the typed error that the other service told.

        Raises GaggleError: UnavailableError and DeadlineError where the service could not be asked.
        """
        try:
            return await getattr(self._stub, method)(
                request,
                timeout=remaining_seconds(timeout_seconds),
                metadata=self._sidecar.invocation(self._app_id, token),
            )
        except grpc.aio.AioRpcError as error:
            raise told_error(error, self._app_id) from error

    async def stream(
        self, method: str, request: Any, token: str, *, timeout_seconds: float | None = None
    ) -> AsyncIterator[Any]:
        """Call a streaming method; errors as of `ask`. Closing the iterator cancels the call."""
        call = getattr(self._stub, method)(
            request, timeout=timeout_seconds, metadata=self._sidecar.invocation(self._app_id, token, stream=True)
        )
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise told_error(error, self._app_id) from error
        finally:
            call.cancel()


class ToldError(GaggleError):
    """What another service of the mesh answered, code, reason and facts as it told them."""

    def __init__(self, status: status_pb2.Status, reason: str, metadata: Mapping[str, str]) -> None:
        """`reason` is ErrorReason's, known here or not."""
        known = error_reason_pb2.ErrorReason.keys()
        name = f"ERROR_REASON_{reason}"
        number = error_reason_pb2.ErrorReason.Value(name if name in known else "ERROR_REASON_UNSPECIFIED")
        super().__init__(status.message, reason=number, metadata=metadata)
        self.code = status.code  # type: ignore[misc]


def told_error(error: grpc.aio.AioRpcError, dependency: str) -> GaggleError:
    """Read the typed error out of a failed call. One that no service of the mesh made is UNAVAILABLE."""
    status = rpc_status.from_call(error)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    known = False
    violations: dict[str, str] = {}
    for detail in status.details if status is not None else ():
        if detail.Unpack(info):
            known = info.domain == "gaggle"
        elif detail.Unpack(bad):
            violations = {one.field: one.description for one in bad.field_violations}
        else:
            detail.Unpack(retry)
    if status is None or not known:
        translated = translate(error, dependency)
        assert isinstance(translated, GaggleError)
        return translated
    if status.code == code_pb2.UNAVAILABLE and info.reason == "DEPENDENCY_UNAVAILABLE":
        return UnavailableError(info.metadata.get("dependency", dependency))
    if status.code == code_pb2.DEADLINE_EXCEEDED:
        return DeadlineError(dependency)
    told = ToldError(status, info.reason, info.metadata)
    told.violations = violations
    if retry.HasField("retry_delay"):
        told.retry_after_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    return told


def _ours(told: ToldError, dependency: str) -> GaggleError:
    """Give a refusal as one's own error of that kind; one that does not concern what was asked is UNAVAILABLE."""
    if told.reason == error_reason_pb2.ERROR_REASON_UNSPECIFIED:
        return UnavailableError(dependency)
    if told.code == code_pb2.INVALID_ARGUMENT:
        return InvalidArgumentError(told.violations, reason=told.reason)
    if told.code == code_pb2.NOT_FOUND:
        return NotFoundError(told.metadata.get("type", "entity"), told.metadata.get("id", ""))
    if told.code == code_pb2.ABORTED:
        return ConflictError(told.message, reason=told.reason, metadata=told.metadata)
    if told.code == code_pb2.FAILED_PRECONDITION:
        return FailedPreconditionError(told.message, reason=told.reason, metadata=told.metadata)
    return UnavailableError(dependency)
