"""Page sizes and page tokens."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaggle.common.v1 import error_reason_pb2
from services.runtime import paging
from services.runtime.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("asked", "given_"),
    [
        pytest.param(0, 50, id="default"),
        pytest.param(1, 1, id="one"),
        pytest.param(200, 200, id="the most"),
        pytest.param(201, 200, id="lowered"),
        pytest.param(2**31 - 1, 200, id="far too many"),
    ],
)
def test_page_size(asked: int, given_: int) -> None:
    """A page is as large as asked, the default for 0, and never above the most."""
    assert paging.page_size(asked, default=50, most=200) == given_


def test_a_negative_page_size() -> None:
    """A negative size is the caller's fault and names the field."""
    with pytest.raises(InvalidArgumentError) as caught:
        paging.page_size(-1, default=50, most=200)
    assert list(caught.value.violations) == ["page_size"]


@given(
    cursor=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=20), max_size=4),
    scope=st.lists(st.text(max_size=10), max_size=3),
)
def test_what_is_written_is_read(cursor: dict[str, int | str], scope: list[str]) -> None:
    """A token gives the cursor back with the scope that it was made for."""
    token = paging.encode(cursor, *scope)
    assert paging.decode(token, *scope) == cursor
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_no_token_is_the_beginning() -> None:
    """An empty token begins at the beginning."""
    assert paging.decode("", "List", "ann") == {}


_TOKEN = paging.encode({"after": 7, "id": "t1"}, "List", "ann", "open")
_DEEP = b"[" * 100_000


def _forged(body: bytes) -> str:
    digest = hashlib.blake2b(body, digest_size=9)
    for part in ("List", "ann", "open"):
        digest.update(b"\0" + part.encode())
    return base64.urlsafe_b64encode(digest.digest() + body).decode().rstrip("=")


@pytest.mark.parametrize(
    ("token", "scope"),
    [
        pytest.param(_TOKEN, ("List", "bob", "open"), id="another user's"),
        pytest.param(_TOKEN, ("ListOther", "ann", "open"), id="another method's"),
        pytest.param(_TOKEN, ("List", "ann", "done"), id="another filter's"),
        pytest.param(_TOKEN, ("List", "ann"), id="a filter less"),
        pytest.param(_TOKEN, ("Listann", "open"), id="parts run together"),
        pytest.param(_TOKEN[:-4], ("List", "ann", "open"), id="cut off"),
        pytest.param(_TOKEN + "AAAA", ("List", "ann", "open"), id="made longer"),
        pytest.param("B" + _TOKEN[1:], ("List", "ann", "open"), id="one letter changed"),
        pytest.param("A", ("List", "ann", "open"), id="too short for base64"),
        pytest.param("AAAA", ("List", "ann", "open"), id="too short for a digest"),
        pytest.param("%%%%", ("List", "ann", "open"), id="no base64"),
        pytest.param("ü" * 8, ("List", "ann", "open"), id="no ASCII"),
        pytest.param(_forged(b"[1]"), ("List", "ann", "open"), id="a list"),
        pytest.param(_forged(b"{"), ("List", "ann", "open"), id="no JSON"),
        pytest.param(_forged(b"\xff"), ("List", "ann", "open"), id="no text"),
        pytest.param(_forged(_DEEP), ("List", "ann", "open"), id="nested too deeply"),
        pytest.param(_forged(b'{"after": [1]}'), ("List", "ann", "open"), id="a value that no cursor has"),
    ],
)
def test_damaged_and_foreign_tokens(token: str, scope: tuple[str, ...]) -> None:
    """A token that is damaged, made up or another list's is the caller's fault, with a reason of its own."""
    with pytest.raises(InvalidArgumentError) as caught:
        paging.decode(token, *scope)
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_INVALID_PAGE_TOKEN
    assert list(caught.value.violations) == ["page_token"]


@given(token=st.text(min_size=1, max_size=60))
def test_any_text_is_refused(token: str) -> None:
    """No text that the service did not write is taken for a token, or makes it fail in another way."""
    with pytest.raises(InvalidArgumentError):
        paging.decode(token, "List", "ann")
