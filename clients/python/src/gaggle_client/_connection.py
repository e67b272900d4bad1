"""A connection to the conversation service, and patience: mutations carry a request_id, so all may be repeated."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from gaggle.conversation.v1.conversation_service_pb2_grpc import ConversationServiceStub

Token = str | Callable[[], str]

_MESSAGE_BYTES = 16 * 1024 * 1024
_OPTIONS = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_TRANSIENT = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}
)


class Gaggle:
    """The conversation service, for the user of a token. Safe to be shared by the tasks of one event loop."""

    def __init__(
        self, channel: grpc.aio.Channel, token: Token, *, app_id: str = "", timeout_seconds: float = 10.0
    ) -> None:
        """`channel` leads to the service; with `app_id` to a sidecar, which hands calls on to that app.

        `timeout_seconds`: how long a call is repeated while the service does not answer.
        """
        self._stub: Any = ConversationServiceStub(channel)
        self._token = token
        self._app_id = app_id
        self._timeout_seconds = timeout_seconds

    async def call(self, method: str, request: Any) -> Any:
        """Call a method until it answers. Raises grpc.aio.AioRpcError: refused, or no answer in time."""
        deadline = time.monotonic() + self._timeout_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            left = max(deadline - time.monotonic(), 0.1)
            try:
                return await getattr(self._stub, method)(request, timeout=left, metadata=self._metadata())
            except grpc.aio.AioRpcError as error:
                wait = pause * random.uniform(0.5, 1.0)  # noqa: S311 - a jitter
                if error.code() not in _TRANSIENT or time.monotonic() + wait >= deadline:
                    raise
                await asyncio.sleep(wait)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        token = self._token if isinstance(self._token, str) else self._token()
        through = (("dapr-app-id", self._app_id),) if self._app_id else ()
        return (("authorization", f"Bearer {token}"), *through)


@asynccontextmanager
async def connect(
    address: str, *, token: Token, app_id: str = "", timeout_seconds: float = 10.0
) -> AsyncIterator[Gaggle]:
    """Connect without TLS to the service at host:port, or with `app_id` to a sidecar of its mesh.

    For TLS give `Gaggle` a channel of your own.
    """
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        yield Gaggle(channel, token, app_id=app_id, timeout_seconds=timeout_seconds)
