"""The dashboard's server: a page, its style and script, and what they show as JSON.

It listens on loopback alone, and answers those who bring the token: once in the address, from then on as a cookie. The
Host header must name loopback, so that no page elsewhere can reach it by a name that it has pointed here.
"""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib import resources

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cli.dashboard import logs
from cli.dashboard.collecting import Collector, dumps
from cli.dashboard.masking import Masker
from cli.errors import CommandError
from cli.mesh.data import DataDirectory
from cli.mesh.secrets import read_secrets

COOKIE = "gaggle_dashboard"
ASKING = "x-gaggle-dashboard"
"""A header that only a page of our own can send: what changes something must carry it."""

_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def make_app(data: DataDirectory, collector: Collector, token: str) -> ASGIApp:
    """The application; `token` is what its callers must bring."""

    async def state(_request: Request) -> Response:
        return _json(await collector.state())

    async def log(request: Request) -> Response:
        name = request.query_params.get("process", "")
        known = {path.stem: path for path in data.logs.glob("*.log")}
        if name not in known:
            return PlainTextResponse(f"There is no log of {name!r}.", HTTPStatus.NOT_FOUND)
        after = request.query_params.get("after", "")
        found = await asyncio.to_thread(
            logs.tail,
            known[name],
            after=int(after) if after.isdecimal() else None,
            level=request.query_params.get("level", ""),
            text=request.query_params.get("text", "")[:200],
        )
        masker = Masker(read_secrets(data))
        return _json({**found, "lines": masker.document(found["lines"])})

    async def level(request: Request) -> Response:
        if request.headers.get(ASKING) != "1":
            return PlainTextResponse("Only the dashboard's own page may ask for that.", HTTPStatus.FORBIDDEN)
        try:
            body = await request.json()
            previous = await collector.set_level(str(body["replica"]), str(body["level"]))
        except (ValueError, KeyError, TypeError):
            return PlainTextResponse('{"replica", "level"} is wanted.', HTTPStatus.BAD_REQUEST)
        except CommandError as error:
            return PlainTextResponse(str(error), HTTPStatus.BAD_REQUEST)
        return _json({"previous": previous})

    routes = [
        *(Route(path, _file(name, kind)) for path, (name, kind) in _FILES.items()),
        Route("/api/state", state),
        Route("/api/logs", log),
        Route("/api/log-level", level, methods=["POST"]),
    ]
    return _Door(Starlette(routes=routes), token)


class _Door:
    """Lets nobody in without the token, nor by another name than loopback's."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        request = Request(scope)
        await self._answer(request)(scope, receive, guarded)

    def _answer(self, request: Request) -> ASGIApp:
        host = request.headers.get("host", "")
        if host.rpartition(":")[0] not in _HOSTS and host not in _HOSTS:
            return PlainTextResponse("The dashboard answers to 127.0.0.1 alone.", HTTPStatus.MISDIRECTED_REQUEST)
        if self._is(request.query_params.get("token", "")):
            answer = RedirectResponse(request.url.path, HTTPStatus.SEE_OTHER)
            answer.set_cookie(COOKIE, self._token.decode(), httponly=True, samesite="strict")
            return answer
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._is(request.cookies.get(COOKIE, "")) or self._is(bearer):
            return self._app
        text = "Open the address that `gaggle dashboard` printed: it has the token."
        return PlainTextResponse(text, HTTPStatus.UNAUTHORIZED)

    def _is(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token)


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (resources.files("cli.dashboard") / "page" / name).read_bytes()

    async def serve(_request: Request) -> Response:
        return Response(content, media_type=kind)

    return serve


def _json(document: object) -> Response:
    return Response(dumps(document), media_type="application/json")
