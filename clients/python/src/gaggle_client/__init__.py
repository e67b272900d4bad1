"""Conversations kept by Gaggle, from Python."""

from gaggle_client._connection import Gaggle, connect
from gaggle_client._session import GaggleSession

__all__ = ["Gaggle", "GaggleSession", "connect"]
