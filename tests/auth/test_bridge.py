"""The bridge, against servers that answer what no better-auth server should."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gaggle.common.v1 import error_reason_pb2
from services.auth.better_auth import BetterAuth
from services.auth.breaker import Breaker
from services.auth.settings import AuthSettings
from services.runtime.errors import UnauthenticatedError, UnavailableError

TOKEN = "abcdefghijklmnopqrstuvwxyz012345"
_HEAD = "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n{more}\r\n"


def reply(body: object, *, status: int = 200, more: str = "") -> bytes:
    """Write an HTTP answer."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return _HEAD.format(status=status, size=len(text), more=more).encode() + text


def session(**changes: Any) -> dict[str, Any]:
    """Write get-session's answer; `user_...` and `session_...` change one of its fields."""
    answer: dict[str, Any] = {
        "session": {
            "userId": "u1",
            "token": TOKEN,
            "createdAt": "2026-01-02T03:04:05.678Z",
            "expiresAt": "2100-01-02T03:04:05.678Z",
        },
        "user": {"id": "u1", "email": "ann@example.com"},
    }
    for name, value in changes.items():
        part, _, field = name.partition("_")
        answer[part][field] = value
    return answer


class Odd:
    """A server that answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: bytes | None = reply(session())
        self.asked: list[bytes] = []
        self.hold: asyncio.Event | None = None
        self.hang_ups = 0
        """So many of the next requests get no answer."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            while True:
                self.asked.append(await reader.readuntil(b"\r\n\r\n"))
                if self.hold is not None:
                    await self.hold.wait()
                if self.answer is None or self.hang_ups:
                    self.hang_ups -= 1
                    break
                writer.write(self.answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def odd() -> AsyncIterator[tuple[Odd, Callable[..., BetterAuth]]]:
    """A server of the test's own, and the bridge to it."""
    server = Odd()
    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    made: list[BetterAuth] = []

    def bridge(**settings: Any) -> BetterAuth:
        given: dict[str, Any] = {
            "dependency": "better-auth-service",
            "breaker": Breaker("better-auth-service", failures=100, pause_seconds=5),
            "cookie": "better-auth.session_token",
            "fresh_seconds": 5.0,
            "timeout_seconds": 0.5,
        }
        made.append(BetterAuth(f"http://127.0.0.1:{port}/api/auth/get-session", **given | settings))
        return made[-1]

    yield server, bridge
    for one in made:
        await one.close()
    listening.close()
    if server.hold is not None:
        server.hold.set()


Fixture = tuple[Odd, Callable[..., BetterAuth]]


async def test_a_session(odd: Fixture) -> None:
    """A session is its user's, with its own times, and without any role that the operator did not name."""
    server, bridge = odd
    server.answer = reply(session(user_role="admin"))
    found = await bridge().session(f"{TOKEN}.c2lnbmF0dXJl+/=")
    assert (found.user_id, found.roles, found.fresh_seconds) == ("u1", frozenset(), 5.0)
    assert (found.issued_at, found.expires_at) == (1767323045.678, 4102542245.678)
    (asked,) = server.asked
    # In both forms that a server may read, each encoded once.
    assert b"authorization: Bearer abcdefghijklmnopqrstuvwxyz012345.c2lnbmF0dXJl%2B%2F%3D\r\n" in asked
    assert b"cookie: better-auth.session_token=abcdefghijklmnopqrstuvwxyz012345.c2lnbmF0dXJl%2B%2F%3D; " in asked


@pytest.mark.parametrize(
    ("role", "roles"),
    [
        ("operator", {"admin"}),
        ("user,operator", {"admin"}),
        ("user, operator", {"admin"}),
        ("operators", set()),
        (None, set()),
    ],
)
async def test_the_operator_s_admins(odd: Fixture, role: str | None, roles: set[str]) -> None:
    """Users of the role that the operator named are admins, and nobody else is."""
    server, bridge = odd
    server.answer = reply(session(user_role=role))
    assert (await bridge(admin_role="operator").session(TOKEN)).roles == roles


async def test_nobody_s_session(odd: Fixture) -> None:
    """What the server knows no session for is UNAUTHENTICATED."""
    server, bridge = odd
    server.answer = reply(None)
    with pytest.raises(UnauthenticatedError) as caught:
        await bridge().session(TOKEN)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_INVALID_TOKEN


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(reply(b"<html>"), id="not JSON"),
        pytest.param(reply(b"[" * 100_000), id="JSON without end"),
        pytest.param(reply([]), id="a list"),
        pytest.param(reply("null"), id="a text"),
        pytest.param(reply({}), id="an empty object"),
        pytest.param(reply({"session": None, "user": None}), id="nothing in it"),
        pytest.param(reply(session(user_id=None, session_userId=None)), id="no user"),
        pytest.param(reply(session(user_id=True, session_userId=True)), id="a user that is no id"),
        pytest.param(reply(session(session_userId="u2")), id="two users"),
        pytest.param(reply(session(session_token="z" * 32)), id="another's session"),
        pytest.param(reply(session(session_expiresAt="soon")), id="no time"),
        pytest.param(reply(session(session_expiresAt="2100-01-01T00:00:00")), id="a time without zone"),
        pytest.param(reply({"error": "..."}, status=500), id="a fault"),
        pytest.param(reply({"errorCode": "ERR_DIRECT_INVOKE"}, status=500), id="a sidecar that finds no app"),
        pytest.param(reply({"message": "no"}, status=401), id="a sidecar that wants its token"),
        pytest.param(reply({"message": "no"}, status=403), id="a sidecar whose policy denies"),
        pytest.param(reply({"code": "NOT_FOUND"}, status=404), id="another path"),
        pytest.param(reply(b"", status=302, more="location: http://127.0.0.1/\r\n"), id="a redirect"),
        pytest.param(None, id="hanging up"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n\r\n", id="another protocol"),
    ],
)
async def test_what_is_no_answer(odd: Fixture, answer: bytes | None) -> None:
    """Whatever is no answer of better-auth says nothing of the session: UNAVAILABLE, never UNAUTHENTICATED."""
    server, bridge = odd
    server.answer = answer
    with pytest.raises(UnavailableError) as caught:
        await bridge().session(TOKEN)
    assert caught.value.metadata == {"dependency": "better-auth-service"}
    assert caught.value.retry_after_seconds
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("x-retry-after: 7\r\n", 7.0), ("x-retry-after: soon\r\n", 1.0), ("x-retry-after: 1e9\r\n", 60.0), ("", 1.0)],
)
async def test_a_server_that_takes_no_more(odd: Fixture, header: str, seconds: float) -> None:
    """Its rate limit is passed on with its pause, and does not count as a failure."""
    server, bridge = odd
    server.answer = reply({}, status=429, more=header)
    limited = bridge(breaker=Breaker("better-auth-service", failures=1, pause_seconds=60))
    for _ in range(2):
        with pytest.raises(UnavailableError) as caught:
            await limited.session(TOKEN)
        assert caught.value.retry_after_seconds == seconds


async def test_a_server_that_hangs(odd: Fixture) -> None:
    """It keeps nobody longer than the limit, and after a few times nobody at all."""
    server, bridge = odd
    server.hold = asyncio.Event()
    hanging = bridge(breaker=Breaker("better-auth-service", failures=2, pause_seconds=60))
    began = time.monotonic()
    for _ in range(50):
        with pytest.raises(UnavailableError):
            await hanging.session(TOKEN)
    assert time.monotonic() - began < 10
    assert len(server.asked) == 2


async def test_an_idle_connection_that_was_closed(odd: Fixture) -> None:
    """A connection that the server closed meanwhile is made again, unseen by the caller."""
    server, bridge = odd
    lasting = bridge()
    await lasting.session(TOKEN)
    server.hang_ups = 1
    assert (await lasting.session(TOKEN)).user_id == "u1"
    assert len(server.asked) == 3


_BASE = {"APP_ID": "auth", "APP_PORT": "1", "DAPR_GRPC_PORT": "1", "APP_API_TOKEN": "t"}


@pytest.mark.parametrize(
    ("environment", "target"),
    [
        pytest.param(
            {}, "http://127.0.0.1:3500/v1.0/invoke/better-auth-service/method/api/auth/get-session", id="none"
        ),
        pytest.param(
            {"DAPR_HTTP_PORT": "50303"},
            "http://127.0.0.1:50303/v1.0/invoke/better-auth-service/method/api/auth/get-session",
            id="the sidecar's port",
        ),
        pytest.param(
            {"USE_DAPR_INVOCATION": "true", "DAPR_HTTP_URL": "http://dapr:1/", "DAPR_APP_ID_AUTH": "sessions"},
            "http://dapr:1/v1.0/invoke/sessions/method/api/auth/get-session",
            id="the sidecar's address and the app's id",
        ),
        pytest.param(
            {"USE_DAPR_INVOCATION": "false", "BETTER_AUTH_URL": "https://auth.example.com/"},
            "https://auth.example.com/api/auth/get-session",
            id="straight",
        ),
        pytest.param(
            {"GAGGLE_USE_DAPR_INVOCATION": "0", "GAGGLE_BETTER_AUTH_URL": "https://a", "GAGGLE_BETTER_AUTH_PATH": "/s"},
            "https://a/s",
            id="by our own names",
        ),
    ],
)
def test_settings(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], target: str) -> None:
    """Invocation by Dapr is the default; the names that better-auth's and Dapr's users know are taken beside ours."""
    for name in ("DAPR_APP_ID_AUTH", "DAPR_HTTP_PORT", "DAPR_HTTP_URL", "USE_DAPR_INVOCATION", "BETTER_AUTH_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (_BASE | environment).items():
        monkeypatch.setenv(name, value)
    assert AuthSettings.model_validate({}).better_auth_target == target


@pytest.mark.parametrize(
    ("environment", "setting"),
    [
        pytest.param({"USE_DAPR_INVOCATION": "false"}, "BETTER_AUTH_URL", id="straight to nowhere"),
        pytest.param({"USE_DAPR_INVOCATION": "perhaps"}, "USE_DAPR_INVOCATION", id="neither yes nor no"),
        pytest.param({"BETTER_AUTH_URL": "auth.example.com"}, "BETTER_AUTH_URL", id="no URL"),
        pytest.param({"DAPR_HTTP_URL": "localhost"}, "DAPR_HTTP_URL", id="no URL of the sidecar"),
        pytest.param({"DAPR_APP_ID_AUTH": ""}, "DAPR_APP_ID_AUTH", id="no app id"),
        pytest.param({"GAGGLE_SESSION_CACHE_SECONDS": "61"}, "session_cache_seconds", id="believing for too long"),
        pytest.param({"GAGGLE_BETTER_AUTH_PATH": "get-session"}, "better_auth_path", id="no path"),
    ],
)
def test_wrong_settings(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], setting: str) -> None:
    """A setting that is missing or wrong is named, before anything is served."""
    for name, value in (_BASE | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=setting):
        AuthSettings.model_validate({})
