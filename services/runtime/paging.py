"""Page sizes and page tokens."""

import base64
import hashlib
import json
from collections.abc import Mapping

from gaggle.common.v1 import error_reason_pb2
from services.runtime.errors import InvalidArgumentError

_DIGEST_BYTES = 9
Cursor = dict[str, int | str]


def page_size(asked: int, *, default: int, most: int) -> int:
    """Give the size to use: the default for 0, never more than `most`. Raises InvalidArgumentError below 0."""
    if asked < 0:
        raise InvalidArgumentError({"page_size": "must not be negative"})
    return min(asked or default, most)


def encode(cursor: Mapping[str, int | str], *scope: str) -> str:
    """Write a token for going on at `cursor`; it is good only with the same `scope`: method, user, filters."""
    body = json.dumps(cursor, sort_keys=True, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_digest(body, scope) + body).decode().rstrip("=")


def decode(token: str, *scope: str) -> Cursor:
    """Read a token; an empty one gives an empty cursor.

    Raises InvalidArgumentError, INVALID_PAGE_TOKEN. The digest keeps accidents and mix-ups apart; it is no secret, and
    need not be: a cursor names nothing that the caller may not see anyway.
    """
    if not token:
        return {}
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        digest, body = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        cursor = json.loads(body) if digest == _digest(body, scope) else None
    except (ValueError, RecursionError):
        cursor = None
    if not isinstance(cursor, dict) or not all(isinstance(one, int | str) for one in cursor.values()):
        raise InvalidArgumentError(
            {"page_token": "is damaged, or was given for another list; start again without one"},
            reason=error_reason_pb2.ERROR_REASON_INVALID_PAGE_TOKEN,
        )
    return cursor


def _digest(body: bytes, scope: tuple[str, ...]) -> bytes:
    digest = hashlib.blake2b(body, digest_size=_DIGEST_BYTES)
    for part in scope:
        digest.update(b"\0" + part.encode())
    return digest.digest()
