"""Who is calling: tokens verified, tokens made.

A token is a JWT (RFC 7519) in `authorization: Bearer ...`. The mesh trusts its own issuer, whose public keys
(RFC 7517) lie in the secret `token-jwks`, and beside it at most one outside issuer, by its JWKS URL. Of our own keys
`issuer` signs for users; every other key belongs to the service of that name and is good for service tokens alone.

What stands there instead may be the session token of a better-auth server. It proves nothing by itself: whoever keeps
the sessions is asked, and again after a few seconds, since a session ends when its user signs out.
"""

import asyncio
import base64
import json
import math
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import structlog
from google.rpc import code_pb2
from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import KeySet, OKPKey

from gaggle.common.v1 import error_reason_pb2
from services.runtime.call import remaining_seconds, set_deadline
from services.runtime.errors import GaggleError, TooManyRequestsError, UnauthenticatedError, UnavailableError

_ALGORITHMS = ["EdDSA", "Ed25519", "ES256", "RS256"]
_CACHED_TOKENS = 10_000
_REFRESH_SECONDS = 30.0
_RETRY_SECONDS = 1.0
_LEEWAY_SECONDS = 5
_SERVICE_TOKEN_SECONDS = 300
_MAX_USER_BYTES = 128
ISSUER_KEY = "issuer"
SESSION_ISSUER = "better-auth"
"""The issuer of a caller who came with a session."""

# better-auth's session token, as its answers hold it; or signed, as its cookie and `set-auth-token` do.
# A JWT has two dots.
_SESSION_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,128}(\.[A-Za-z0-9+/=%_-]{16,128})?")
_SESSIONS_ASKED = 100
_REFUSED_SECONDS = 1.0
_ASK_SECONDS = 10.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Caller:
    """The verified caller of a call."""

    user_id: str
    """Whose data is meant; 1 to 128 bytes."""

    roles: frozenset[str]
    """Known: admin."""

    service: str
    """The service that acts for the user; empty: the user's own client."""

    issuer: str
    issued_at: float
    """Epoch seconds."""

    expires_at: float
    """Epoch seconds."""

    token: str
    """As it came, to be passed on."""

    ask_again_at: float = math.inf
    """When to ask again whether the session still stands, as of `since_boot`. A JWT stands until it expires."""

    @property
    def is_admin(self) -> bool:
        """Whether admin methods are open."""
        return "admin" in self.roles


_current: ContextVar[Caller] = ContextVar("current_caller")


def current_caller() -> Caller:
    """Give the caller of the call being served. LookupError outside of one."""
    return _current.get()


def set_current_caller(caller: Caller) -> None:
    """Set by the call pipeline, once a call."""
    _current.set(caller)


def since_boot() -> float:
    """Give seconds by a clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Session:
    """A session that stands."""

    user_id: str
    roles: frozenset[str]
    issued_at: float
    """Epoch seconds."""

    expires_at: float
    """Epoch seconds."""

    fresh_seconds: float
    """How long that may be relied on without asking again."""


SessionSource = Callable[[str], Awaitable[Session]]
"""Looks a session token up. Raises UNAUTHENTICATED if it stands for nobody, else that it can't be told for now."""


class KeySource(Protocol):
    """Gives a key set as JSON."""

    async def __call__(self) -> str:
        """Fetch it; raises if it can't be had."""
        ...


@dataclass(slots=True)
class _Issuer:
    source: KeySource
    own: bool
    keys: KeySet | None = None
    fetch_after: float = float("-inf")
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock)

    def knows(self, key_id: str) -> bool:
        return self.keys is not None and any(key.kid == key_id for key in self.keys.keys)


class Verifier:
    """Verifies signature, issuer, audience and expiry; remembers what it verified until it expires.

    Sessions are remembered for as long as the one who keeps them says, and at most one call is made for each at a time.
    """

    def __init__(
        self,
        audience: str,
        own: tuple[str, KeySource],
        outside: tuple[str, KeySource] | None = None,
        *,
        session_cookie: str = "",
    ) -> None:
        """Trust `own` (issuer, keys) and perhaps `outside`. `session_cookie`: the cookie that may bring a session."""
        self._issuers = {own[0]: _Issuer(own[1], own=True)}
        if outside is not None:
            self._issuers[outside[0]] = _Issuer(outside[1], own=False)
        self._audience = audience
        self._verified: OrderedDict[str, Caller] = OrderedDict()
        self._cookies = (f"__Secure-{session_cookie}", session_cookie) if session_cookie else ()
        self.sessions: SessionSource | None = None
        """Who is asked about session tokens; None: they are not taken."""
        self._asking: dict[str, asyncio.Task[Caller]] = {}
        self._refused: OrderedDict[str, float] = OrderedDict()

    def known(self, authorization: str) -> Caller | None:
        """Answer from memory, for a header seen before; None if it must be verified."""
        caller = self._verified.get(authorization)
        if caller is not None and (
            caller.expires_at <= time.time()
            or (caller.ask_again_at != math.inf and caller.ask_again_at <= since_boot())
        ):
            del self._verified[authorization]
            return None
        return caller

    def from_cookie(self, cookie: str | None) -> str | None:
        """Give what an authorization header would say, from the session's cookie; None if there is none."""
        if not cookie or not self._cookies:
            return None
        given = {name: value for name, _, value in (one.strip().partition("=") for one in cookie.split(";"))}
        return next((f"Bearer {given[name]}" for name in self._cookies if given.get(name)), None)

    async def verify(self, authorization: str | None) -> Caller:
        """Verify an authorization header.

        Raises UnauthenticatedError; UnavailableError while there are no keys, or a session can't be looked up.
        """
        if not authorization:
            raise UnauthenticatedError("send the metadata `authorization: Bearer <token>`")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise UnauthenticatedError("the authorization must be `Bearer <token>`")
        if self.sessions is not None and _SESSION_TOKEN.fullmatch(token):
            caller = await self._session(self.sessions, token)
        else:
            caller = await self._decode(token)
        self._verified[authorization] = caller
        if len(self._verified) > _CACHED_TOKENS:
            self._verified.popitem(last=False)
        return caller

    async def _decode(self, token: str) -> Caller:
        unverified, key_id = _peek(token)
        issuer = self._issuers.get(str(unverified.get("iss")))
        if issuer is None:
            raise UnauthenticatedError("the token is not from an issuer that this mesh trusts")
        keys = await self._keys(issuer, key_id)
        try:
            decoded = jwt.decode(token, keys, algorithms=_ALGORITHMS)
            jwt.JWTClaimsRegistry(
                leeway=_LEEWAY_SECONDS,
                iss={"essential": True},
                sub={"essential": True},
                exp={"essential": True},
                aud={"essential": True, "value": self._audience},
            ).validate(decoded.claims)
        except ExpiredTokenError as error:
            raise UnauthenticatedError(
                "the token has expired", reason=error_reason_pb2.ERROR_REASON_EXPIRED_TOKEN
            ) from error
        except (JoseError, ValueError, TypeError) as error:
            raise UnauthenticatedError("the token is not valid here") from error
        return _caller(token, decoded.claims, key_id, own=issuer.own)

    async def _session(self, sessions: SessionSource, token: str) -> Caller:
        """Ask about a session, together with whoever asks about the same one meanwhile."""
        if self._refused.get(token, 0.0) > since_boot():
            raise no_session()
        asking = self._asking.get(token)
        if asking is None:
            if len(self._asking) >= _SESSIONS_ASKED:
                raise TooManyRequestsError(_SESSIONS_ASKED)
            asking = self._asking[token] = asyncio.create_task(self._ask(sessions, token))
            asking.add_done_callback(lambda done: self._asked(token, done))
        # It goes on for the others if this caller leaves, and each keeps to its own deadline.
        async with asyncio.timeout(remaining_seconds(_ASK_SECONDS)):
            return await asyncio.shield(asking)

    async def _ask(self, sessions: SessionSource, token: str) -> Caller:
        # This task is nobody's in particular, so the first caller's deadline is not its own.
        set_deadline(None)
        asked_at = since_boot()
        try:
            session = await sessions(token)
        except GaggleError as error:
            if error.code == code_pb2.UNAUTHENTICATED:
                self._refused[token] = since_boot() + _REFUSED_SECONDS
                if len(self._refused) > _CACHED_TOKENS:
                    self._refused.popitem(last=False)
            raise
        if not 0 < len(session.user_id.encode()) <= _MAX_USER_BYTES or "\0" in session.user_id:
            raise UnauthenticatedError("the session's user id is not usable here")
        if session.expires_at <= time.time():
            raise UnauthenticatedError("the session has expired", reason=error_reason_pb2.ERROR_REASON_EXPIRED_TOKEN)
        return Caller(
            user_id=session.user_id,
            roles=session.roles,
            service="",
            issuer=SESSION_ISSUER,
            issued_at=session.issued_at,
            expires_at=session.expires_at,
            token=token,
            ask_again_at=asked_at + session.fresh_seconds,
        )

    def _asked(self, token: str, done: "asyncio.Task[Caller]") -> None:
        del self._asking[token]
        if not done.cancelled():
            # Whoever asked may have left: nobody need hear of it then.
            done.exception()

    async def _keys(self, issuer: _Issuer, key_id: str) -> KeySet:
        if not issuer.knows(key_id):
            async with issuer.fetching:
                if not issuer.knows(key_id) and time.monotonic() >= issuer.fetch_after:
                    try:
                        issuer.keys = KeySet.import_key_set(json.loads(await issuer.source()))
                        issuer.fetch_after = time.monotonic() + _REFRESH_SECONDS
                    except (httpx.HTTPError, GaggleError, JoseError, ValueError) as error:
                        # Those who wait behind this one need not try for themselves.
                        issuer.fetch_after = time.monotonic() + _RETRY_SECONDS
                        _log.warning("keys_unavailable", error=str(error))
        if issuer.keys is None:
            raise UnavailableError("the issuer's keys")
        return issuer.keys


def no_session() -> UnauthenticatedError:
    """Say that a session token stands for nobody: it never did, or its user signed out."""
    return UnauthenticatedError("there is no such session (any more); sign in again")


def _peek(token: str) -> tuple[dict[str, Any], str]:
    """Read a token's claims and key id without trusting them."""
    try:
        head, body, _signature = token.split(".")
        header = json.loads(_base64url(head))
        claims = json.loads(_base64url(body))
    except (ValueError, RecursionError) as error:
        raise UnauthenticatedError("the token is not a JWT") from error
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise UnauthenticatedError("the token is not a JWT")
    return claims, str(header.get("kid", ""))


def _base64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _caller(token: str, claims: Mapping[str, Any], key_id: str, *, own: bool) -> Caller:
    user_id = str(claims["sub"])
    service = str(claims.get("service", ""))
    roles = claims.get("roles", [])
    if not 0 < len(user_id.encode()) <= _MAX_USER_BYTES or not isinstance(roles, list):
        raise UnauthenticatedError("the token's claims are not usable here")
    # A service's key proves that service and nothing more; the issuer's key never speaks for a service.
    signer = service or ISSUER_KEY
    if service == ISSUER_KEY or (own and key_id != signer) or (not own and service):
        raise UnauthenticatedError("the token is not valid here")
    return Caller(
        user_id=user_id,
        roles=frozenset() if service else frozenset(str(role) for role in roles),
        service=service,
        issuer=str(claims["iss"]),
        issued_at=float(claims.get("iat", 0)),
        expires_at=float(claims["exp"]),
        token=token,
    )


class TokenSigner:
    """Signs tokens with one of our keys."""

    def __init__(self, key_json: str, *, issuer: str, audience: str) -> None:
        """`key_json`: a private Ed25519 key as a JWK with its `kid`."""
        self._key = OKPKey.import_key(json.loads(key_json))
        self._issuer = issuer
        self._audience = audience

    def sign(self, user_id: str, *, ttl_seconds: float, **claims: object) -> str:
        """Sign a token for a user; `claims` are added, for example `roles` or `service`."""
        now = int(time.time())
        body = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": user_id,
            "iat": now,
            "exp": now + int(ttl_seconds),
            "jti": secrets.token_hex(12),
            **claims,
        }
        head = {"alg": "EdDSA", "kid": self._key.kid}
        return jwt.encode(head, body, self._key, algorithms=["EdDSA"])


class ServiceTokens:
    """A service's own short-lived tokens, each naming the service and the user it acts for."""

    def __init__(self, service: str, signer: TokenSigner) -> None:
        """`service` is the service's name, which is its key's id too."""
        self._service = service
        self._signer = signer
        self._issued: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def issue(self, user_id: str) -> str:
        """Give a token that lasts at least one more minute, five at most."""
        token, expires_at = self._issued.get(user_id, ("", 0.0))
        if expires_at - time.time() < _SERVICE_TOKEN_SECONDS / 5:
            token = self._signer.sign(user_id, ttl_seconds=_SERVICE_TOKEN_SECONDS, service=self._service)
            self._issued[user_id] = (token, time.time() + _SERVICE_TOKEN_SECONDS)
            if len(self._issued) > _CACHED_TOKENS:
                self._issued.popitem(last=False)
        return token


def jwks_url(url: str) -> KeySource:
    """Take keys from an outside issuer over HTTPS."""

    async def fetch() -> str:
        async with httpx.AsyncClient(timeout=5) as client:
            response = await client.get(url)
            response.raise_for_status()
            return response.text

    return fetch
