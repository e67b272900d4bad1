"""The state store, as far as every Dapr store with transactions that roll back has it.

Values are bytes. There is no query; what must be found again is found by its key.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import structlog

from services.runtime.call import remaining_seconds
from services.runtime.dapr import common_pb2, state_pb2
from services.runtime.errors import GaggleError, StateMissingError, UnavailableError
from services.runtime.joining import ApartError, Joined
from services.runtime.sidecar import Sidecar, translate
from services.runtime.telemetry import Metrics

_TIMEOUT_SECONDS = 5.0
_READ_PATIENCE_SECONDS = 0.01
_COMMIT_PATIENCE_SECONDS = 0.02
_JOINED_READS = 16
_JOINED_KEYS = 2
"""A read of more keys goes by itself: it is long, and what others wait for should not be."""

_JOINED_COMMITS = 16
_JOINED_BYTES = 1024 * 1024
# No time to ask again.
_AWAY = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, None})
_FIRST_WRITE = common_pb2.StateOptions(concurrency=common_pb2.StateOptions.CONCURRENCY_FIRST_WRITE)
_STRONG = common_pb2.StateOptions.CONSISTENCY_STRONG


_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Item:
    """A stored value and the ETag that it had when it was read."""

    value: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Put:
    """Write a value. With `etag`: only over that version. With `create`: only if there is none."""

    key: str
    value: bytes
    etag: str = ""
    create: bool = False
    ttl_seconds: int = 0
    """0: for good. A write without a TTL takes away one that was there."""


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete a key; one that is not there is no error. With `etag`: only that version."""

    key: str
    etag: str = ""


class CommitFailedError(Exception):
    """A transaction was answered with an error: a lost race, or something worse; it may even have been committed.

    The store's texts do not tell these apart reliably, so read before judging.
    """

    def __init__(self, cause: GaggleError | None) -> None:
        """`cause`: what to tell the caller if nothing better is found out; None: the store itself refused."""
        super().__init__("the commit was not confirmed")
        self.cause = cause


_Found: TypeAlias = "dict[str, Item | None]"
"""What was read, by key. None: surely not there. Left out: not found, but a bulk read is no proof."""


@dataclass(frozen=True, slots=True)
class _Commit:
    operations: tuple[Put | Remove, ...]
    keys: frozenset[str]
    size: int


class StateStore:
    """One state component of the sidecar."""

    def __init__(self, sidecar: Sidecar, name: str, metrics: Metrics) -> None:
        """`name` is the component's."""
        self._sidecar = sidecar
        self._name = name
        self._metrics = metrics
        self._observe: dict[tuple[str, str], Callable[[float], None]] = {}
        self._reads: Joined[tuple[str, ...], _Found] = Joined(
            self._read,
            self._read_together,
            fits=lambda chosen, _keys: len(chosen) < _JOINED_READS,
            patience_seconds=_READ_PATIENCE_SECONDS,
            timeout_seconds=_TIMEOUT_SECONDS,
        )
        self._commits: Joined[_Commit, None] = Joined(
            self._commit,
            self._commit_together,
            fits=_may_join,
            patience_seconds=_COMMIT_PATIENCE_SECONDS,
            timeout_seconds=_TIMEOUT_SECONDS,
        )

    async def get(self, key: str) -> Item | None:
        """Read one value, strongly. Raises UnavailableError or DeadlineError."""
        found = await self._reads.ask((key,))
        return found[key] if key in found else (await self._read((key,)))[key]

    async def get_many(self, keys: Sequence[str], *, confirm: Collection[str] = ()) -> dict[str, Item]:
        """Read several values at once; keys that have none are left out.

        Dapr does not notice a connection that breaks half-way through a bulk read: the rest looks missing. A key of
        `confirm` that seems missing is therefore asked for by itself. Raises UnavailableError or DeadlineError.
        """
        if not keys:
            return {}
        found = await (self._reads.ask(tuple(keys)) if len(keys) <= _JOINED_KEYS else self._read(keys))
        for key in confirm:
            if key not in found:
                found |= await self._read((key,))
        return {key: item for key, item in found.items() if item is not None}

    async def require(self, keys: Sequence[str]) -> dict[str, Item]:
        """Read values that must be there. Raises StateMissingError for one that is not."""
        found = await self.get_many(keys, confirm=keys)
        for key in keys:
            if key not in found:
                raise StateMissingError(key)
        return found

    async def commit(self, operations: Iterable[Put | Remove]) -> None:
        """Do all of it or nothing. Raises CommitFailedError: find out by reading."""
        # In the order of their keys: writers that lock the same rows in the same order cannot lock each other out.
        planned = tuple(sorted(operations, key=_key))
        size = sum(len(one.value) for one in planned if isinstance(one, Put))
        try:
            await self._commits.ask(_Commit(planned, frozenset(one.key for one in planned), size))
        except GaggleError as error:
            raise CommitFailedError(error) from error

    async def _read(self, keys: Sequence[str]) -> _Found:
        """Read keys in one call; one alone is read for sure, and None if it is not there."""
        if len(keys) == 1:
            single = state_pb2.GetStateRequest(store_name=self._name, key=keys[0], consistency=_STRONG)
            one = await self._call("get", self._sidecar.stub.GetState, single)
            return {keys[0]: Item(one.data, one.etag) if one.etag else None}
        request = state_pb2.GetBulkStateRequest(store_name=self._name, keys=keys)
        response = await self._call("get_many", self._sidecar.stub.GetBulkState, request)
        if any(item.error for item in response.items):
            raise UnavailableError(self._name)
        return {item.key: Item(item.data, item.etag) for item in response.items if item.etag}

    async def _read_together(self, wanted: Sequence[tuple[str, ...]]) -> Sequence[_Found]:
        try:
            found = await self._read(tuple({key: None for keys in wanted for key in keys}))
        except GaggleError as error:
            if _code(error) == grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise ApartError from error  # More than a channel takes at once.
            raise
        return [{key: found[key] for key in keys if key in found} for keys in wanted]

    async def _commit(self, commit: _Commit) -> None:
        await self._transact(commit.operations)

    async def _commit_together(self, commits: Sequence[_Commit]) -> Sequence[None]:
        operations = sorted((one for commit in commits for one in commit.operations), key=_key)
        try:
            await self._transact(operations)
        except GaggleError as error:
            if _code(error) in _AWAY:
                raise
            # One of them lost its race, and all were rolled back. If the answer is wrong and they are there, each finds
            # its own row or ETag in its way, and the asker finds out by reading, as after any failure.
            raise ApartError from error
        return [None] * len(commits)

    async def _transact(self, operations: Iterable[Put | Remove]) -> None:
        request = state_pb2.ExecuteStateTransactionRequest(
            storeName=self._name, operations=[_operation(operation) for operation in operations]
        )
        await self._call("commit", self._sidecar.stub.ExecuteStateTransaction, request)

    async def _call(self, operation: str, method: Any, request: Any) -> Any:
        timeout = remaining_seconds(_TIMEOUT_SECONDS)
        started = time.perf_counter()
        code = "OK"
        try:
            return await method(request, timeout=timeout, metadata=self._sidecar.metadata())
        except grpc.aio.AioRpcError as error:
            code = error.code().name
            raise translate(error, self._name) from error
        finally:
            observe = self._observe.get((operation, code))
            if observe is None:
                observe = self._observe[operation, code] = self._metrics.state.labels(operation, code).observe
            seconds = time.perf_counter() - started
            observe(seconds)
            _log.debug("state", operation=operation, code=code, ms=round(seconds * 1000, 3))


def _key(operation: Put | Remove) -> str:
    return operation.key


def _may_join(chosen: Sequence[_Commit], commit: _Commit) -> bool:
    return (
        len(chosen) < _JOINED_COMMITS
        and sum(one.size for one in chosen) + commit.size <= _JOINED_BYTES
        and all(one.keys.isdisjoint(commit.keys) for one in chosen)
    )


def _code(error: GaggleError) -> grpc.StatusCode | None:
    cause = error.__cause__
    return cause.code() if isinstance(cause, grpc.aio.AioRpcError) else None


def _operation(operation: Put | Remove) -> Any:
    item = common_pb2.StateItem(key=operation.key)
    if operation.etag:
        item.etag.value = operation.etag
        item.options.CopyFrom(_FIRST_WRITE)
    if isinstance(operation, Remove):
        return state_pb2.TransactionalStateOperation(operationType="delete", request=item)
    if not operation.value:
        # state.postgresql would store NULL, and fail; better here, by name, than there.
        raise ValueError(f"an empty value for {operation.key}")
    item.value = operation.value
    if operation.create:
        item.options.CopyFrom(_FIRST_WRITE)
    if operation.ttl_seconds:
        item.metadata["ttlInSeconds"] = str(operation.ttl_seconds)
    return state_pb2.TransactionalStateOperation(operationType="upsert", request=item)
