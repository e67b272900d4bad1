"""What can go wrong with an extension's server, beside what every service knows."""

from google.rpc import code_pb2

from gaggle.common.v1 import error_reason_pb2
from services.runtime.errors import GaggleError


class ExtensionUnavailableError(GaggleError):
    """The server could not be started, or died. A call that was under way may have had its effect."""

    code = code_pb2.UNAVAILABLE

    def __init__(self, name: str, what: str, *, state: str, retry_after_seconds: float | None = None) -> None:
        """`what` happened to it; `state` of the connection as the contract names it, in lower case."""
        super().__init__(
            f"extension {name!r} {what}",
            reason=error_reason_pb2.ERROR_REASON_EXTENSION_UNAVAILABLE,
            metadata={"extension": name, "state": state},
            retry_after_seconds=retry_after_seconds,
        )


class CallCancelledError(GaggleError):
    """Somebody has cancelled the call by its id."""

    code = code_pb2.ABORTED

    def __init__(self, call_id: str) -> None:
        """The caller's own id."""
        super().__init__(
            f"call {call_id!r} was cancelled",
            reason=error_reason_pb2.ERROR_REASON_CALL_CANCELLED,
            metadata={"call_id": call_id},
        )


class CallFailedError(Exception):
    """The server answered a call with an error of the protocol: an outcome, not a fault."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        """As JSON-RPC has them."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class ConnectionLostError(Exception):
    """The connection can't be made, or has ended; the text says how."""
