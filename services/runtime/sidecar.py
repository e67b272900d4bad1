"""The sidecar, reached by one long-lived channel and Dapr's generated stubs."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import grpc

from services.runtime.call import remaining_seconds, trace_metadata
from services.runtime.dapr import binding_pb2, dapr_pb2_grpc, metadata_pb2, pubsub_pb2, secret_pb2
from services.runtime.errors import DeadlineError, UnavailableError
from services.runtime.joining import Joined

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""What channels and servers take at once; sidecars run with the same limit."""

_TIMEOUT_SECONDS = 10.0
_PUBLISH_PATIENCE_SECONDS = 0.02
_JOINED_PUBLISHES = 32
_JOINED_BYTES = 1024 * 1024
_JSON = "application/json"
_TRACEPARENT = "cloudevent.traceparent"
"""Metadata that daprd writes into the CloudEvent, in place of the publishing call's own."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Instead of measuring the connection, by a ping for each answer, give it a window for all but the largest messages.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1024 * 1024),
    # daprd closes connections that ping more often than every 8 s and those idle for 3 minutes.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A sidecar that was killed is back within seconds; do not wait for gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long one attempt may take, in spite of its name; on a busy machine a tenth of a second is not enough.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


@dataclass(frozen=True, slots=True)
class _Publish:
    pubsub: str
    topic: str
    data: bytes
    metadata: Mapping[str, str]
    traceparent: str = ""


class Sidecar:
    """One service's sidecar. Made inside the event loop; closed once at the end."""

    def __init__(
        self, target: str, *, api_token: str = "", topic_names: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`target` is a gRPC target; `api_token` what the sidecar wants, if it wants one.

        `topic_names`: what topics are called in the broker, where that is another name.
        """
        self.channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self.stub: Any = dapr_pb2_grpc.DaprStub(self.channel)  # type: ignore[no-untyped-call]
        self._publishes: Joined[_Publish, None] = Joined(
            self._publish,
            self._publish_together,
            fits=_may_join,
            patience_seconds=_PUBLISH_PATIENCE_SECONDS,
            timeout_seconds=_TIMEOUT_SECONDS,
        )
        self._topic_names = topic_names
        self._token: tuple[tuple[str, str], ...] = (("dapr-api-token", api_token),) if api_token else ()

    def metadata(self, traceparent: str = "") -> tuple[tuple[str, str], ...]:
        """Give the metadata that every call to the sidecar carries; `traceparent` in the current trace's stead."""
        trace = (("traceparent", traceparent),) if traceparent else trace_metadata()
        return (*self._token, *trace)

    async def wait_until_ready(self, timeout_seconds: float = 60.0) -> Any:
        """Wait until the sidecar has loaded its components and sees this app; give its metadata.

        Raises UnavailableError when the time is over.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_seconds
        while True:
            try:
                metadata = await self.stub.GetMetadata(
                    metadata_pb2.GetMetadataRequest(),
                    timeout=max(deadline - loop.time(), 0.001),
                    metadata=self.metadata(),
                    wait_for_ready=True,
                )
            except grpc.aio.AioRpcError as error:
                if loop.time() >= deadline:
                    raise UnavailableError("sidecar") from error
                await asyncio.sleep(0.1)
                continue
            return metadata

    async def secret(self, store: str, name: str) -> dict[str, str]:
        """Read one secret. Raises UnavailableError, with the secret's name and never its value."""
        try:
            response = await self.stub.GetSecret(
                secret_pb2.GetSecretRequest(store_name=store, key=name),
                timeout=_TIMEOUT_SECONDS,
                metadata=self.metadata(),
                wait_for_ready=True,
            )
        except grpc.aio.AioRpcError as error:
            raise UnavailableError(f"secret {name!r} of {store}") from error
        return dict(response.data)

    async def publish(
        self,
        pubsub: str,
        topic: str,
        data: bytes,
        metadata: Mapping[str, str] | None = None,
        *,
        traceparent: str = "",
    ) -> None:
        """Publish JSON bytes. Raises UnavailableError: it may or may not have reached the broker.

        Those that are published at the same time reach the broker in any order. With `traceparent` its delivery goes on
        in that trace, by default in the current one.
        """
        traceparent = traceparent or next((value for _, value in trace_metadata()), "")
        await self._publishes.ask(_Publish(pubsub, topic, data, metadata or {}, traceparent))

    async def _publish(self, one: _Publish) -> None:
        request = pubsub_pb2.PublishEventRequest(
            pubsub_name=one.pubsub,
            topic=self._topic_names.get(one.topic, one.topic),
            data=one.data,
            data_content_type=_JSON,
            metadata=one.metadata,
        )
        try:
            await self.stub.PublishEvent(request, timeout=_TIMEOUT_SECONDS, metadata=self.metadata(one.traceparent))
        except grpc.aio.AioRpcError as error:
            raise UnavailableError(one.pubsub) from error

    async def _publish_together(self, several: Sequence[_Publish]) -> Sequence[UnavailableError | None]:
        """Publish to one topic. An error is everybody's: some of them may have been published, and will be again."""
        entries = [
            pubsub_pb2.BulkPublishRequestEntry(
                entry_id=str(number),
                event=one.data,
                content_type=_JSON,
                # One call publishes for several traces: each event goes on in its own.
                metadata={**one.metadata, **({_TRACEPARENT: one.traceparent} if one.traceparent else {})},
            )
            for number, one in enumerate(several)
        ]
        first = several[0]
        request = pubsub_pb2.BulkPublishRequest(
            pubsub_name=first.pubsub, topic=self._topic_names.get(first.topic, first.topic), entries=entries
        )
        try:
            response = await self.stub.BulkPublishEvent(
                request, timeout=_TIMEOUT_SECONDS, metadata=self.metadata(first.traceparent)
            )
        except grpc.aio.AioRpcError as error:
            raise UnavailableError(first.pubsub) from error
        failed = {int(entry.entry_id) for entry in response.failedEntries}
        return [UnavailableError(first.pubsub) if number in failed else None for number in range(len(several))]

    async def binding(self, name: str, operation: str, metadata: Mapping[str, str], data: bytes = b"") -> bytes:
        """Invoke an output binding and give its data. Raises UnavailableError or DeadlineError."""
        request = binding_pb2.InvokeBindingRequest(name=name, operation=operation, metadata=metadata, data=data)
        try:
            response = await self.stub.InvokeBinding(
                request, timeout=remaining_seconds(_TIMEOUT_SECONDS), metadata=self.metadata()
            )
        except grpc.aio.AioRpcError as error:
            raise translate(error, name) from error
        return bytes(response.data)

    async def sql(self, name: str, statement: str, parameters: Sequence[object] = ()) -> list[list[Any]]:
        """Run a query of a PostgreSQL binding and give its rows. Raises UnavailableError or DeadlineError.

        A result cut off by a lost connection looks complete: have the query return a count and check it.
        """
        data = await self.binding(name, "query", {"sql": statement, "params": json.dumps(list(parameters))})
        rows = json.loads(data) if data else []
        return rows or []

    def invocation(self, app_id: str, token: str, *, stream: bool = False) -> tuple[tuple[str, str], ...]:
        """Give the metadata for calling another service's stub, made on `channel`, through the sidecar."""
        target = (("dapr-app-id", app_id), ("authorization", f"Bearer {token}"))
        return (*self.metadata(), *target, *((("dapr-stream", "true"),) if stream else ()))

    async def close(self) -> None:
        """Close the channel."""
        await self.channel.close()


def _may_join(chosen: Sequence[_Publish], one: _Publish) -> bool:
    return (
        len(chosen) < _JOINED_PUBLISHES
        and (one.pubsub, one.topic) == (chosen[0].pubsub, chosen[0].topic)
        and sum(len(other.data) for other in chosen) + len(one.data) <= _JOINED_BYTES
    )


def translate(error: grpc.aio.AioRpcError, dependency: str) -> Exception:
    """Say of a failed call to the sidecar what the caller of ours should hear."""
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(dependency)
    return UnavailableError(dependency)
