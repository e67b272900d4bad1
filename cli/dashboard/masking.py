"""Secrets do not leave the machine's files: what the page shows is searched for them, by name and by value."""

import re
from collections.abc import Iterable
from typing import Any

from cli.mesh.secrets import Secret

MASK = "••••••"

_SECRET_NAME = re.compile(
    r"(password|passwd|secret|token|credential|private|apikey|api[_-]?key|accesskey|connectionstring|(^|[_-])key$)",
    re.IGNORECASE,
)
# Told to everybody anyway, or no secret by itself.
_PUBLIC = frozenset({"token-jwks", "redis-host"})
_PUBLIC_MEMBERS = frozenset(
    {"KAFKA_BROKERS", "KAFKA_USERNAME", "KAFKA_SASL_MECHANISM", "KAFKA_CA_CERT", "SMTP_HOST", "SMTP_PORT", "host"}
)
# A shorter value would be found in words that are none.
_SHORTEST = 6


class Masker:
    """Hides the values of known secrets wherever they are, and whatever stands under a name that says so."""

    def __init__(self, secrets: dict[str, Secret]) -> None:
        """`secrets` as of secrets.json."""
        values = {value for value in _values(secrets) if len(value) >= _SHORTEST}
        # The longest first: one may be part of another.
        ordered = sorted(values, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def text(self, text: str) -> str:
        """The text without secrets."""
        return self._pattern.sub(MASK, text) if self._pattern else text

    def document(self, document: Any) -> Any:
        """A document of YAML or JSON without secrets; references to secrets stay, since they are names."""
        match document:
            case dict():
                named = str(document.get("name", ""))
                return {
                    name: MASK
                    if isinstance(value, str) and value and _hides(name, named)
                    else value
                    if name == "secretKeyRef"
                    else self.document(value)
                    for name, value in document.items()
                }
            case list():
                return [self.document(one) for one in document]
            case str():
                return self.text(document)
            case _:
                return document


def _hides(name: str, item: str) -> bool:
    """A member of that name, or the value of an item that is called so, as in a component's metadata."""
    return bool(_SECRET_NAME.search(item if name == "value" else name)) and name not in {"name", "secretStore"}


def _values(secrets: dict[str, Secret]) -> Iterable[str]:
    for name, secret in secrets.items():
        if name in _PUBLIC:
            continue
        if isinstance(secret, str):
            yield secret
        else:
            yield from (value for member, value in secret.items() if member not in _PUBLIC_MEMBERS)
