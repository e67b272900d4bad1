"""Tokens that end e-mail: a user's id and an HMAC of it (RFC 2104), for the header List-Unsubscribe."""

import base64
import hashlib
import hmac

_DIGEST_BYTES = 20


class UnsubscribeTokens:
    """Makes and reads them. They do not run out: an e-mail may be years old when its reader has had enough."""

    def __init__(self) -> None:
        """There is no key before `use`."""
        self._key = b""

    def use(self, secret: str) -> None:
        """Derive the key from a secret that every replica has."""
        self._key = hashlib.blake2b(secret.encode(), person=b"unsubscribe").digest()

    def make(self, user_id: str) -> str:
        """Make a user's token."""
        raw = self._digest(user_id.encode()) + user_id.encode()
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def read(self, token: str) -> str | None:
        """Give the user; None if it is no token of ours."""
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            user = raw[_DIGEST_BYTES:].decode()
        except ValueError:
            return None
        if not user or not hmac.compare_digest(raw[:_DIGEST_BYTES], self._digest(user.encode())):
            return None
        return user

    def _digest(self, user: bytes) -> bytes:
        return hmac.new(self._key, user, hashlib.sha256).digest()[:_DIGEST_BYTES]
