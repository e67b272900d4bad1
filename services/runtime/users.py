"""Which users a service has: 256 documents that sweep, reconciliation, rebuild and erasure walk.

A user is entered in the transaction of the first thing kept for them, and stays.
"""

import zlib
from collections.abc import AsyncIterator

from gaggle.runtime.state.v1 import document_pb2
from services.runtime.state import Put, StateStore

USER_BUCKETS = 256


def users_key(bucket: int) -> str:
    """Key of one of the documents."""
    return f"users:{bucket}"


def user_bucket(user_id: str) -> int:
    """Tell which document a user is entered in."""
    return zlib.crc32(user_id.encode()) % USER_BUCKETS


class Users:
    """Reads the documents, and plans the writes that enter a user."""

    def __init__(self, state: StateStore) -> None:
        """`state` is the service's store."""
        self._state = state

    async def entering(self, user_id: str) -> list[Put]:
        """Plan to enter a user; nothing if that has been done."""
        key = users_key(user_bucket(user_id))
        item = await self._state.get(key)
        document = document_pb2.UserBucket.FromString(item.value) if item else document_pb2.UserBucket()
        if user_id in document.user_ids:
            return []
        document.user_ids.append(user_id)
        return [Put(key, document.SerializeToString(), etag=item.etag if item else "", create=item is None)]

    async def of(self, bucket: int) -> list[str]:
        """Give the users of one document."""
        item = await self._state.get(users_key(bucket))
        return list(document_pb2.UserBucket.FromString(item.value).user_ids) if item else []

    async def all(self) -> AsyncIterator[str]:
        """Walk all users there are."""
        for bucket in range(USER_BUCKETS):
            for user_id in await self.of(bucket):
                yield user_id
