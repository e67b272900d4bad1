"""Signing keys of the local mesh: Ed25519, one for the issuer of people's tokens and one for each service.

A service signs tokens that say "service X, on behalf of user Y" with its own key, so that a leaked key speaks for one
service only. Key ids: `issuer`, and the service's name. The issuer's key goes to the auth service alone.
"""

import json
import secrets
import time
import warnings
from collections.abc import Iterable
from typing import Any

from joserfc import jwt
from joserfc.errors import SecurityWarning
from joserfc.jwk import OKPKey

from cli.errors import CommandError, NotRunning
from cli.mesh.data import DataDirectory, write_private

ISSUER_KEY_ID = "issuer"
ISSUER = "gaggle"
AUDIENCE = "gaggle"
LONGEST_TOKEN_SECONDS = 30 * 24 * 3600
LONGEST_USER_BYTES = 128


def ensure_keys(data: DataDirectory, services: Iterable[str]) -> dict[str, OKPKey]:
    """The keys by key id, made where missing; the public half of every key there is written to keys/jwks.json."""
    for key_id in (ISSUER_KEY_ID, *services):
        path = data.keys / f"{key_id}.jwk"
        if not path.exists():
            key = OKPKey.generate_key("Ed25519", {"kid": key_id, "use": "sig"}, private=True)
            write_private(path, json.dumps(key.as_dict(private=True)))
    keys = {path.stem: _load(data, path.stem) for path in sorted(data.keys.glob("*.jwk"))}
    write_private(data.keys / "jwks.json", jwks(keys))
    return keys


def jwks(keys: dict[str, OKPKey]) -> str:
    """The public halves as a JSON Web Key Set."""
    return json.dumps({"keys": [key.as_dict(private=False) for key in keys.values()]})


def private_jwk(key: OKPKey) -> str:
    """The whole key as a JSON Web Key, for a secret store."""
    return json.dumps(key.as_dict(private=True))


def sign_token(data: DataDirectory, user: str, *, roles: Iterable[str] = (), ttl_seconds: int = 3600) -> str:
    """A bearer token of the local issuer for `user`, a JWT signed with EdDSA.

    Args:
        data: the mesh whose services shall take it.
        user: the subject, 1 to 128 bytes.
        roles: for example `admin`.
        ttl_seconds: how long it is valid, at most 30 days.

    Raises:
        NotRunning: no mesh has made its keys here yet.
        CommandError: the user or the time is out of bounds.
    """
    if not 1 <= len(user.encode()) <= LONGEST_USER_BYTES:
        raise CommandError(f"A user's name takes 1 to {LONGEST_USER_BYTES} bytes.")
    if not 1 <= ttl_seconds <= LONGEST_TOKEN_SECONDS:
        raise CommandError(f"A token is valid for 1 second to {LONGEST_TOKEN_SECONDS // 86400} days.")
    key = _load(data, ISSUER_KEY_ID)
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": user,
        "roles": sorted(set(roles)),
        "iat": now,
        "exp": now + ttl_seconds,
        "jti": secrets.token_urlsafe(12),
    }
    with warnings.catch_warnings():
        # RFC 9864 renames EdDSA over Ed25519 to "Ed25519"; the older name is the one that every verifier outside knows.
        warnings.simplefilter("ignore", SecurityWarning)
        return jwt.encode({"alg": "EdDSA", "kid": ISSUER_KEY_ID}, claims, key, algorithms=["EdDSA"])


def _load(data: DataDirectory, key_id: str) -> OKPKey:
    try:
        return OKPKey.import_key(json.loads((data.keys / f"{key_id}.jwk").read_text()))
    except FileNotFoundError:
        raise NotRunning(f"{data.path} holds no keys yet: `gaggle up` makes them.") from None
    except ValueError as error:
        raise CommandError(f"The key {key_id} in {data.keys} cannot be read: {error}") from error
