"""Ids of our own making: lower-case UUIDv7, which sort by time."""

import uuid_utils


def new_id() -> str:
    """Make a new one."""
    return str(uuid_utils.uuid7())
