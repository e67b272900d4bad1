"""resiliency.yaml as committed, on real sidecars: each policy acts when its target fails, and only then."""

import asyncio
import contextlib
import json
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cli.mesh.data import PROJECT_ROOT
from cli.mesh.sets import ComponentSet
from services.runtime.dapr import binding_pb2, dapr_pb2_grpc, pubsub_pb2, secret_pb2
from tests.conditions import eventually
from tests.lone_sidecar import lone_sidecar
from tests.mesh_fixture import Mesh
from tests.secure.failing import ATTEMPTS, DO

pytestmark = [pytest.mark.mesh, pytest.mark.slow, pytest.mark.timeout(240)]

_RUN_FILE = Path(__file__).with_name("failing-mesh.yaml")
_OPEN = "circuit breaker is open"
# Of the policies.
_CALL_SECONDS, _QUERY_SECONDS, _PUBLISH_SECONDS, _SECRET_SECONDS, _HINT_SECONDS = 15.0, 12.0, 5.0, 5.0, 1.0
_TRIP = 5
# A machine that does other things, too.
_SLACK_SECONDS = 20.0


@pytest.fixture(scope="module")
def failing(private_mesh: Callable[..., Mesh]) -> Mesh:
    """Services that fail as they are told."""
    return private_mesh(run_file=_RUN_FILE)


class Caller:
    """Calls services by the task service's sidecar."""

    def __init__(self, mesh: Mesh, channel: Any) -> None:
        self._mesh = mesh
        self._channel = channel

    async def do(self, service: str, request: str) -> bytes:
        """Have a service do as the request says; no deadline of our own."""
        metadata = (("dapr-app-id", self._mesh.service(service).app_id),)
        answer: bytes = await self._channel.unary_unary(DO)(request.encode(), metadata=metadata)
        return answer

    async def attempts(self, service: str, key: str) -> list[float]:
        """When a service was asked under a key, past all sidecars."""
        async with self._mesh.channel(service) as channel:
            raw: Any = channel
            found: list[float] = json.loads(await raw.unary_unary(ATTEMPTS)(key.encode(), timeout=10))
            return found


@pytest.fixture
async def caller(failing: Mesh) -> AsyncIterator[Caller]:
    """The one who calls."""
    async with failing.sidecar("task") as channel:
        yield Caller(failing, channel)


def _key() -> str:
    return uuid.uuid4().hex


async def _failed(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_call_that_changes_nothing_is_repeated_with_back_off(caller: Caller) -> None:
    """A service whose every method may be repeated is asked again while it is away, after growing pauses."""
    key = _key()
    assert await caller.do("auth", f"{key} UNAVAILABLE 2") == b"done"
    first, second, third = await caller.attempts("auth", key)
    # Half a second and three quarters, each give or take half of it.
    assert second - first >= 0.2
    assert third - second >= 0.3


async def test_repeating_ends(caller: Caller) -> None:
    """A service that stays away is told to the caller after four attempts."""
    key = _key()
    assert (await _failed(caller.do("auth", f"{key} UNAVAILABLE 99"))).code() is grpc.StatusCode.UNAVAILABLE
    assert len(await caller.attempts("auth", key)) == 4


@pytest.mark.parametrize(
    ("service", "code"),
    [
        pytest.param("auth", "INVALID_ARGUMENT", id="what was refused"),
        pytest.param("auth", "NOT_FOUND", id="what is not there"),
        pytest.param("conversation", "UNAVAILABLE", id="what may have had its effect"),
    ],
)
async def test_what_may_not_be_repeated_is_not(caller: Caller, service: str, code: str) -> None:
    """A refusal stays one, and a call that may change something reaches its service once."""
    key = _key()
    assert (await _failed(caller.do(service, f"{key} {code} 1"))).code() is grpc.StatusCode[code]
    assert len(await caller.attempts(service, key)) == 1


async def test_a_call_that_hangs_is_ended(caller: Caller) -> None:
    """A caller without a deadline hears of a service that hangs after the policy's time, and it is asked once."""
    key = _key()
    began = time.monotonic()
    error = await _failed(caller.do("conversation", f"{key} HANG 1"))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert _CALL_SECONDS - 1 < time.monotonic() - began < _CALL_SECONDS + _SLACK_SECONDS
    assert len(await caller.attempts("conversation", key)) == 1


async def test_the_breaker_of_reminders_opens_and_closes(caller: Caller) -> None:
    """After five failures the reminder service is left alone; after a while one call is let through, then all."""
    key = _key()
    for _ in range(_TRIP):
        assert (await _failed(caller.do("reminder", f"{key} INTERNAL {_TRIP}"))).code() is grpc.StatusCode.INTERNAL
    assert _OPEN in str((await _failed(caller.do("reminder", f"{key} INTERNAL {_TRIP}"))).details())
    assert len(await caller.attempts("reminder", key)) == _TRIP

    async def through() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            return await caller.do("reminder", f"{key} INTERNAL {_TRIP}") == b"done"
        return False

    await eventually(through, within=_SLACK_SECONDS, what="a call let through")
    assert await caller.do("reminder", f"{key} INTERNAL {_TRIP}") == b"done"


async def test_a_secret_store_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    """Whoever asks for a secret while the store takes connections and answers none is told so within the limit."""

    async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hung.wait()
        writer.close()

    hung = asyncio.Event()
    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        access = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
            "current-context": "c",
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(access))
        fields = {"kubeconfigPath": str(tmp_path / "kubeconfig"), "defaultNamespace": "gaggle"}
        metadata = [{"name": name, "value": value} for name, value in fields.items()]
        components = ComponentSet.load(PROJECT_ROOT / "dapr-components" / "local").files
        store = components["secretstore.yaml"][0] | {
            "spec": {"type": "secretstores.kubernetes", "version": "v1", "metadata": metadata}
        }
        async with (
            lone_sidecar(tmp_path, "task", [store, *components["resiliency.yaml"]]) as (_, sidecar),
            grpc.aio.insecure_channel(f"127.0.0.1:{sidecar}") as channel,
        ):
            await asyncio.wait_for(channel.channel_ready(), 60)
            stub: Any = dapr_pb2_grpc.DaprStub(channel)  # type: ignore[no-untyped-call]
            began = time.monotonic()
            error = await _failed(stub.GetSecret(secret_pb2.GetSecretRequest(store_name="secretstore", key="any")))
            assert error.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED}
            assert _SECRET_SECONDS - 1 < time.monotonic() - began < _SECRET_SECONDS + _SLACK_SECONDS
        hung.set()


async def test_the_breaker_of_the_broker_opens_and_closes(failing: Mesh) -> None:
    """While the broker hangs, publishing is ended and tried again; then it fails at once, until the broker is back."""
    async with failing.sidecar("task") as channel:
        stub: Any = dapr_pb2_grpc.DaprStub(channel)  # type: ignore[no-untyped-call]
        request = pubsub_pb2.PublishEventRequest(
            pubsub_name="pubsub", topic="task-events", data=b"{}", data_content_type="application/json"
        )
        await stub.PublishEvent(request)
        pid = failing.signal("redis", signal.SIGSTOP)
        try:
            began = time.monotonic()
            error = await _failed(stub.PublishEvent(request))
            # Three attempts.
            assert time.monotonic() - began > 3 * _PUBLISH_SECONDS - 1
            assert error.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.DEADLINE_EXCEEDED}
            await _a_hint_waits_for_nobody(failing)

            async def opened() -> bool:
                began = time.monotonic()
                error = await _failed(stub.PublishEvent(request))
                return _OPEN in str(error.details()) and time.monotonic() - began < 1

            await eventually(opened, within=60, what="publishing that fails at once")
        finally:
            failing.signal("redis", signal.SIGCONT)
        assert failing.pid("redis") == pid

        async def published() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stub.PublishEvent(request)
                return True
            return False

        await eventually(published, within=60, what="publishing again")
    log = failing.data.log("task.daprd").read_text()
    assert "Error processing operation component[pubsub] output. Retrying" in log


async def _a_hint_waits_for_nobody(failing: Mesh) -> None:
    """While the broker hangs: what a lost hint costs is a poll, so it is given up soon, and not tried again."""
    async with failing.sidecar("conversation") as channel:
        stub: Any = dapr_pb2_grpc.DaprStub(channel)  # type: ignore[no-untyped-call]
        request = pubsub_pb2.PublishEventRequest(pubsub_name="pubsub-fanout", topic="hints", data=b"{}")
        began = time.monotonic()
        await _failed(stub.PublishEvent(request))
        assert _HINT_SECONDS - 0.2 < time.monotonic() - began < _PUBLISH_SECONDS


async def test_the_breaker_of_the_database_opens_and_closes(failing: Mesh) -> None:
    """A statement that hangs is ended; after five failures statements fail at once, until one is let through."""
    async with failing.sidecar("audit") as channel:
        stub: Any = dapr_pb2_grpc.DaprStub(channel)  # type: ignore[no-untyped-call]

        def query(sql: str) -> Any:
            return stub.InvokeBinding(
                binding_pb2.InvokeBindingRequest(name="readmodel", operation="query", metadata={"sql": sql})
            )

        assert json.loads((await query("SELECT 1")).data) == [[1]]
        began = time.monotonic()
        await _failed(query("SELECT pg_sleep(60)"))
        assert _QUERY_SECONDS - 1 < time.monotonic() - began < _QUERY_SECONDS + _SLACK_SECONDS
        for _ in range(_TRIP - 1):
            assert _OPEN not in str((await _failed(query("SELECT nonsense"))).details())
        assert _OPEN in str((await _failed(query("SELECT 1"))).details())

        async def through() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await query("SELECT 1")
                return True
            return False

        await eventually(through, within=_SLACK_SECONDS, what="a statement let through")
