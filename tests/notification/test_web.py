"""The page that ends e-mail (RFC 8058), by the application itself."""

from collections.abc import AsyncIterator

import httpx
import pytest

from gaggle.notification.v1 import notification_service_pb2 as api
from services.notification.tokens import UnsubscribeTokens
from services.notification.web import UnsubscribePage
from services.runtime.errors import InvalidArgumentError, UnavailableError

_ONE_CLICK = {"List-Unsubscribe": "One-Click"}


class _Writer:
    """Reads tokens as the service's own does, and keeps who has had enough; or is away."""

    def __init__(self) -> None:
        self.tokens = UnsubscribeTokens()
        self.tokens.use("secret")
        self.ended: list[str] = []
        self.away = False

    async def unsubscribe(self, request: api.UnsubscribeRequest) -> None:
        if self.away:
            raise UnavailableError("state")
        user = self.tokens.read(request.token)
        if user is None:
            raise InvalidArgumentError({"token": "is none"})
        self.ended.append(user)


@pytest.fixture
def writer() -> _Writer:
    """In place of the service's own."""
    return _Writer()


@pytest.fixture
async def web(writer: _Writer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the page."""
    page = UnsubscribePage(writer, "127.0.0.1", 0)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app=page.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
        yield client


async def test_one_click(web: httpx.AsyncClient, writer: _Writer) -> None:
    """The POST of a mail program ends e-mail, in either of the two forms that the RFC names; twice is once."""
    address = f"/unsubscribe?token={writer.tokens.make('ann')}"
    encoded = await web.post(address, data=_ONE_CLICK)
    assert (encoded.status_code, encoded.text) == (200, "You get no more e-mail.\n")
    parts = await web.post(address, files={"List-Unsubscribe": (None, "One-Click")})
    assert parts.status_code == 200
    assert writer.ended == ["ann", "ann"]
    assert encoded.headers["cache-control"] == "no-store"
    assert "set-cookie" not in encoded.headers


async def test_a_get_changes_nothing(web: httpx.AsyncClient, writer: _Writer) -> None:
    """A scanner that follows the link sees a page with a button, and nothing has happened."""
    shown = await web.get(f"/unsubscribe?token={writer.tokens.make('ann')}")
    assert shown.status_code == 200
    assert '<form method="post">' in shown.text
    assert 'name="List-Unsubscribe" value="One-Click"' in shown.text
    assert writer.ended == []


async def test_what_is_refused(web: httpx.AsyncClient, writer: _Writer) -> None:
    """No token, a forged one, another body, too long a body: refused, and nothing has happened."""
    token = writer.tokens.make("ann")
    good = f"/unsubscribe?token={token}"
    assert (await web.post("/unsubscribe", data=_ONE_CLICK)).status_code == 400
    assert (await web.post(f"/unsubscribe?token={token[:-4]}AAAA", data=_ONE_CLICK)).status_code == 400
    assert (await web.post("/unsubscribe?token=%FF%00", data=_ONE_CLICK)).status_code == 400
    assert (await web.post(good)).status_code == 400
    assert (await web.post(good, data={"List-Unsubscribe": "Two-Clicks"})).status_code == 400
    assert (await web.post(good, json=_ONE_CLICK)).status_code == 400
    assert (await web.post(good, data={**_ONE_CLICK, "more": "x" * 20_000})).status_code == 400
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert (await web.post(good, content=b"--y\r\nnonsense", headers=broken)).status_code == 400
    assert (await web.put(good)).status_code == 405
    assert (await web.get("/elsewhere")).status_code == 404
    assert writer.ended == []


async def test_while_the_store_is_away(web: httpx.AsyncClient, writer: _Writer) -> None:
    """What can't be done now is told as such, so that a mail program tries again."""
    writer.away = True
    answer = await web.post(f"/unsubscribe?token={writer.tokens.make('ann')}", data=_ONE_CLICK)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
