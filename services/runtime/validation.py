"""Collects what is wrong with a request before anything is read for it."""

from services.runtime.errors import InvalidArgumentError
from services.runtime.requests import valid_id

ID_RULE = "must match [A-Za-z0-9._-]{1,64}"


class Violations:
    """Collects what is wrong with a request, field by field."""

    def __init__(self) -> None:
        """Begin with none."""
        self.found: dict[str, str] = {}

    def check(self, *, ok: bool, field: str, what: str) -> None:
        """Note a violation unless `ok`."""
        if not ok:
            self.found.setdefault(field, what)

    def id(self, field: str, value: str, *, required: bool) -> None:
        """Check an id of the caller's own."""
        if not value:
            self.check(ok=not required, field=field, what="must be set")
        else:
            self.check(ok=valid_id(value), field=field, what=ID_RULE)

    def raise_if_any(self) -> None:
        """Raise InvalidArgumentError with all that was found."""
        if self.found:
            raise InvalidArgumentError(self.found)
