"""The state store against a sidecar that says what a real one says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from dapr.proto.runtime.v1 import dapr_pb2_grpc, pubsub_pb2, state_pb2
from google.protobuf import empty_pb2

from services.runtime.call import set_deadline
from services.runtime.dapr import common_pb2
from services.runtime.errors import DeadlineError, StateMissingError, UnavailableError
from services.runtime.sidecar import Sidecar
from services.runtime.state import CommitFailedError, Item, Put, Remove, StateStore
from services.runtime.telemetry import Metrics


class FakeDapr(dapr_pb2_grpc.DaprServicer):
    """A few methods of Dapr's API; `fails` is what they are answered with."""

    def __init__(self) -> None:
        self.items: dict[str, bytes] = {}
        self.hidden: set[str] = set()
        self.bulk_errors: set[str] = set()
        self.lost: set[Any] = set()
        """Keys whose transactions are refused, and events that are not published."""

        self.fails: grpc.StatusCode | None = None
        self.hangs = False
        self.requests: list[Any] = []
        self.metadata: dict[str, str] = {}

    async def _meet(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        if self.hangs:
            await asyncio.Event().wait()
        if self.fails is not None:
            await context.abort(self.fails, "possible etag mismatch. error from state store")

    async def GetState(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        await self._meet(request, context)
        if request.key not in self.items:
            return state_pb2.GetStateResponse()
        return state_pb2.GetStateResponse(data=self.items[request.key], etag=f"e-{request.key}")

    async def GetBulkState(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._meet(request, context)
        there = [key for key in request.keys if key in self.items and key not in self.hidden]
        items = [state_pb2.BulkStateItem(key=key, data=self.items[key], etag=f"e-{key}") for key in reversed(there)]
        items += [state_pb2.BulkStateItem(key=key) for key in request.keys if key not in there]
        items += [state_pb2.BulkStateItem(key=key, error="broken") for key in self.bulk_errors]
        return state_pb2.GetBulkStateResponse(items=items)

    async def ExecuteStateTransaction(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._meet(request, context)
        if self.lost.intersection(operation.request.key for operation in request.operations):
            await context.abort(grpc.StatusCode.INTERNAL, "possible etag mismatch. error from state store")
        return empty_pb2.Empty()

    async def PublishEvent(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._meet(request, context)
        return empty_pb2.Empty()

    async def BulkPublishEvent(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._meet(request, context)
        failed = [
            pubsub_pb2.BulkPublishResponseFailedEntry(entry_id=entry.entry_id, error="broken")
            for entry in request.entries
            if entry.event in self.lost
        ]
        return pubsub_pb2.BulkPublishResponse(failedEntries=failed)


@dataclass
class Stored:
    """The store under test and the sidecar behind it."""

    state: StateStore
    dapr: FakeDapr
    sidecar: Sidecar
    metrics: Metrics = field(default_factory=Metrics)


@pytest.fixture
async def stored(unblocked: None) -> AsyncIterator[Stored]:
    """A store on a sidecar of this test's own."""
    del unblocked
    dapr, metrics = FakeDapr(), Metrics()
    server = grpc.aio.server()
    dapr_pb2_grpc.add_DaprServicer_to_server(dapr, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sidecar = Sidecar(f"127.0.0.1:{port}", api_token="wanted")
    state = StateStore(sidecar, "statestore", metrics)
    for joined in (state._reads, state._commits, sidecar._publishes):
        joined._patience = 60.0  # What these tests count must not depend on how busy the machine is.
    yield Stored(state, dapr, sidecar, metrics)
    await sidecar.close()
    await server.stop(None)
    set_deadline(None)


async def test_one_value(stored: Stored) -> None:
    """A value is read strongly, with its ETag; a key without one gives nothing; the sidecar gets its token."""
    stored.dapr.items["k"] = b"\x00\xff"
    assert await stored.state.get("k") == Item(b"\x00\xff", "e-k")
    assert await stored.state.get("none") is None
    request = stored.dapr.requests[0]
    assert (request.store_name, request.key) == ("statestore", "k")
    assert request.consistency == common_pb2.StateOptions.CONSISTENCY_STRONG
    assert stored.dapr.metadata["dapr-api-token"] == "wanted"


async def test_an_empty_value_is_there(stored: Stored) -> None:
    """A key whose value is no bytes is not taken for a missing one."""
    stored.dapr.items["k"] = b""
    assert await stored.state.get("k") == Item(b"", "e-k")
    assert await stored.state.get_many(["k"]) == {"k": Item(b"", "e-k")}


async def test_many_values(stored: Stored) -> None:
    """Several keys are read at once, in whatever order they come; missing ones are left out; none asks nothing."""
    stored.dapr.items |= {"a": b"1", "b": b"2"}
    assert await stored.state.get_many(["a", "none", "b"]) == {"a": Item(b"1", "e-a"), "b": Item(b"2", "e-b")}
    assert len(stored.dapr.requests) == 1
    assert await stored.state.get_many([]) == {}
    assert len(stored.dapr.requests) == 1


async def test_a_bulk_read_that_broke_half_way(stored: Stored) -> None:
    """What a broken bulk read left out is found by asking for it alone, where the caller wants to be sure."""
    stored.dapr.items |= {"a": b"1", "b": b"2"}
    stored.dapr.hidden = {"b"}
    assert set(await stored.state.get_many(["a", "b"])) == {"a"}
    assert set(await stored.state.get_many(["a", "b", "c"], confirm=["b", "c"])) == {"a", "b"}
    assert set(await stored.state.require(["a", "b"])) == {"a", "b"}
    with pytest.raises(StateMissingError) as caught:
        await stored.state.require(["a", "c"])
    assert caught.value.key == "c"
    assert "c" not in caught.value.message.split()


async def test_one_key_s_error_is_no_missing_key(stored: Stored) -> None:
    """A key that the store could not read fails the whole read."""
    stored.dapr.items["a"] = b"1"
    stored.dapr.bulk_errors = {"b"}
    with pytest.raises(UnavailableError):
        await stored.state.get_many(["a", "b"])


_FIRST = common_pb2.StateOptions.CONCURRENCY_FIRST_WRITE
_NONE = common_pb2.StateOptions.CONCURRENCY_UNSPECIFIED


@pytest.mark.parametrize(
    ("operation", "kind", "etag", "concurrency", "metadata"),
    [
        pytest.param(Put("k", b"v"), "upsert", None, _NONE, {}, id="overwrite"),
        pytest.param(Put("k", b"v", create=True), "upsert", None, _FIRST, {}, id="create if absent"),
        pytest.param(Put("k", b"v", etag="7"), "upsert", "7", _FIRST, {}, id="over a version"),
        pytest.param(Put("k", b"v", ttl_seconds=60), "upsert", None, _NONE, {"ttlInSeconds": "60"}, id="for a time"),
        pytest.param(
            Put("k", b"v", create=True, ttl_seconds=9), "upsert", None, _FIRST, {"ttlInSeconds": "9"}, id="both"
        ),
        pytest.param(Remove("k"), "delete", None, _NONE, {}, id="delete"),
        pytest.param(Remove("k", "7"), "delete", "7", _FIRST, {}, id="delete a version"),
    ],
)
async def test_operations_as_dapr_wants_them(
    stored: Stored, operation: Put | Remove, kind: str, etag: str | None, concurrency: int, metadata: dict[str, str]
) -> None:
    """Each operation goes into the transaction with the ETag, the concurrency and the TTL that Dapr reads."""
    await stored.state.commit([operation, Put("other", b"x")])
    (request,) = stored.dapr.requests
    sent, other = request.operations
    assert (request.storeName, sent.operationType, sent.request.key) == ("statestore", kind, "k")
    assert (sent.request.etag.value if sent.request.HasField("etag") else None) == etag
    assert sent.request.options.concurrency == concurrency
    assert dict(sent.request.metadata) == metadata
    assert sent.request.value == (b"" if kind == "delete" else b"v")
    assert other.request.key == "other"


_CALLS: list[Any] = [
    pytest.param(lambda state: state.get("k"), id="get"),
    pytest.param(lambda state: state.get_many(["k"]), id="get many"),
]
_ERRORS = [
    pytest.param(grpc.StatusCode.UNAVAILABLE, UnavailableError, id="away"),
    pytest.param(grpc.StatusCode.INTERNAL, UnavailableError, id="internal"),
    pytest.param(grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineError, id="too late"),
]


@pytest.mark.parametrize("call", _CALLS)
@pytest.mark.parametrize(("code", "error"), _ERRORS)
async def test_failed_reads(
    stored: Stored, call: Callable[[StateStore], Any], code: grpc.StatusCode, error: type[Exception]
) -> None:
    """A read that fails is told as what the caller of ours can do about it."""
    stored.dapr.fails = code
    with pytest.raises(error):
        await call(stored.state)


@pytest.mark.parametrize(
    ("code", "error"), [*_ERRORS, pytest.param(grpc.StatusCode.ABORTED, UnavailableError, id="lost")]
)
async def test_failed_commits(stored: Stored, code: grpc.StatusCode, error: type[Exception]) -> None:
    """However a commit fails, it may have happened: there is one error for it, which keeps what to tell."""
    stored.dapr.fails = code
    with pytest.raises(CommitFailedError) as caught:
        await stored.state.commit([Put("k", b"v")])
    assert isinstance(caught.value.cause, error)


async def test_a_stalled_sidecar(stored: Stored) -> None:
    """No call to a sidecar that does not answer outlasts the deadline of the call being served."""
    stored.dapr.hangs = True
    set_deadline(0.2)
    with pytest.raises(DeadlineError):
        await stored.state.get("k")
    set_deadline(0.2)
    with pytest.raises(CommitFailedError) as caught:
        await stored.state.commit([Put("k", b"v")])
    assert isinstance(caught.value.cause, DeadlineError)
    set_deadline(-1)
    before = len(stored.dapr.requests)
    with pytest.raises(DeadlineError):
        await stored.state.get("k")
    assert len(stored.dapr.requests) == before, "without time left the sidecar is not asked"


async def test_reads_at_the_same_time_are_one(stored: Stored) -> None:
    """Reads that come during another go together; a key that a bulk read does not find is asked for alone."""
    stored.dapr.items |= {"a": b"1", "b": b"2", "c": b"3"}
    stored.dapr.hidden = {"c"}
    found = await asyncio.gather(
        stored.state.get("a"),
        stored.state.get("b"),
        stored.state.get("c"),
        stored.state.get("none"),
        stored.state.get_many(["a", "none"]),
    )
    one, two, three = Item(b"1", "e-a"), Item(b"2", "e-b"), Item(b"3", "e-c")
    assert list(found) == [one, two, three, None, {"a": one}]
    first, together, *alone = stored.dapr.requests
    assert first.key == "a"
    assert list(together.keys) == ["b", "c", "none", "a"]
    assert sorted(request.key for request in alone) == ["c", "none"]


async def test_a_bulk_read_too_large_for_the_channel(stored: Stored) -> None:
    """Values that are too much together are read one by one."""
    stored.dapr.items |= dict.fromkeys("abcd", b"x" * (6 * 1024 * 1024))
    found = await asyncio.gather(*(stored.state.get(name) for name in "abcd"))
    assert [len(one.value) for one in found if one] == [6 * 1024 * 1024] * 4


async def test_commits_at_the_same_time_are_one(stored: Stored) -> None:
    """Commits that come during another go in one transaction in the order of keys; those of one key do not meet."""
    await asyncio.gather(
        stored.state.commit([Put("first", b"1")]),
        stored.state.commit([Put("z", b"1"), Put("b", b"1", etag="7")]),
        stored.state.commit([Remove("a")]),
        stored.state.commit([Put("b", b"2")]),
        stored.state.commit([Put("large", b"x" * (2 * 1024 * 1024))]),
    )
    sent = [[one.request.key for one in request.operations] for request in stored.dapr.requests]
    assert sent == [["first"], ["a", "b", "z"], ["b"], ["large"]]


async def test_a_lost_race_is_the_loser_s_alone(stored: Stored) -> None:
    """When one of several commits is refused, the others are made by themselves, and it alone hears of it."""
    stored.dapr.lost = {"b"}
    answers = await asyncio.gather(
        *(stored.state.commit([Put(key, b"1")]) for key in ("first", "a", "b", "c")), return_exceptions=True
    )
    assert [isinstance(one, CommitFailedError) for one in answers] == [False, False, True, False]
    sent = [[one.request.key for one in request.operations] for request in stored.dapr.requests]
    assert sent[:2] == [["first"], ["a", "b", "c"]]
    assert sorted(sent[2:]) == [["a"], ["b"], ["c"]]


async def test_events_at_the_same_time_are_one_call(stored: Stored) -> None:
    """Events of one topic go together with their own metadata; the one that is not published is told of."""
    stored.dapr.lost = {b"bad"}
    answers = await asyncio.gather(
        stored.sidecar.publish("pubsub", "t", b"1"),
        stored.sidecar.publish("pubsub", "t", b"2", {"partitionKey": "k"}),
        stored.sidecar.publish("pubsub", "u", b"3"),
        stored.sidecar.publish("pubsub", "t", b"bad"),
        return_exceptions=True,
    )
    assert [isinstance(one, UnavailableError) for one in answers] == [False, False, False, True]
    first, together, other = stored.dapr.requests
    assert (first.topic, first.data) == ("t", b"1")
    assert (together.topic, [entry.event for entry in together.entries]) == ("t", [b"2", b"bad"])
    assert dict(together.entries[0].metadata) == {"partitionKey": "k"}
    assert {entry.content_type for entry in together.entries} == {"application/json"}
    assert (other.topic, other.data) == ("u", b"3")
