"""How a user's id goes into a state key."""

from functools import lru_cache
from urllib.parse import quote


@lru_cache(maxsize=10_000)
def user_part(user_id: str) -> str:
    """Percent-encode a user's id: what is not a letter, a digit or one of `_.-~` is escaped.

    So no id can hold the key's own `:` or Dapr's `||`, and no two ids give the same key.
    """
    return quote(user_id, safe="")
