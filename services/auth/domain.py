"""What a token may say, and which parts of a key are public."""

from dataclasses import dataclass
from typing import Any

from gaggle.auth.v1 import auth_service_pb2 as api
from services.runtime.errors import InvalidArgumentError

MAX_TTL_SECONDS = 24 * 3600
MAX_USER_BYTES = 128
ROLES = frozenset({"admin"})

# RFC 7517 and 8037: what a verifier needs, and nothing that signs.
_PUBLIC = ("kty", "crv", "x", "y", "n", "e", "kid", "use", "alg")


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A token that may be issued."""

    user_id: str
    roles: list[str]
    ttl_seconds: int


def token_request(request: api.IssueTokenRequest, default_ttl_seconds: int) -> TokenRequest:
    """Check what was asked for. Raises InvalidArgumentError."""
    violations: dict[str, str] = {}
    if not 0 < len(request.user_id.encode()) <= MAX_USER_BYTES or "\0" in request.user_id:
        violations["user_id"] = f"must be 1 to {MAX_USER_BYTES} bytes, without U+0000"
    unknown = sorted(set(request.roles) - ROLES)
    if unknown:
        violations["roles"] = f"{', '.join(unknown)}: not known; there is {', '.join(sorted(ROLES))}"
    ttl_seconds = request.ttl.seconds if request.HasField("ttl") else default_ttl_seconds
    if not 1 <= ttl_seconds <= MAX_TTL_SECONDS or (ttl_seconds == MAX_TTL_SECONDS and request.ttl.nanos > 0):
        violations["ttl"] = "must be one second to 24 hours"
    if violations:
        raise InvalidArgumentError(violations)
    return TokenRequest(request.user_id, sorted(set(request.roles)), ttl_seconds)


def public_keys(keys: dict[str, Any]) -> dict[str, Any]:
    """Give a key set without anything secret, whatever the secret store holds."""
    return {"keys": [{name: key[name] for name in _PUBLIC if name in key} for key in keys.get("keys", [])]}
