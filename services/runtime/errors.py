"""What can go wrong, as exceptions that know their place in the contract.

Domain code and handlers raise these; the call pipeline alone turns them into a `google.rpc.Status`.

    GaggleError
    ├── InvalidArgumentError        INVALID_ARGUMENT      a field, the bytes, a page token, a reused request_id
    ├── TooLargeError               RESOURCE_EXHAUSTED    over a stated limit
    ├── TooManyRequestsError        RESOURCE_EXHAUSTED    too many calls at once
    ├── UnauthenticatedError        UNAUTHENTICATED       no token, or none that is trusted
    ├── PermissionDeniedError       PERMISSION_DENIED     a role or a place in the access matrix is missing
    ├── NotFoundError               NOT_FOUND             not there, or someone else's
    ├── AlreadyExistsError          ALREADY_EXISTS        an id is taken
    ├── ConflictError               ABORTED               a stale etag, sequence or fence; contention
    ├── FailedPreconditionError     FAILED_PRECONDITION   not in this state
    ├── UnavailableError            UNAVAILABLE           a dependency is away
    ├── DeadlineError               DEADLINE_EXCEEDED     no time left
    └── StateMissingError           DATA_LOSS             what must be there is not
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from google.protobuf.message import Message
from google.rpc import code_pb2

from gaggle.common.v1 import error_reason_pb2

if TYPE_CHECKING:
    # protobuf's enums have this type in their stubs alone.
    Reason: TypeAlias = error_reason_pb2.ErrorReason.ValueType


class GaggleError(Exception):
    """A fault that the caller is told about.

    `reason` and `metadata` become ErrorInfo, `violations` (field to description) BadRequest, `retry_after_seconds`
    RetryInfo. Nothing in them may hold another user's data or a secret.
    """

    code: ClassVar[int] = code_pb2.INTERNAL

    foreign: tuple[Message, ...] = ()
    """Details that another protocol's clients look for, told beside our own."""

    def __init__(
        self,
        message: str,
        *,
        reason: "Reason",
        metadata: Mapping[str, str] | None = None,
        violations: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        """Keep the facts; `message` is for people and may change, `reason` is the contract."""
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = dict(violations or {})
        self.retry_after_seconds = retry_after_seconds


class InvalidArgumentError(GaggleError):
    """The request can never succeed as it is."""

    code = code_pb2.INVALID_ARGUMENT

    def __init__(
        self, violations: Mapping[str, str], *, reason: "Reason" = error_reason_pb2.ERROR_REASON_INVALID_FIELD
    ) -> None:
        """Name each field with what is wrong, for example `{"messages[2].role": "must be set"}`."""
        text = "; ".join(f"{field}: {what}" for field, what in violations.items())
        super().__init__(text, reason=reason, violations=violations)


class TooLargeError(GaggleError):
    """Something is over its limit; both numbers are told."""

    code = code_pb2.RESOURCE_EXHAUSTED

    def __init__(self, what: str, *, size: int, limit: int) -> None:
        """Sizes in the unit that `what` names, bytes as a rule."""
        super().__init__(
            f"{what} is {size}, the limit is {limit}",
            reason=error_reason_pb2.ERROR_REASON_TOO_LARGE,
            metadata={"size": str(size), "limit": str(limit)},
        )


class TooManyRequestsError(GaggleError):
    """The service is at its limit of calls at once."""

    code = code_pb2.RESOURCE_EXHAUSTED

    def __init__(self, limit: int, *, retry_after_seconds: float = 0.5) -> None:
        """`limit`: calls at once."""
        super().__init__(
            f"more than {limit} calls at once",
            reason=error_reason_pb2.ERROR_REASON_TOO_MANY_REQUESTS,
            metadata={"limit": str(limit)},
            retry_after_seconds=retry_after_seconds,
        )


class UnauthenticatedError(GaggleError):
    """Nobody that this mesh knows."""

    code = code_pb2.UNAUTHENTICATED

    def __init__(self, message: str, *, reason: "Reason" = error_reason_pb2.ERROR_REASON_INVALID_TOKEN) -> None:
        """`message` says what to do, never why a forgery failed in detail."""
        super().__init__(message, reason=reason)


class PermissionDeniedError(GaggleError):
    """Known, but not allowed."""

    code = code_pb2.PERMISSION_DENIED

    def __init__(
        self,
        message: str,
        *,
        reason: "Reason" = error_reason_pb2.ERROR_REASON_ROLE_REQUIRED,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """`metadata` names the role or service that would have been needed."""
        super().__init__(message, reason=reason, metadata=metadata)


class NotFoundError(GaggleError):
    """Not there, or another user's: the answer is the same."""

    code = code_pb2.NOT_FOUND

    def __init__(self, entity_type: str, entity_id: str) -> None:
        """The id is the caller's own words."""
        super().__init__(
            f"there is no {entity_type} {entity_id!r}",
            reason=error_reason_pb2.ERROR_REASON_NOT_FOUND,
            metadata={"type": entity_type, "id": entity_id},
        )


class AlreadyExistsError(GaggleError):
    """The id that the caller brought is taken."""

    code = code_pb2.ALREADY_EXISTS

    def __init__(self, entity_type: str, entity_id: str, *, why: str = "exists already") -> None:
        """`why` tells a taken id from one deleted a short while ago."""
        super().__init__(
            f"{entity_type} {entity_id!r} {why}",
            reason=error_reason_pb2.ERROR_REASON_ALREADY_EXISTS,
            metadata={"type": entity_type, "id": entity_id},
        )


class ConflictError(GaggleError):
    """Someone else was faster; nothing was written."""

    code = code_pb2.ABORTED

    def __init__(
        self,
        message: str,
        *,
        reason: "Reason" = error_reason_pb2.ERROR_REASON_CONTENTION,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """`metadata` holds what the caller brought and what is current."""
        super().__init__(message, reason=reason, metadata=metadata)


class FailedPreconditionError(GaggleError):
    """The entity's state does not allow it; repeating does not help."""

    code = code_pb2.FAILED_PRECONDITION

    def __init__(
        self,
        message: str,
        *,
        reason: "Reason" = error_reason_pb2.ERROR_REASON_WRONG_STATE,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """`metadata` names the state."""
        super().__init__(message, reason=reason, metadata=metadata)


class UnavailableError(GaggleError):
    """A part that is needed is away for the moment."""

    code = code_pb2.UNAVAILABLE

    def __init__(self, dependency: str, *, retry_after_seconds: float = 1.0) -> None:
        """`dependency` is the name that an operator knows: a component, a sidecar, an app id."""
        super().__init__(
            f"{dependency} is not available",
            reason=error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
            metadata={"dependency": dependency},
            retry_after_seconds=retry_after_seconds,
        )


class DeadlineError(GaggleError):
    """No time left; the effect may have happened."""

    code = code_pb2.DEADLINE_EXCEEDED

    def __init__(self, what: str) -> None:
        """`what` ran out of time."""
        super().__init__(
            f"no time left for {what}; repeat with the same request_id",
            reason=error_reason_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
        )


class StateMissingError(GaggleError):
    """State that must exist does not."""

    code = code_pb2.DATA_LOSS

    def __init__(self, key: str) -> None:
        """`key` goes to the log; the caller is told that something is missing, not what."""
        super().__init__("stored state is missing", reason=error_reason_pb2.ERROR_REASON_STATE_MISSING)
        self.key = key
