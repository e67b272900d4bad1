"""Bad input of both ways, with the exact answer to each; nothing of it opens a stream."""

import contextlib
import json
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from websockets.exceptions import ConnectionClosed

from gaggle.sync.v1 import sync_service_pb2
from tests.sync.serving import WITHIN, Served

_TOKEN = object()
"""Stands for a good one."""

_INVALID, _WHO = "INVALID_ARGUMENT", "UNAUTHENTICATED"


@pytest.mark.parametrize(
    ("frame", "code", "reason", "fields"),
    [
        pytest.param("hello", _INVALID, "MALFORMED_REQUEST", {"frame"}, id="no JSON"),
        pytest.param("[" * 60_000, _INVALID, "MALFORMED_REQUEST", {"frame"}, id="a deep nest"),
        pytest.param('["token"]', _INVALID, "MALFORMED_REQUEST", {"frame"}, id="no object"),
        pytest.param(b"\x00\x01", _INVALID, "MALFORMED_REQUEST", {"frame"}, id="binary"),
        pytest.param({"token": _TOKEN, "user": "bob"}, _INVALID, "INVALID_FIELD", {"user"}, id="an unknown field"),
        pytest.param({"token": 7}, _INVALID, "INVALID_FIELD", {"token"}, id="a token of another type"),
        pytest.param({"token": _TOKEN, "afterPosition": "-1"}, _INVALID, "INVALID_FIELD", {"afterPosition"},
                     id="a negative position"),
        pytest.param({"token": _TOKEN, "afterPosition": "x"}, _INVALID, "INVALID_FIELD", {"afterPosition"},
                     id="no position"),
        pytest.param({"token": _TOKEN, "afterPosition": str(2**63)}, _INVALID, "INVALID_FIELD", {"after_position"},
                     id="a position that no log has"),
        pytest.param({"token": _TOKEN, "afterPosition": "1000000"}, _INVALID, "INVALID_FIELD", {"after_position"},
                     id="a position beyond the end"),
        pytest.param({"token": _TOKEN, "entityTypes": ["t"] * 17}, _INVALID, "INVALID_FIELD", {"entity_types"},
                     id="too many types"),
        pytest.param({"token": _TOKEN, "entityTypes": ["task", ""]}, _INVALID, "INVALID_FIELD", {"entity_types[1]"},
                     id="an empty type"),
        pytest.param({"token": _TOKEN, "entityTypes": ["a b"]}, _INVALID, "INVALID_FIELD", {"entity_types[0]"},
                     id="no type at all"),
        pytest.param({}, _WHO, "INVALID_TOKEN", set(), id="no token"),
        pytest.param({"token": "x.y.z"}, _WHO, "INVALID_TOKEN", set(), id="no JWT"),
        pytest.param(None, _WHO, "INVALID_TOKEN", set(), id="no frame in time"),
    ],
)  # fmt: skip
async def test_a_bad_first_frame(served: Served, frame: Any, code: str, reason: str, fields: set[str]) -> None:
    """A socket that begins wrongly is told what is wrong and where, and closed with the code that goes with it."""
    async with served.socket() as socket:
        if isinstance(frame, dict):
            given = {name: served.token("ann") if value is _TOKEN else value for name, value in frame.items()}
            await socket.send(**given)
        elif frame is not None:
            await socket.connection.send(frame)
        error, close_code = await socket.refusal()
    assert (error.code, error.reason) == (code, reason)
    assert {one.field for one in error.field_violations} == fields
    assert close_code == {"INVALID_ARGUMENT": 4400, "UNAUTHENTICATED": 4401}[code]
    assert served.hub.clients == 0


async def test_forged_expired_and_service_tokens(served: Served) -> None:
    """A token of another key, one that has run out, and a service's own open nothing."""
    good = served.token("ann")
    head, body, _ = good.split(".")
    forged = f"{head}.{body}.{served.token('bob').split('.')[2]}"
    expired = served.token("ann", ttl_seconds=-60)
    for token, wanted in ((forged, "INVALID_TOKEN"), (expired, "EXPIRED_TOKEN")):
        async with served.socket() as socket:
            await socket.send(token=token)
            error, code = await socket.refusal()
            assert (error.code, error.reason, code) == (_WHO, wanted, 4401)
        call = served.stub.Watch(
            sync_service_pb2.WatchRequest(), metadata=(("authorization", f"Bearer {token}"),), timeout=WITHIN
        )
        assert (await _refusal(call))[:2] == (grpc.StatusCode.UNAUTHENTICATED, wanted)


@pytest.mark.parametrize(
    ("frame", "code", "reason", "fields"),
    [
        pytest.param({"token": "bob"}, _WHO, "INVALID_TOKEN", set(), id="another user's token"),
        pytest.param({"token": ""}, _WHO, "INVALID_TOKEN", set(), id="no token"),
        pytest.param({"token": "ann", "afterPosition": "0"}, _INVALID, "INVALID_FIELD", {"after_position"},
                     id="another position"),
        pytest.param({"token": "ann", "entityTypes": ["task"]}, _INVALID, "INVALID_FIELD", {"entity_types"},
                     id="other types"),
    ],
)  # fmt: skip
async def test_a_bad_later_frame(
    served: Served, frame: dict[str, Any], code: str, reason: str, fields: set[str]
) -> None:
    """A later frame brings a new token of the same user and nothing else; all else ends the socket."""
    async with served.watching("ann") as socket:
        position = await socket.caught_up()
        await socket.send(**{**frame, "token": frame["token"] and served.token(frame["token"])})
        error, _ = await socket.refusal()
    assert (error.code, error.reason) == (code, reason)
    assert {one.field for one in error.field_violations} == fields
    assert socket.position == (position or None)


async def test_a_frame_over_the_limit(served: Served) -> None:
    """A frame of more than 64 KiB is not read to its end: 1009, as RFC 6455 has it."""
    async with served.socket() as socket:
        with contextlib.suppress(ConnectionClosed):
            await socket.connection.send(json.dumps({"token": "x" * 70_000}))
        with pytest.raises(ConnectionClosed):
            await socket.connection.recv()
        assert socket.connection.close_code == 1009


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        pytest.param({"entity_types": ["t"] * 17}, {"entity_types"}, id="too many types"),
        pytest.param({"entity_types": ["a b"]}, {"entity_types[0]"}, id="no type at all"),
        pytest.param({"after_position": 2**63}, {"after_position"}, id="a position that no log has"),
        pytest.param({"after_position": 1_000_000}, {"after_position"}, id="a position beyond the end"),
    ],
)
async def test_a_bad_request(served: Served, fields: dict[str, Any], named: set[str]) -> None:
    """The gRPC stream names the same fields."""
    code, reason, found = await _refusal(served.watch("ann", **fields))
    assert (code, reason, found) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", named)


async def test_malformed_bytes(served: Served) -> None:
    """Bytes that are no request, and text that is not UTF-8, are answered so."""
    # The stub's channel, with bytes in place of a request.
    for data in (b"\xff\xff\xff", b"\x12\x02\xff\xfe"):
        method: Any = served.channel.unary_stream("/gaggle.sync.v1.SyncService/Watch")
        code, reason, _ = await _refusal(method(data, metadata=served.as_user("ann"), timeout=WITHIN))
        assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")


async def test_nobody(served: Served) -> None:
    """Without a token there is no stream."""
    call = served.stub.Watch(sync_service_pb2.WatchRequest(), timeout=WITHIN)
    assert (await _refusal(call))[:2] == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_TOKEN")


async def _refusal(call: Any) -> tuple[grpc.StatusCode, str, set[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    status = rpc_status.from_call(caught.value)
    assert status is not None
    reason, fields = "", set()
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad):
            fields = {one.field for one in bad.field_violations}
    return caught.value.code(), reason, fields
