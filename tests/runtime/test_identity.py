"""Tokens verified and made."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import httpx
import pytest
from joserfc.jwk import KeySet, OKPKey

from services.runtime import identity
from services.runtime.errors import UnauthenticatedError, UnavailableError
from services.runtime.identity import Caller, ServiceTokens, TokenSigner, Verifier
from tests.runtime.serving import Keys

_OUTSIDE = OKPKey.generate_key("Ed25519", {"kid": "o1"})
_OUTSIDE_SIGNER = TokenSigner(json.dumps(_OUTSIDE.as_dict(private=True)), issuer="https://out", audience="gaggle")


async def _outside() -> str:
    return json.dumps(KeySet([_OUTSIDE]).as_dict(private=False))


def _verifier(keys: Keys, outside: Callable[[], Awaitable[str]] = _outside) -> Verifier:
    return Verifier("gaggle", ("gaggle", keys.jwks), ("https://out", outside))  # type: ignore[arg-type]


async def test_an_outside_issuer_s_users() -> None:
    """Users of the outside issuer are believed, by any of its keys."""
    caller = await _verifier(Keys()).verify(f"Bearer {_OUTSIDE_SIGNER.sign('ann', ttl_seconds=60)}")
    assert (caller.user_id, caller.issuer, caller.service) == ("ann", "https://out", "")


@pytest.mark.parametrize("service", ["agent", "issuer", "o1"])
async def test_an_outside_issuer_names_no_service(service: str) -> None:
    """The outside issuer never speaks for a service of the mesh."""
    with pytest.raises(UnauthenticatedError):
        await _verifier(Keys()).verify(f"Bearer {_OUTSIDE_SIGNER.sign('ann', ttl_seconds=60, service=service)}")


async def test_issuers_do_not_sign_for_each_other() -> None:
    """A token that names one issuer and is signed by another's key is refused."""
    keys = Keys()
    for signer in (
        TokenSigner(json.dumps(_OUTSIDE.as_dict(private=True)), issuer="gaggle", audience="gaggle"),
        keys.signer(issuer="https://out"),
    ):
        with pytest.raises(UnauthenticatedError):
            await _verifier(keys).verify(f"Bearer {signer.sign('ann', ttl_seconds=60)}")


async def test_a_new_key_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that was added after the others were read is found, though not more often than twice a minute."""
    keys = Keys()
    fetches = 0

    async def source() -> str:
        nonlocal fetches
        fetches += 1
        return await keys.jwks()

    verifier = Verifier("gaggle", ("gaggle", source))
    await verifier.verify(f"Bearer {keys.signer().sign('ann', ttl_seconds=60)}")
    keys.keys["late"] = OKPKey.generate_key("Ed25519", {"kid": "late"})
    late = f"Bearer {keys.signer('late').sign('ann', ttl_seconds=60, service='late')}"
    for _ in range(5):
        with pytest.raises(UnauthenticatedError):
            await verifier.verify(late)
    assert fetches == 1
    later = time.monotonic() + 31
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert (await verifier.verify(late)).service == "late"
    assert fetches == 2


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(httpx.ConnectError("away"), id="the issuer is away"),
        pytest.param(ValueError("garbled"), id="the keys are garbled"),
        pytest.param(UnavailableError("secretstore"), id="the sidecar is away"),
    ],
)
async def test_keys_that_cannot_be_had(fault: Exception) -> None:
    """While keys can't be had a caller is not told that the token is bad: it may be good."""

    async def away() -> str:
        await asyncio.sleep(0)
        raise fault

    with pytest.raises(UnavailableError):
        await _verifier(Keys(), away).verify(f"Bearer {_OUTSIDE_SIGNER.sign('ann', ttl_seconds=60)}")


async def test_one_issuer_s_trouble_is_its_own() -> None:
    """An outside issuer that hangs keeps nobody of our own waiting, whatever key ids strangers name."""
    asked = asyncio.Event()

    async def hanging() -> str:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    keys = Keys()
    verifier = _verifier(keys, hanging)
    outsider = asyncio.ensure_future(verifier.verify(f"Bearer {_OUTSIDE_SIGNER.sign('ann', ttl_seconds=60)}"))
    await asked.wait()
    own = verifier.verify(f"Bearer {keys.signer().sign('ann', ttl_seconds=60)}")
    assert (await asyncio.wait_for(own, 2)).user_id == "ann"
    outsider.cancel()
    await asyncio.wait({outsider})


async def test_known_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that were verified are remembered up to a number, the oldest forgotten first."""
    monkeypatch.setattr(identity, "_CACHED_TOKENS", 3)
    keys = Keys()
    verifier = _verifier(keys)
    headers = [f"Bearer {keys.signer().sign(str(n), ttl_seconds=60)}" for n in range(5)]
    for header in headers:
        await verifier.verify(header)
    known = [verifier.known(header) for header in headers]
    assert [None if one is None else one.user_id for one in known] == [None, None, "2", "3", "4"]


async def test_a_service_s_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service's token names service and user, is used again while a minute is left, and lasts five at most."""
    keys = Keys()
    tokens = ServiceTokens("agent", keys.signer("agent"))
    token = tokens.issue("ann")
    caller: Caller = await _verifier(keys).verify(f"Bearer {token}")
    assert (caller.service, caller.user_id, caller.is_admin) == ("agent", "ann", False)
    assert caller.expires_at - caller.issued_at == 300
    assert tokens.issue("ann") == token
    assert tokens.issue("bob") != token
    later = time.time() + 250
    monkeypatch.setattr(time, "time", lambda: later)
    assert tokens.issue("ann") != token
