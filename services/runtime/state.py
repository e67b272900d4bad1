"""The state store, as far as every Dapr store with transactions that roll back has it.

Values are bytes. There is no query; what must be found again is found by its key.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from services.runtime.call import remaining_seconds
from services.runtime.dapr import common_pb2, state_pb2
from services.runtime.errors import GaggleError, StateMissingError, UnavailableError
from services.runtime.sidecar import Sidecar, translate
from services.runtime.telemetry import Metrics

_TIMEOUT_SECONDS = 5.0
_FIRST_WRITE = common_pb2.StateOptions(concurrency=common_pb2.StateOptions.CONCURRENCY_FIRST_WRITE)
_STRONG = common_pb2.StateOptions.CONSISTENCY_STRONG


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


class StateStore:
    """One state component of the sidecar."""

    def __init__(self, sidecar: Sidecar, name: str, metrics: Metrics) -> None:
        """`name` is the component's."""
        self._sidecar = sidecar
        self._name = name
        self._metrics = metrics

    async def get(self, key: str) -> Item | None:
        """Read one value, strongly. Raises UnavailableError or DeadlineError."""
        request = state_pb2.GetStateRequest(store_name=self._name, key=key, consistency=_STRONG)
        response = await self._call("get", self._sidecar.stub.GetState, request)
        return Item(response.data, response.etag) if response.etag else None

    async def get_many(self, keys: Sequence[str], *, confirm: Collection[str] = ()) -> dict[str, Item]:
        """Read several values at once; keys that have none are left out.

        Dapr does not notice a connection that breaks half-way through a bulk read: the rest looks missing. A key of
        `confirm` that seems missing is therefore asked for by itself. Raises UnavailableError or DeadlineError.
        """
        if not keys:
            return {}
        request = state_pb2.GetBulkStateRequest(store_name=self._name, keys=keys)
        response = await self._call("get_many", self._sidecar.stub.GetBulkState, request)
        found: dict[str, Item] = {}
        for item in response.items:
            if item.error:
                raise UnavailableError(self._name)
            if item.etag:
                found[item.key] = Item(item.data, item.etag)
        for key in confirm:
            if key not in found and (single := await self.get(key)) is not None:
                found[key] = single
        return found

    async def require(self, keys: Sequence[str]) -> dict[str, Item]:
        """Read values that must be there. Raises StateMissingError for one that is not."""
        found = await self.get_many(keys, confirm=keys)
        for key in keys:
            if key not in found:
                raise StateMissingError(key)
        return found

    async def commit(self, operations: Iterable[Put | Remove]) -> None:
        """Do all of it or nothing. Raises CommitFailedError: find out by reading."""
        request = state_pb2.ExecuteStateTransactionRequest(
            storeName=self._name, operations=[_operation(operation) for operation in operations]
        )
        try:
            await self._call("commit", self._sidecar.stub.ExecuteStateTransaction, request)
        except GaggleError as error:
            raise CommitFailedError(error) from error

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
            self._metrics.state.labels(operation, code).observe(time.perf_counter() - started)


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
