"""What another service of the mesh refuses comes out as this service's own error of that kind."""

from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status.rpc_status import GRPC_DETAILS_METADATA_KEY

from services.runtime.errors import (
    ConflictError,
    DeadlineError,
    FailedPreconditionError,
    GaggleError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from services.runtime.invocation import Peer, ToldError

_CODES = {one.value[0]: one for one in grpc.StatusCode}


def _refusal(code: int, reason: str, **metadata: str) -> grpc.aio.AioRpcError:
    """A failed call, as a service of the mesh answers it; without a reason, as something on the way does."""
    status = status_pb2.Status(code=code, message="no")
    if reason:
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="gaggle", metadata=metadata))
        status.details.append(packed)
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(field="name", description="must be set")
        packed = any_pb2.Any()
        packed.Pack(bad)
        status.details.append(packed)
    trailing = grpc.aio.Metadata((GRPC_DETAILS_METADATA_KEY, status.SerializeToString()))
    return grpc.aio.AioRpcError(_CODES[code], grpc.aio.Metadata(), trailing, "no")


def _peer(error: grpc.aio.AioRpcError) -> Peer:
    """A peer that refuses every call so."""

    async def method(*_request: Any, **_options: Any) -> None:
        raise error

    sidecar: Any = SimpleNamespace(channel=None, invocation=lambda _app_id, _token: ())
    return Peer(sidecar, "other", lambda _channel: SimpleNamespace(Method=method))


CASES = {
    "argument": (_refusal(code_pb2.INVALID_ARGUMENT, "INVALID_FIELD"), InvalidArgumentError),
    "not found": (_refusal(code_pb2.NOT_FOUND, "NOT_FOUND", type="task", id="t"), NotFoundError),
    "conflict": (_refusal(code_pb2.ABORTED, "STALE_ETAG", etag="1"), ConflictError),
    "state": (_refusal(code_pb2.FAILED_PRECONDITION, "WRONG_STATE"), FailedPreconditionError),
    "flood": (_refusal(code_pb2.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS"), UnavailableError),
    "away": (_refusal(code_pb2.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", dependency="state store"), UnavailableError),
    "slow": (_refusal(code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"), DeadlineError),
    "on the way": (_refusal(code_pb2.NOT_FOUND, ""), UnavailableError),
    "unknown reason": (_refusal(code_pb2.ABORTED, "OF_A_LATER_VERSION"), UnavailableError),
}


@pytest.mark.parametrize(("error", "kind"), CASES.values(), ids=CASES)
async def test_refusals_are_ones_own(error: grpc.aio.AioRpcError, kind: type[GaggleError]) -> None:
    """`call` raises the typed errors that domains know; what does not concern the request is UNAVAILABLE."""
    with pytest.raises(GaggleError) as caught:
        await _peer(error).call("Method", None, "token")
    assert type(caught.value) is kind
    if kind is InvalidArgumentError:
        assert caught.value.violations == {"name": "must be set"}
    if kind is ConflictError:
        assert caught.value.metadata == {"etag": "1"}


async def test_refusals_are_told_as_they_came() -> None:
    """`ask` keeps code, reason and facts as the other service told them."""
    with pytest.raises(ToldError) as caught:
        await _peer(CASES["flood"][0]).ask("Method", None, "token")
    assert caught.value.code == code_pb2.RESOURCE_EXHAUSTED
