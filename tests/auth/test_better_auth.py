"""Sessions of a real better-auth server, with a sidecar of its own, on the real mesh and straight."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from gaggle.agent.v1 import chat_service_pb2 as chat
from gaggle.agent.v1.chat_service_pb2_grpc import ChatServiceStub
from gaggle.auth.v1 import auth_service_pb2 as api
from gaggle.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as pb
from gaggle.conversation.v1.conversation_service_pb2_grpc import ConversationServiceStub
from services.auth.better_auth import BetterAuth
from services.auth.breaker import Breaker
from services.runtime.errors import UnauthenticatedError
from tests.better_auth.serving import Server, SignedIn, better_auth, daprd
from tests.conditions import eventually
from tests.extension.asking import Asker, odd
from tests.mesh_fixture import SESSION_CACHE_SECONDS, Mesh, better_auth_app_id
from tests.runtime.serving import bearer, refusal, refused

# One server under the run's one app id.
pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("better-auth")]
_WITHIN = 30.0


@dataclass
class Outside:
    """The better-auth server that the mesh knows; it may be stopped and started again."""

    server: Server
    stack: AsyncExitStack
    database_url: str

    async def stop(self) -> None:
        """Kill it; its sidecar stays."""
        await self.stack.aclose()

    async def start(self) -> None:
        """Start it again, where and with what it had."""
        again = better_auth(self.database_url, port=self.server.port, schema=self.server.schema)
        await self.stack.enter_async_context(again)


@pytest.fixture(scope="module")
async def outside(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Outside]:
    """A server and its daprd, found by the mesh."""
    url = mesh.description.database_url
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(better_auth(url))
        async with daprd(better_auth_app_id(), server.port, tmp_path_factory.mktemp("better-auth")):
            yield Outside(server, stack, url)


@pytest.fixture
async def conversations(mesh: Mesh) -> AsyncIterator[Any]:
    """The conversation service's stub, on its own port."""
    async with mesh.channel("conversation") as channel:
        yield ConversationServiceStub(channel)


async def _found(conversations: Any, metadata: tuple[tuple[str, str], ...]) -> list[str]:
    """List conversations once the mesh has found the server: names take a moment to be known."""

    async def answered() -> list[list[str]] | None:
        try:
            listed = await conversations.ListConversations(pb.ListConversationsRequest(), metadata=metadata, timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            return None
        return [[one.id for one in listed.conversations]]

    return (await eventually(answered, within=_WITHIN, what="the better-auth server found"))[0]


def _ways(session: SignedIn) -> dict[str, tuple[tuple[str, str], ...]]:
    return {
        "bare": bearer(session.token),
        "signed": bearer(session.signed),
        "cookie": (("cookie", session.cookie),),
    }


async def test_signed_in_and_signed_out(mesh: Mesh, outside: Outside, conversations: Any) -> None:
    """Sign up, call a service with the session in any of its forms, sign out, and be refused soon after."""
    email = f"{time.time_ns()}@example.com"
    first = await outside.server.sign_up(email)
    session = await outside.server.sign_in(email)
    assert session.user_id == first.user_id
    assert session.token != first.token
    assert await _found(conversations, bearer(session.token)) == []
    create = pb.CreateConversationRequest(conversation_id="mine", title="Mine")
    await conversations.CreateConversation(create, metadata=bearer(session.token))
    # What it made belongs to the user of that id, by whatever proof.
    for metadata in (*_ways(session).values(), bearer(first.token), mesh.metadata(session.user_id)):
        assert await _found(conversations, metadata) == ["mine"]
    stranger = await outside.server.sign_up()
    assert await _found(conversations, bearer(stranger.token)) == []

    async with mesh.channel("auth") as channel:
        auth: Any = AuthServiceStub(channel)
        told = (await auth.GetSession(api.GetSessionRequest(), metadata=bearer(session.token))).session
    assert (told.user_id, list(told.roles), told.issuer, told.service) == (session.user_id, [], "better-auth", "")
    assert 0 < told.fresh_for.ToTimedelta().total_seconds() <= SESSION_CACHE_SECONDS
    assert told.expire_time.seconds > time.time() + 24 * 3600

    await outside.server.sign_out(session)
    signed_out = time.monotonic()

    async def shut() -> list[str]:
        answers = []
        for metadata in _ways(session).values():
            try:
                await conversations.ListConversations(pb.ListConversationsRequest(), metadata=metadata, timeout=10)
            except grpc.aio.AioRpcError as error:
                answers.append(refusal(error).reason)
        return answers if len(answers) == len(_ways(session)) else []

    reasons = await eventually(shut, within=_WITHIN, what="the session refused")
    assert reasons == ["INVALID_TOKEN"] * 3
    # Calls on a busy machine take their time as well.
    assert time.monotonic() - signed_out < SESSION_CACHE_SECONDS + 5
    # The user's other session is not touched.
    assert await _found(conversations, bearer(first.token)) == ["mine"]


async def test_a_session_goes_through_the_mesh(mesh: Mesh, outside: Outside, conversations: Any) -> None:
    """Through another service's sidecar, and on from service to service: a chatbot's turn in the session's name."""
    session = await outside.server.sign_up()
    assert await _found(conversations, bearer(session.signed)) == []
    async with mesh.sidecar("task") as channel:
        proxied: Any = ConversationServiceStub(channel)
        for metadata in _ways(session).values():
            through = (*metadata, ("dapr-app-id", mesh.service("conversation").app_id))
            assert not (await proxied.ListConversations(pb.ListConversationsRequest(), metadata=through)).conversations
    async with mesh.channel("extension") as channel:
        # The chatbot's tools, as a person may have them.
        await Asker(channel, bearer(session.token)).register(odd("tasks"))
    async with mesh.channel("agent") as channel:
        chatbot: Any = ChatServiceStub(channel)
        answer = await chatbot.Chat(
            chat.ChatServiceChatRequest(message="Hello"), metadata=bearer(session.token), timeout=60
        )
    assert answer.response
    assert await _found(conversations, mesh.metadata(session.user_id)) == [answer.conversation_id]


@pytest.mark.parametrize(
    "token",
    ["x" * 32, f"{'x' * 32}.{'y' * 43}%3D", "not.a.session"],
    ids=["made up", "made up and signed", "no session"],
)
async def test_a_forged_session(outside: Outside, conversations: Any, token: str) -> None:
    """What the server knows nothing of opens nothing."""
    session = await outside.server.sign_up()
    await _found(conversations, bearer(session.token))
    request = pb.ListConversationsRequest()
    answer = await refused(conversations.ListConversations(request, metadata=bearer(token), timeout=20))
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_TOKEN")
    # A real session's token under a forged signature.
    forged = bearer(f"{session.token}.{'y' * 43}%3D")
    answer = await refused(conversations.ListConversations(request, metadata=forged, timeout=20))
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_TOKEN")


async def test_the_server_away(mesh: Mesh, outside: Outside, conversations: Any) -> None:
    """While it is away sessions are UNAVAILABLE, quickly and with a pause; our own tokens go on; then all is well."""
    session = await outside.server.sign_up()
    await _found(conversations, bearer(session.token))
    await outside.stop()
    request = pb.ListConversationsRequest()

    async def away() -> Any:
        try:
            await conversations.ListConversations(request, metadata=bearer(session.token), timeout=20)
        except grpc.aio.AioRpcError as error:
            return refusal(error)
        return None

    answer = await eventually(away, within=_WITHIN, what="the session can't be looked up")
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    assert answer.metadata == {"dependency": better_auth_app_id()}
    assert answer.retry_seconds
    # By now or soon the circuit is open, and many calls together take no time.
    for _ in range(5):
        await away()
    began = time.monotonic()
    answers = await asyncio.gather(*(away() for _ in range(50)))
    assert {one.code for one in answers} == {grpc.StatusCode.UNAVAILABLE}
    assert time.monotonic() - began < 10
    await conversations.ListConversations(request, metadata=mesh.metadata("ann"))
    await outside.start()
    assert await _found(conversations, bearer(session.token)) == []


def _straight(server: Server, **settings: Any) -> BetterAuth:
    given: dict[str, Any] = {
        "dependency": server.url,
        "breaker": Breaker(server.url, failures=5, pause_seconds=5),
        "cookie": "better-auth.session_token",
        "fresh_seconds": 5.0,
        "timeout_seconds": 10.0,
        "direct": True,
    }
    return BetterAuth(f"{server.url}/api/auth/get-session", **given | settings)


async def test_straight_to_the_server(outside: Outside) -> None:
    """Without Dapr: sessions that were revoked or have expired in its database are refused; admins by its role."""
    server = outside.server
    session = await server.sign_up()
    bridge = _straight(server, admin_role="operator")
    try:
        for token in (session.token, session.signed):
            assert (await bridge.session(token)).user_id == session.user_id
        server.sql('UPDATE "user" SET role = %s WHERE id = %s', "operator", session.user_id)
        assert (await bridge.session(session.token)).roles == {"admin"}
        server.sql("UPDATE session SET \"expiresAt\" = now() - interval '1 s' WHERE token = %s", session.token)
        with pytest.raises(UnauthenticatedError):
            await bridge.session(session.token)
        other = await server.sign_up()
        server.sql("DELETE FROM session WHERE token = %s", other.token)
        with pytest.raises(UnauthenticatedError) as caught:
            await bridge.session(other.token)
        assert caught.value.reason == error_reason_pb2.ERROR_REASON_INVALID_TOKEN
    finally:
        await bridge.close()


async def test_a_server_without_plugins(mesh: Mesh) -> None:
    """A server as it comes, without the bearer plugin, knows a session by its signed token, as its cookie holds it."""
    async with better_auth(mesh.description.database_url, plugins="") as server:
        session = await server.sign_up()
        bridge = _straight(server)
        try:
            signed = session.cookie.partition("=")[2]
            assert (await bridge.session(signed)).user_id == session.user_id
            with pytest.raises(UnauthenticatedError):
                await bridge.session(session.token)
        finally:
            await bridge.close()
