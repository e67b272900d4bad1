"""The page that ends e-mail, for the one click of RFC 8058: `POST /unsubscribe?token=...`.

It speaks HTTP; what is in front of it ends TLS, as the header List-Unsubscribe promises https. A GET changes nothing,
for mail scanners follow links: it shows a page with the button.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from gaggle.notification.v1 import notification_service_pb2 as api
from services.notification.writing import Writer
from services.runtime.errors import GaggleError, InvalidArgumentError
from services.runtime.service import StartError

_MOST_BODY_BYTES = 16 * 1024
_RETRY_SECONDS = 30
_SAFE = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>E-mail</title></head>
<body><form method="post"><p>Get no more e-mail of this kind?</p>
<input type="hidden" name="List-Unsubscribe" value="One-Click"><button>Unsubscribe</button></form></body></html>
"""


class UnsubscribePage:
    """Serves the page on a port of its own; replicas on one machine may share the port."""

    def __init__(self, writer: Writer, host: str, port: int) -> None:
        """`port` 0: nothing is served."""
        self._writer = writer
        self._host, self._port = host, port
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Raises StartError."""
        if not self._port:
            return
        try:
            listening = socket.create_server((self._host, self._port), reuse_port=True)
        except OSError as error:
            raise StartError(f"cannot listen on {self._host}:{self._port}: {error.strerror}") from error
        config = uvicorn.Config(self.app(), lifespan="off", access_log=False, log_config=None, server_header=False)
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))

    async def stop(self) -> None:
        """Answer what was asked, and close."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.gather(self._serving, return_exceptions=True)

    def app(self) -> Starlette:
        """Give what is served."""
        return Starlette(routes=[Route("/unsubscribe", self._unsubscribe, methods=["GET", "POST"])])

    async def _unsubscribe(self, request: Request) -> Response:
        if request.method != "POST":
            return HTMLResponse(_PAGE, headers=_SAFE)
        if not await _one_click(request):
            return PlainTextResponse("Say List-Unsubscribe=One-Click.\n", 400, headers=_SAFE)
        try:
            await self._writer.unsubscribe(api.UnsubscribeRequest(token=request.query_params.get("token", "")))
        except InvalidArgumentError:
            return PlainTextResponse("This link is not valid.\n", 400, headers=_SAFE)
        except GaggleError:
            headers = {**_SAFE, "Retry-After": str(_RETRY_SECONDS)}
            return PlainTextResponse("Not now; try again in a minute.\n", 503, headers=headers)
        return PlainTextResponse("You get no more e-mail.\n", headers=_SAFE)


async def _one_click(request: Request) -> bool:
    """Tell whether the body is the one that RFC 8058 names, in either of its two forms."""
    size = request.headers.get("content-length", "")
    if not size.isdecimal() or int(size) > _MOST_BODY_BYTES:
        return False
    try:
        async with request.form(max_files=0, max_fields=8, max_part_size=_MOST_BODY_BYTES) as form:
            return form.get("List-Unsubscribe") == "One-Click"
    except HTTPException:
        return False


class _Server(uvicorn.Server):
    """Leaves the process's signals to the service."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield
