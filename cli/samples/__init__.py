"""Conversations that ship with the command line."""

from importlib.resources import files
from importlib.resources.abc import Traversable

OBSERVATORY = "observatory.jsonl"
"""A coordinator and her assistant bring an observatory's dome back to life: 440 messages, tool calls among them."""


def sample(name: str) -> Traversable:
    """The file of a sample, as OpenAI's messages, one a line."""
    return files(__name__) / name
