"""The ledger of request ids, and the ids themselves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as api
from services.runtime import requests
from services.runtime.errors import InvalidArgumentError
from services.runtime.ids import new_id
from services.runtime.keys import user_part
from services.runtime.state import Item

_REQUEST = api.UpdateConversationRequest(conversation_id="c", request_id="r", title="a")


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        pytest.param("a", True, id="one letter"),
        pytest.param("A.b_c-9", True, id="all kinds"),
        pytest.param("x" * 64, True, id="the longest"),
        pytest.param("x" * 65, False, id="too long"),
        pytest.param("", False, id="empty"),
        pytest.param("a b", False, id="a blank"),
        pytest.param("a:b", False, id="the key's own colon"),
        pytest.param("a||b", False, id="the sidecar's separator"),
        pytest.param("a\n", False, id="a line's end"),
        pytest.param("é", False, id="a letter beyond ASCII"),
        pytest.param("٣", False, id="a digit beyond ASCII"),
    ],
)
def test_ids_of_callers(text: str, *, valid: bool) -> None:
    """A caller's own id is 1 to 64 of the letters, digits and signs that a key can hold."""
    assert requests.valid_id(text) is valid


def test_the_first_answer() -> None:
    """The row of a request gives its answer again to the same request, and lives at least 24 hours."""
    digest = requests.body_hash("/s/Update", _REQUEST)
    put = requests.new_row(requests.row_key("ann", "r"), digest, b"answer")
    assert put.create
    assert put.ttl_seconds >= 24 * 3600
    assert requests.first_answer(Item(put.value, "1"), digest) == b"answer"
    assert requests.first_answer(None, digest) is None


def test_an_empty_answer_is_an_answer() -> None:
    """A first answer of no bytes is not taken for none."""
    put = requests.new_row("k", b"h", b"")
    assert requests.first_answer(Item(put.value, "1"), b"h") == b""


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        pytest.param("/s/Delete", _REQUEST, id="another method"),
        pytest.param(
            "/s/Update",
            api.UpdateConversationRequest(conversation_id="c", request_id="r", title="b"),
            id="another text",
        ),
        pytest.param(
            "/s/Update", api.UpdateConversationRequest(conversation_id="c", request_id="r"), id="a field not set"
        ),
        pytest.param(
            "/s/Update",
            api.UpdateConversationRequest(conversation_id="c", request_id="r", title="a", etag="1"),
            id="a field more",
        ),
    ],
)
def test_a_request_id_used_again(method: str, request_: api.UpdateConversationRequest) -> None:
    """The same request_id with anything else in the request is refused as reused."""
    put = requests.new_row("k", requests.body_hash("/s/Update", _REQUEST), b"answer")
    with pytest.raises(InvalidArgumentError) as caught:
        requests.first_answer(Item(put.value, "1"), requests.body_hash(method, request_))
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED
    assert list(caught.value.violations) == ["request_id"]


@given(entries=st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=6), data=st.data())
def test_the_same_request_hashes_the_same(entries: dict[str, str], data: st.DataObject) -> None:
    """A map's order does not make another request of it."""
    shuffled = dict(data.draw(st.permutations(list(entries.items()))))
    one = api.CreateConversationRequest(request_id="r", metadata=entries)
    other = api.CreateConversationRequest(request_id="r", metadata=shuffled)
    assert requests.body_hash("m", one) == requests.body_hash("m", other)


@given(users=st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=2, unique=True))
def test_users_share_no_key(users: list[str]) -> None:
    """No two users have a key in common, and no user's id can end its part of a key."""
    one, other = (requests.row_key(user, "r") for user in users)
    assert one != other
    for user in users:
        assert not set(user_part(user)) & set(":| /")


def test_new_ids() -> None:
    """Our own ids are UUIDv7 in lower case: unique, in order, and valid as a caller's."""
    made = [new_id() for _ in range(1000)]
    assert made == sorted(made)
    assert len(set(made)) == 1000
    for one in made:
        assert (len(one), one[14], one) == (36, "7", one.lower())
        assert requests.valid_id(one)
