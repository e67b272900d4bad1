"""Calls to the mesh from the command line: where it is, who is calling, and patience.

Every mutation carries a request_id, so every call may be repeated: whatever dies under it, the answer is the first
one's. Hence one rule for all: what may pass is tried again, with growing pauses, until the time is up.
"""

import asyncio
import base64
import json
import os
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from cli.channels import open_channel
from cli.conversations.errors import Failure, ServiceRefusedError, UnreachableError
from cli.errors import CommandError, NotRunning
from cli.mesh.data import DataDirectory
from cli.mesh.description import MeshDescription
from cli.mesh.keys import sign_token
from gaggle.conversation.v1 import conversation_service_pb2 as pb
from gaggle.conversation.v1.conversation_pb2 import Conversation
from gaggle.conversation.v1.conversation_service_pb2_grpc import ConversationServiceStub
from gaggle.conversation.v1.message_pb2 import Message

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

SERVICE = "conversation"
_MESSAGE_BYTES = 16 * 1024 * 1024
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    # A service that was killed is back within seconds; gRPC's own back-off grows to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long one attempt may take.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Two clients of one process are two connections, as two programs would be.
    ("grpc.use_local_subchannel_pool", 1),
)
_TRY_SECONDS = 10.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
_TOKEN_SECONDS = 3600
_TOKEN_MARGIN_SECONDS = 120
_PAGE_MESSAGES = 500
_WATCH_PAUSE_SECONDS = 0.2
# A stream that stands still says so this often.
_KEEP_ALIVE_SECONDS = 20.0


@dataclass(frozen=True)
class Target:
    """Where calls go and in whose name."""

    address: str
    """host:port of the service, or of a sidecar; https://host:port where that takes TLS."""

    token: Callable[[], str]
    """Gives a token that is still good for a while."""

    user: str
    """Whose conversations; empty: only the token knows."""

    app_id: str = ""
    """The service's app id, where `address` is a sidecar's."""

    authority: Path | None = None
    """Who signed the certificate of a service of the local mesh that serves by TLS."""

    @classmethod
    def find(
        cls,
        *,
        data: Path | None = None,
        address: str = "",
        via: str = "",
        app_id: str = "",
        user: str = "",
        token: str = "",
        service: str = SERVICE,
    ) -> "Target":
        """The service of the mesh that runs on `data`, or the one at `address`.

        Args:
            data: the mesh's data directory.
            address: host:port or https://host:port in place of what mesh.json says.
            via: a service whose sidecar takes the calls.
            app_id: makes `address` a sidecar's: the app that it shall hand the calls to.
            user: whose token the local mesh's key shall sign. Default: $GAGGLE_USER, else who is logged in.
            token: a token of another origin, in place of signing one.
            service: the service to be called.

        Raises:
            NotRunning: no mesh runs there.
            CommandError: it has no service of the name in `via`.
        """
        directory = DataDirectory.at(data)
        if token:
            user = _subject(token)
            signed: Callable[[], str] = lambda: token  # noqa: E731 - a constant
        else:
            user = user or os.environ.get("GAGGLE_USER") or _login()
            signed = _Signer(directory, user)
        if address:
            return cls(address, signed, user, app_id)
        mesh = MeshDescription.load(directory.mesh_file)
        if service not in mesh.services:
            raise NotRunning(f"The mesh on {directory.path} runs without the {service} service.")
        if via:
            if via not in mesh.services:
                raise CommandError(f"The mesh has no service {via!r}; it has {', '.join(sorted(mesh.services))}.")
            return cls(mesh.services[via].sidecar_grpc, signed, user, mesh.services[service].app_id)
        first = mesh.services[service].replicas[0]
        return cls(first.address, signed, user, authority=first.authority)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        found = [("authorization", f"Bearer {self.token()}")]
        if self.app_id:
            found.append(("dapr-app-id", self.app_id))
            if token := os.environ.get("DAPR_API_TOKEN"):
                found.append(("dapr-api-token", token))
        if trace := os.environ.get("TRACEPARENT"):
            # A script's own trace, as other tools of the shell take it.
            found.append(("traceparent", trace))
        return tuple(found)


class Client:
    """The conversation service, as one user sees it. Made inside the event loop by `connect`."""

    def __init__(self, target: Target, channel: grpc.aio.Channel, timeout_seconds: float) -> None:
        """`timeout_seconds`: how long a call is tried before it fails."""
        self.target = target
        self.stub = ConversationServiceStub(channel)
        self.channel = channel
        self.timeout_seconds = timeout_seconds

    async def call(self, method: Callable[..., Any], request: _Request, answer: type[_Response]) -> _Response:
        """Calls a unary method until it answers.

        Raises:
            ServiceRefusedError: the service said no.
            UnreachableError: nothing answered in time.
        """
        deadline = time.monotonic() + self.timeout_seconds
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                left = max(deadline - time.monotonic(), 0.1)
                response = await method(request, timeout=min(_TRY_SECONDS, left), metadata=self.target.metadata())
            except grpc.aio.AioRpcError as error:
                failure = Failure.of(error)
                if not failure.is_transient:
                    raise ServiceRefusedError(failure) from error
                wait = max(pause * random.uniform(0.5, 1.0), failure.retry_after_seconds or 0.0)  # noqa: S311 - jitter
                if time.monotonic() + wait >= deadline:
                    raise UnreachableError(
                        f"{self.target.address} did not answer within {self.timeout_seconds:g} s: {failure}"
                    ) from error
                await asyncio.sleep(wait)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            else:
                assert isinstance(response, answer)
                return response

    async def get(self, conversation_id: str) -> Conversation:
        """One conversation. Raises as `call`."""
        request = pb.GetConversationRequest(conversation_id=conversation_id)
        return (await self.call(self.stub.GetConversation, request, pb.GetConversationResponse)).conversation

    async def find(self, conversation_id: str) -> Conversation | None:
        """One conversation, None if there is none. Raises as `call`."""
        try:
            return await self.get(conversation_id)
        except ServiceRefusedError as error:
            if error.failure.code is grpc.StatusCode.NOT_FOUND:
                return None
            raise

    async def conversations(self, page_size: int) -> AsyncIterator[Conversation]:
        """All of the user's, newest created first. Raises as `call`."""
        request = pb.ListConversationsRequest(page_size=page_size)
        while True:
            page = await self.call(self.stub.ListConversations, request, pb.ListConversationsResponse)
            for conversation in page.conversations:
                yield conversation
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def messages(self, conversation_id: str, *, after_sequence: int = 0) -> AsyncIterator[Message]:
        """All messages after a sequence, ascending. Raises as `call`."""
        request = pb.ListMessagesRequest(
            conversation_id=conversation_id, after_sequence=after_sequence, page_size=_PAGE_MESSAGES
        )
        while True:
            page = await self.call(self.stub.ListMessages, request, pb.ListMessagesResponse)
            for message in page.messages:
                yield message
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def newest(self, conversation_id: str, count: int) -> list[Message]:
        """The newest messages, ascending. Raises as `call`."""
        request = pb.ListMessagesRequest(conversation_id=conversation_id, page_size=min(count, _PAGE_MESSAGES))
        found: list[Message] = []
        while count > len(found):
            page = await self.call(self.stub.ListMessages, request, pb.ListMessagesResponse)
            found = [*page.messages, *found]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        return found[-count:] if count else []

    async def delete(self, conversation_id: str) -> None:
        """Deletes it; repeating that is fine. Raises as `call`."""
        request = pb.DeleteConversationRequest(conversation_id=conversation_id, request_id=f"cli-{uuid.uuid4()}")
        await self.call(self.stub.DeleteConversation, request, pb.DeleteConversationResponse)

    async def search(self, query: str, *, conversation_id: str = "", limit: int = 20) -> list[pb.MessageHit]:
        """The best finds. Raises as `call`."""
        request = pb.SearchMessagesRequest(query=query, conversation_id=conversation_id, page_size=limit)
        return list((await self.call(self.stub.SearchMessages, request, pb.SearchMessagesResponse)).hits)

    async def watch(self, conversation_id: str, from_sequence: int) -> AsyncIterator[Message]:
        """Messages from a sequence on as they come, each once, whatever breaks on the way; ends with the conversation.

        Raises:
            ServiceRefusedError: the service said no.
            UnreachableError: nothing answered in time.
        """
        request = pb.WatchRequest(conversation_id=conversation_id, from_sequence=from_sequence)
        metadata = (("dapr-stream", "true"),) if self.target.app_id else ()
        answered = time.monotonic()
        while True:
            call = self.stub.Watch(request, metadata=(*self.target.metadata(), *metadata))
            try:
                async for event in call:
                    answered = time.monotonic()
                    for message in event.messages.messages:
                        yield message
                        request.from_sequence = message.sequence + 1
                    if event.HasField("deleted"):
                        return
            except grpc.aio.AioRpcError as error:
                failure = Failure.of(error)
                if not failure.is_transient:
                    raise ServiceRefusedError(failure) from error
                if time.monotonic() - answered > self.timeout_seconds + _KEEP_ALIVE_SECONDS:
                    raise UnreachableError(f"{self.target.address} does not answer any more: {failure}") from error
                await asyncio.sleep(failure.retry_after_seconds or _WATCH_PAUSE_SECONDS)
            finally:
                call.cancel()


@asynccontextmanager
async def connect(target: Target, *, timeout_seconds: float) -> AsyncIterator[Client]:
    """A client, whose connection is closed at the end."""
    async with open_channel(target.address, authority=target.authority, options=_CHANNEL_OPTIONS) as channel:
        yield Client(target, channel, timeout_seconds)


class _Signer:
    """Signs tokens with the local mesh's key, a new one shortly before the old one ends."""

    def __init__(self, directory: DataDirectory, user: str) -> None:
        self._directory = directory
        self._user = user
        self._token = ""
        self._renew_at = 0.0

    def __call__(self) -> str:
        now = time.monotonic()
        if now >= self._renew_at:
            self._token = sign_token(self._directory, self._user, ttl_seconds=_TOKEN_SECONDS)
            self._renew_at = now + _TOKEN_SECONDS - _TOKEN_MARGIN_SECONDS
        return self._token


def _login() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise CommandError("Who are you? Name the user with --user or GAGGLE_USER.") from None


def _subject(token: str) -> str:
    """The user that a JWT names; it is not verified, for nothing is decided by it. Empty if it is no JWT."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError):
        return ""
    return str(claims.get("sub", "")) if isinstance(claims, dict) else ""
