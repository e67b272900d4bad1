"""Session tokens of better-auth, as every service takes them: asked about, believed for a while, then asked again."""

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf import wrappers_pb2

from gaggle.common.v1 import error_reason_pb2
from services.runtime import identity
from services.runtime.call import set_deadline
from services.runtime.errors import TooManyRequestsError, UnauthenticatedError, UnavailableError
from services.runtime.identity import SESSION_ISSUER, Session, Verifier, no_session
from tests.runtime.serving import SERVICE, Keys, Served, bearer, refusal, refused, serving

TOKEN = "abcdefghijklmnopqrstuvwxyz012345"
SIGNED = f"{TOKEN}.c2lnbmF0dXJlc2lnbmF0dXJlc2ln%3D"


class Keeper:
    """Whoever keeps the sessions: knows one user, counts how often it is asked, and may be told to wait or fail."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fresh_seconds = 60.0
        self.user_id = "ann"
        self.expires_at = time.time() + 3600
        self.fails: Exception | None = None
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def __call__(self, token: str) -> Session:
        self.asked.append(token)
        await self.goes_on.wait()
        if self.fails is not None:
            raise self.fails
        return Session(self.user_id, frozenset(), time.time() - 60, self.expires_at, self.fresh_seconds)


@pytest.fixture
def keeper() -> Keeper:
    """One that knows the test's session."""
    return Keeper()


@pytest.fixture
def verifier(keeper: Keeper) -> Verifier:
    """A verifier that asks it."""
    made = Verifier("gaggle", ("gaggle", Keys().jwks), session_cookie="better-auth.session_token")
    made.sessions = keeper
    return made


@pytest.mark.parametrize("token", [TOKEN, SIGNED], ids=["bare", "signed"])
async def test_a_session_is_its_user(verifier: Verifier, keeper: Keeper, token: str) -> None:
    """A session stands for its user, without role or service, and is passed on as it came."""
    caller = await verifier.verify(f"Bearer {token}")
    assert (caller.user_id, caller.issuer, caller.service, caller.is_admin) == ("ann", SESSION_ISSUER, "", False)
    assert caller.token == token
    assert verifier.known(f"Bearer {token}") is caller
    assert keeper.asked == [token]


async def test_a_session_is_believed_for_a_while(
    verifier: Verifier, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked about again when its time is over, by a clock that nobody sets; a revoked one is refused then."""
    header = f"Bearer {TOKEN}"
    await verifier.verify(header)
    began = identity.since_boot()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert verifier.known(header) is not None
    monkeypatch.setattr(identity, "since_boot", lambda: began + 59)
    assert verifier.known(header) is not None
    monkeypatch.setattr(identity, "since_boot", lambda: began + 61)
    assert verifier.known(header) is None
    keeper.fails = no_session()
    with pytest.raises(UnauthenticatedError):
        await verifier.verify(header)
    assert len(keeper.asked) == 2


async def test_an_expired_session_is_refused(verifier: Verifier, keeper: Keeper) -> None:
    """A session is over when it says so, whoever still believes in it."""
    keeper.expires_at = time.time() - 1
    with pytest.raises(UnauthenticatedError) as caught:
        await verifier.verify(f"Bearer {TOKEN}")
    assert caught.value.reason == error_reason_pb2.ERROR_REASON_EXPIRED_TOKEN


@pytest.mark.parametrize("user_id", ["", "ü" * 65, "a\0b"], ids=["none", "too long", "U+0000"])
async def test_a_user_that_no_key_can_hold(verifier: Verifier, keeper: Keeper, user_id: str) -> None:
    """A user id that state can't have in its keys is nobody's here."""
    keeper.user_id = user_id
    with pytest.raises(UnauthenticatedError):
        await verifier.verify(f"Bearer {TOKEN}")


@pytest.mark.parametrize(
    "token",
    ["short", "x" * 129, f"{TOKEN}.", f"{TOKEN}.a.b", f"{TOKEN}.{'x' * 129}", "a b" * 10, "ä" * 32, f"{TOKEN}\n"],
)
async def test_only_what_may_be_a_session_is_asked_about(verifier: Verifier, keeper: Keeper, token: str) -> None:
    """Rubbish is refused without troubling anyone."""
    with pytest.raises(UnauthenticatedError):
        await verifier.verify(f"Bearer {token}")
    assert not keeper.asked


async def test_without_anyone_to_ask() -> None:
    """Where no sessions are taken, their tokens are refused like any other text."""
    with pytest.raises(UnauthenticatedError):
        await Verifier("gaggle", ("gaggle", Keys().jwks)).verify(f"Bearer {TOKEN}")


async def test_many_calls_ask_once(verifier: Verifier, keeper: Keeper) -> None:
    """Callers of one session share the question; one that leaves, or has less time, changes nothing for the others."""
    keeper.goes_on.clear()

    async def hasty() -> None:
        set_deadline(0.01)
        await verifier.verify(f"Bearer {TOKEN}")

    in_haste = asyncio.create_task(hasty())
    with pytest.raises(TimeoutError):
        await in_haste
    waiting = [asyncio.create_task(verifier.verify(f"Bearer {TOKEN}")) for _ in range(20)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    keeper.goes_on.set()
    assert {one.user_id for one in await asyncio.gather(*waiting[1:])} == {"ann"}
    assert keeper.asked == [TOKEN]


async def test_a_flood_of_tokens(verifier: Verifier, keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up tokens take up so many questions at once and no more, and leave nothing behind."""
    monkeypatch.setattr(identity, "_SESSIONS_ASKED", 3)
    keeper.goes_on.clear()
    flood = [asyncio.create_task(verifier.verify(f"Bearer {n:032}")) for n in range(10)]
    done, _ = await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
    assert all(isinstance(one.exception(), TooManyRequestsError) for one in done)
    keeper.fails = no_session()
    keeper.goes_on.set()
    await asyncio.wait(flood)
    assert len(keeper.asked) == 3
    assert not verifier._asking
    keeper.fails = None
    assert (await verifier.verify(f"Bearer {TOKEN}")).user_id == "ann"


async def test_a_refusal_is_remembered_for_a_moment(
    verifier: Verifier, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that goes on with a session that is over asks once a second, however often it calls."""
    keeper.fails = no_session()
    for _ in range(5):
        with pytest.raises(UnauthenticatedError):
            await verifier.verify(f"Bearer {TOKEN}")
    assert len(keeper.asked) == 1
    later = identity.since_boot() + 1.1
    monkeypatch.setattr(identity, "since_boot", lambda: later)
    keeper.fails = None
    assert (await verifier.verify(f"Bearer {TOKEN}")).user_id == "ann"


async def test_while_nobody_can_be_asked(verifier: Verifier, keeper: Keeper) -> None:
    """A session that can't be looked up is not called a bad one, and is looked up at the next call."""
    keeper.fails = UnavailableError("auth")
    for asked in (1, 2):
        with pytest.raises(UnavailableError):
            await verifier.verify(f"Bearer {TOKEN}")
        assert len(keeper.asked) == asked


@pytest.mark.parametrize(
    ("cookie", "authorization"),
    [
        pytest.param(f"better-auth.session_token={SIGNED}", f"Bearer {SIGNED}", id="alone"),
        pytest.param(
            f"a=b; __Secure-better-auth.session_token={SIGNED};c", f"Bearer {SIGNED}", id="over https, among others"
        ),
        pytest.param("better-auth.session_data=x; session_token=y", None, id="others"),
        pytest.param("better-auth.session_token=", None, id="an empty one"),
        pytest.param("", None, id="none"),
        pytest.param(None, None, id="no header"),
    ],
)
def test_cookies(verifier: Verifier, cookie: str | None, authorization: str | None) -> None:
    """A browser's cookie stands for the header, under either of the names that better-auth gives it."""
    assert verifier.from_cookie(cookie) == authorization


@pytest.fixture
async def served(keeper: Keeper) -> AsyncIterator[Served]:
    """A service whose callers may come with sessions."""
    async with serving() as running:
        running.pipeline._verifier.sessions = keeper
        yield running


async def test_a_call_with_a_session(served: Served, keeper: Keeper) -> None:
    """Header or cookie, in one piece or several: the call is the session's user's; a header goes before a cookie."""
    for metadata in (
        bearer(TOKEN),
        (("cookie", f"better-auth.session_token={SIGNED}"),),
        (("cookie", "a=b"), ("cookie", f"better-auth.session_token={SIGNED}")),
    ):
        assert await served.say("Unary", "caller", metadata) == '["ann", "", []]'
    keeper.user_id = "bob"
    both = (*served.user(), ("cookie", f"better-auth.session_token={TOKEN}x"))
    assert await served.say("Unary", "caller", both) == '["ann", "", []]'


async def test_a_session_opens_nothing_more(served: Served) -> None:
    """Neither an admin's methods nor those of services."""
    for method in ("Admin", "ForAgent"):
        assert (await refused(served.say(method, "x", bearer(TOKEN)))).code == grpc.StatusCode.PERMISSION_DENIED


async def test_a_stream_ends_with_its_session(served: Served, keeper: Keeper) -> None:
    """A stream that was open when its user signed out brings nothing more."""
    keeper.fresh_seconds = 0.0
    text = wrappers_pb2.StringValue(value="x").SerializeToString()
    call = served.channel.stream_stream(f"/{SERVICE}/Both")(metadata=bearer(TOKEN), timeout=10)
    await call.write(text)
    assert await call.read() == text
    keeper.fails = no_session()
    await call.write(text)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert (caught.value.code(), refusal(caught.value).reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_TOKEN")
