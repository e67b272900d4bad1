"""What goes wrong between the command line and the conversation service, told in one line each.

- CommandError (cli.errors)
  - ServiceRefusedError: exit code 1; the service said no
  - ImportFailedError: exit code 1; some of the conversations could not be stored
  - BadFileError: exit code 2; a file cannot be imported, nothing was stored
  - NotRunning (cli.errors)
    - UnreachableError: exit code 3; nothing answered
"""

from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2, status_pb2

from cli.errors import CommandError, NotRunning

_DETAILS = "grpc-status-details-bin"
_OUR_DOMAIN = "gaggle"


class ServiceRefusedError(CommandError):
    """The service refused the call; trying again as it is won't help."""

    def __init__(self, failure: "Failure") -> None:
        """`failure` keeps code and reason for callers that decide on them."""
        super().__init__(str(failure))
        self.failure = failure


class ImportFailedError(CommandError):
    """Some conversations of an import could not be stored; the others were."""


class BadFileError(CommandError):
    """A file cannot be imported. Nothing of it, nor of the others named with it, was stored."""

    exit_code = 2


class UnreachableError(NotRunning):
    """The service, its sidecar or a part behind them did not answer in time."""


@dataclass(frozen=True)
class Failure:
    """A call's status, read out of `google.rpc.Status` where the service sent one."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    """ErrorInfo's reason; empty: not from a service of ours, but from gRPC or Dapr on the way."""

    metadata: dict[str, str] = field(default_factory=dict)
    violations: tuple[tuple[str, str], ...] = ()
    retry_after_seconds: float | None = None

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> "Failure":
        """Reads the status of a failed call."""
        status = status_pb2.Status()
        for key, value in error.trailing_metadata() or ():
            if key == _DETAILS and isinstance(value, bytes):
                status.MergeFromString(value)
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        retry_after_seconds = None
        for detail in status.details:
            if detail.Unpack(retry):
                retry_after_seconds = retry.retry_delay.ToTimedelta().total_seconds()
            else:
                _ = detail.Unpack(info) or detail.Unpack(request)
        ours = info.domain == _OUR_DOMAIN
        return cls(
            code=error.code(),
            message=status.message or error.details() or "",
            reason=info.reason if ours else "",
            metadata=dict(info.metadata) if ours else {},
            violations=tuple((violation.field, violation.description) for violation in request.field_violations),
            retry_after_seconds=retry_after_seconds,
        )

    @property
    def is_transient(self) -> bool:
        """Whether the same call may succeed later. Every call of ours may be repeated."""
        if self.reason:
            return self.retry_after_seconds is not None or self.reason in {
                "CONTENTION",
                "DEADLINE_EXCEEDED",
                "DEPENDENCY_UNAVAILABLE",
                "TOO_MANY_REQUESTS",
            }
        # On the way: a process that dies under a call leaves any of these, depending on where the call was.
        return self.code in {
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.INTERNAL,
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.UNKNOWN,
        }

    def __str__(self) -> str:
        """One line for a person."""
        # A service's message repeats its violations; those of other origin may not.
        missing = [f"{name}: {what}" for name, what in self.violations if what not in self.message]
        text = "; ".join(part for part in (" ".join(self.message.split()), *missing) if part)
        text = f"{text or 'the call failed'} ({self.reason or self.code.name})"
        if self.retry_after_seconds is not None:
            text += f"; try again in {self.retry_after_seconds:g} s"
        return text
