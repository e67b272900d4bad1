"""Frames of the WebSocket: proto3 JSON of gaggle.sync.v1.ClientFrame and ServerFrame."""

import json
from typing import Any

from google.protobuf import json_format
from google.rpc import code_pb2, error_details_pb2

from gaggle.common.v1 import error_reason_pb2
from gaggle.sync.v1 import frame_pb2
from services.runtime.errors import GaggleError, InvalidArgumentError
from services.runtime.pipeline import status_of
from services.sync.domain import Entry
from services.sync.watching import Step

_HTTP = {
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DEADLINE_EXCEEDED: 504,
}
_CLOSE_CODES = 4000
"""Of those that RFC 6455, 7.4.2, leaves to applications."""


def read_frame(text: str | None) -> frame_pb2.ClientFrame:
    """Read what a client sent; None is a binary message. Raises InvalidArgumentError, naming the fields."""
    try:
        body = json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise InvalidArgumentError(
            {"frame": "must be a text message that holds a JSON object"},
            reason=error_reason_pb2.ERROR_REASON_MALFORMED_REQUEST,
        )
    frame = frame_pb2.ClientFrame()
    violations = {}
    for name, value in body.items():
        try:
            json_format.ParseDict({name: value}, frame)
        except (json_format.ParseError, ValueError, TypeError, RecursionError):
            violations[name] = "is not known, or not of its type"
    if violations:
        raise InvalidArgumentError(violations)
    return frame


def step_frame(step: Step) -> str:
    """Write what a stream says."""
    if isinstance(step.told, Entry):
        return step.told.frame
    return json.dumps({"position": str(step.position), step.told.value: {}})


def error_frame(error: GaggleError, position: int) -> str:
    """Write why a socket ends, and where its client stands."""
    status = status_of(error)
    told = frame_pb2.FrameError(code=code_pb2.Code.Name(status.code), message=status.message)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            told.reason = info.reason
            told.metadata.update(info.metadata)
        elif detail.Unpack(bad):
            for one in bad.field_violations:
                told.field_violations.add(field=one.field, description=one.description)
        elif detail.Unpack(retry):
            told.retry_after_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    body: dict[str, Any] = {"error": json_format.MessageToDict(told)}
    if position:
        body["position"] = str(position)
    return json.dumps(body)


def close_code(error: GaggleError) -> int:
    """Give the code that a socket is closed with."""
    return _CLOSE_CODES + _HTTP.get(error.code, 500)
