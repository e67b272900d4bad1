"""Logs of a running mesh: one JSON line a call, joined by trace ids, at a level that is changed while it runs."""

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from gaggle.conversation.v1 import conversation_service_pb2, conversation_service_pb2_grpc
from gaggle.operations.v1 import operations_service_pb2 as api
from gaggle.operations.v1 import operations_service_pb2_grpc
from tests.cli.command import gaggle
from tests.conditions import eventually
from tests.mesh_fixture import Mesh
from tests.observability.tracing import Trace, metadata

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("observed")]

_CREATE = "/gaggle.conversation.v1.ConversationService/CreateConversation"
_SECONDS = 20.0


def _lines(mesh: Mesh, name: str, start: int = 0) -> list[dict[str, Any]]:
    text = mesh.data.log(name).read_bytes()[start:].decode()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _size(mesh: Mesh, name: str) -> int:
    return Path(mesh.data.log(name)).stat().st_size


async def _create(mesh: Mesh, user: str, trace: Trace) -> None:
    async with mesh.channel("conversation") as channel:
        stub: Any = conversation_service_pb2_grpc.ConversationServiceStub(channel)
        request = conversation_service_pb2.CreateConversationRequest()
        await stub.CreateConversation(request, metadata=metadata(mesh, user, trace), timeout=_SECONDS)


async def _set_level(mesh: Mesh, service: str, user: str, roles: list[str], **fields: Any) -> Any:
    async with mesh.channel(service) as channel:
        stub: Any = operations_service_pb2_grpc.OperationsServiceStub(channel)
        request = api.SetLogLevelRequest(**fields)
        return await stub.SetLogLevel(request, metadata=mesh.metadata(user, roles=roles), timeout=_SECONDS)


async def test_one_line_a_call_with_its_trace(observed: Mesh, user: str) -> None:
    """A call is one line: method, code, milliseconds, user, service and the trace that the caller brought."""
    trace = Trace.begin()
    await _create(observed, user, trace)

    async def logged() -> list[dict[str, Any]]:
        return [one for one in _lines(observed, "conversation") if one.get("trace_id") == trace.trace_id]

    found = await eventually(logged, within=_SECONDS, what="the call's line")
    (call,) = [one for one in found if one["event"] == "call"]
    assert call.keys() == {
        "event", "method", "code", "ms", "user", "trace_id", "service", "app_id", "level", "timestamp",
    }  # fmt: skip
    assert (call["method"], call["code"], call["user"], call["service"]) == (_CREATE, "OK", user, "conversation")
    assert call["ms"] > 0


def test_every_line_of_every_service_is_json(observed: Mesh) -> None:
    """Services and sidecars write JSON and nothing else: no line needs a parser of its own."""
    for name in [*observed.description.services, *(f"{one}.daprd" for one in observed.description.services)]:
        lines = _lines(observed, name)
        assert lines
        assert all("level" in one for one in lines)


async def test_the_level_changes_without_a_restart(observed: Mesh, user: str) -> None:
    """An operator turns a service's level up to see each state operation, and down to hear of warnings alone."""
    pid = observed.pid("conversation")
    start = _size(observed, "conversation")
    changed = await asyncio.to_thread(gaggle, "log-level", "conversation", "debug", data=observed.data.path)
    assert (changed.returncode, changed.stdout) == (0, "conversation: info -> debug\n"), changed.stderr
    loud = Trace.begin()
    await _create(observed, user, loud)

    async def debugged() -> bool:
        lines = [one for one in _lines(observed, "conversation", start) if one.get("trace_id") == loud.trace_id]
        return {("debug", "state"), ("info", "call")} <= {(one["level"], one["event"]) for one in lines}

    await eventually(debugged, within=_SECONDS, what="state operations in the log")

    quiet = Trace.begin()
    await asyncio.to_thread(gaggle, "log-level", "conversation", "warning", data=observed.data.path)
    await _create(observed, user, quiet)
    back = await asyncio.to_thread(gaggle, "log-level", "conversation", "info", data=observed.data.path)
    assert back.stdout == "conversation: warning -> info\n"
    after = Trace.begin()
    await _create(observed, user, after)

    async def heard_again() -> bool:
        return after.trace_id in {one.get("trace_id") for one in _lines(observed, "conversation", start)}

    await eventually(heard_again, within=_SECONDS, what="the last call's line")
    assert quiet.trace_id not in {one.get("trace_id") for one in _lines(observed, "conversation", start)}
    assert observed.pid("conversation") == pid


async def test_a_level_for_a_while_ends_by_itself(observed: Mesh, user: str) -> None:
    """Nobody has to remember to turn debugging off again."""
    await _set_level(observed, "task", user, ["admin"], level=api.LOG_LEVEL_DEBUG, duration=Duration(nanos=200_000_000))

    async def over() -> bool:
        async with observed.channel("task") as channel:
            stub: Any = operations_service_pb2_grpc.OperationsServiceStub(channel)
            answer = await stub.GetLogLevel(
                api.GetLogLevelRequest(), metadata=observed.metadata(user, roles=["admin"]), timeout=_SECONDS
            )
        return bool(answer.level == answer.configured_level == api.LOG_LEVEL_INFO)

    await eventually(over, within=_SECONDS, what="the configured level again")


@pytest.mark.parametrize(
    ("roles", "fields", "code"),
    [
        ([], {"level": api.LOG_LEVEL_DEBUG}, grpc.StatusCode.PERMISSION_DENIED),
        (["admin"], {}, grpc.StatusCode.INVALID_ARGUMENT),
        (["admin"], {"level": 17}, grpc.StatusCode.INVALID_ARGUMENT),
        (["admin"], {"level": api.LOG_LEVEL_INFO, "duration": Duration(seconds=-1)}, grpc.StatusCode.INVALID_ARGUMENT),
        (
            ["admin"],
            {"level": api.LOG_LEVEL_INFO, "duration": Duration(seconds=90_000)},
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ],
    ids=["a user", "no level", "an unknown level", "a time gone by", "more than a day"],
)
async def test_the_level_is_for_admins_and_within_bounds(
    observed: Mesh, user: str, roles: list[str], fields: dict[str, Any], code: grpc.StatusCode
) -> None:
    """Who may not, or asks for what is none, changes nothing."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _set_level(observed, "auth", user, roles, **fields)
    assert refused.value.code() == code
