"""The bridge to a better-auth server: whose session is it?

One call of its `get-session`, through the own sidecar by Dapr's HTTP invocation or straight to the server. The session
token goes along in both forms that such a server reads: as bearer token, for servers with the plugin of that name, and
as the session cookie. Cookies that the server caches in a browser are not passed on, so it looks into its database, and
a session that was revoked is not found.
"""

import asyncio
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote

import httpx
import structlog

from services.auth.breaker import Breaker, BusyError
from services.runtime.call import trace_metadata
from services.runtime.errors import UnavailableError
from services.runtime.identity import Session, no_session

_TOO_MANY = 429
_LONGEST_PAUSE_SECONDS = 60.0
_ADMIN = "admin"

_log = structlog.get_logger()


class BetterAuth:
    """Looks sessions up. Made inside the event loop; closed once at the end."""

    def __init__(
        self,
        url: str,
        *,
        dependency: str,
        breaker: Breaker,
        cookie: str,
        fresh_seconds: float,
        timeout_seconds: float,
        headers: Mapping[str, str] | None = None,
        admin_role: str = "",
        direct: bool = False,
    ) -> None:
        """`url` is that of get-session, of the server itself if `direct`, and `dependency` what an operator calls it.

        `admin_role`: the server's role whose users have ours, admin; empty: none has.
        """
        self._url = url
        self._dependency = dependency
        self._breaker = breaker
        self._cookie = cookie
        self._fresh = fresh_seconds
        self._timeout = timeout_seconds
        self._headers = dict(headers or {})
        self._admin_role = admin_role
        self._client = httpx.AsyncClient(
            # The sidecar is on this host, whatever proxy a person has set for the world.
            trust_env=direct,
            # Node closes idle connections after five seconds.
            limits=httpx.Limits(max_connections=64, keepalive_expiry=2.0),
        )

    async def session(self, token: str) -> Session:
        """Look a session token up.

        Raises UnauthenticatedError: the server has no such session. UnavailableError: it is away, is unwell, takes no
        more, or gives what is no answer of better-auth.
        """
        with self._breaker.guard():
            return await self._ask(unquote(token))

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def _ask(self, token: str) -> Session:
        value = quote(token, safe="")
        headers = {
            **self._headers,
            **dict(trace_metadata()),
            "accept": "application/json",
            "authorization": f"Bearer {value}",
            # Over https the server knows its cookie by the longer name.
            "cookie": f"{self._cookie}={value}; __Secure-{self._cookie}={value}",
        }
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._get(headers)
        except (httpx.HTTPError, TimeoutError) as error:
            _log.warning("better_auth_away", dependency=self._dependency, error=f"{type(error).__name__}: {error}")
            raise UnavailableError(self._dependency) from error
        if response.status_code == _TOO_MANY:
            raise BusyError(self._dependency, retry_after_seconds=_pause(response.headers.get("x-retry-after")))
        try:
            if response.status_code != httpx.codes.OK:
                raise ValueError(f"status {response.status_code}")  # noqa: TRY301 - told like all that is no answer
            answer = json.loads(response.content)
            session = None if answer is None else self._session(answer, token)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            _log.warning("better_auth_no_answer", dependency=self._dependency, error=f"{type(error).__name__}: {error}")
            raise UnavailableError(self._dependency) from error
        if session is None:
            raise no_session()
        return session

    async def _get(self, headers: dict[str, str]) -> httpx.Response:
        try:
            return await self._client.get(self._url, headers=headers, timeout=self._timeout)
        except httpx.TimeoutException:
            raise
        except httpx.TransportError:
            # As a rule a connection that was closed while it lay idle. Asking again does no harm.
            return await self._client.get(self._url, headers=headers, timeout=self._timeout)

    def _session(self, answer: Any, token: str) -> Session:
        """Read get-session's answer. Raises what reading another one raises."""
        session, user = answer["session"], answer["user"]
        user_id = user["id"]
        if isinstance(user_id, bool) or not isinstance(user_id, str | int) or str(session["userId"]) != str(user_id):
            raise ValueError("the answer names no user")
        if session["token"] != token.partition(".")[0]:
            # Something on the way has mixed up answers: never take another's for ours.
            raise ValueError("the answer is about another session")
        roles = {one.strip() for one in (user.get("role") or "").split(",")}
        return Session(
            user_id=str(user_id),
            roles=frozenset({_ADMIN} if self._admin_role and self._admin_role in roles else ()),
            issued_at=_time(session["createdAt"]),
            expires_at=_time(session["expiresAt"]),
            fresh_seconds=self._fresh,
        )


def _time(text: str) -> float:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time has no zone")
    return time.timestamp()


def _pause(header: str | None) -> float:
    try:
        seconds = float(header or 1.0)
    except ValueError:
        seconds = 1.0
    # NaN is neither, and becomes the least.
    return min(max(0.1, seconds), _LONGEST_PAUSE_SECONDS)
