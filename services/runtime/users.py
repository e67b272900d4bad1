"""Which users a service has anything of.

A user is entered, in the transaction of the first entity, in one of 256 documents; sweeps, reconciliation and erasure
walk them.
"""

import zlib
from collections.abc import AsyncIterator

from gaggle.owner.v1 import owner_service_pb2 as owner_api
from gaggle.runtime.state.v1 import document_pb2
from services.runtime import paging
from services.runtime.state import Put, StateStore

USER_BUCKETS = 256
_USERS_PAGE = 1000


def user_bucket(user_id: str) -> int:
    """Which of the 256 documents names this user."""
    return zlib.crc32(user_id.encode()) % USER_BUCKETS


def users_key(bucket: int) -> str:
    """Key of a user document."""
    return f"users:{bucket}"


class Users:
    """Reads the documents of users, and plans the write that enters one."""

    def __init__(self, state: StateStore) -> None:
        """`state` is the service's store."""
        self._state = state

    async def entering(self, user_id: str) -> list[Put]:
        """Plan to enter a user; nothing to write if that has been done."""
        key = users_key(user_bucket(user_id))
        item = await self._state.get(key)
        document = document_pb2.UserBucket.FromString(item.value) if item else document_pb2.UserBucket()
        if user_id in document.user_ids:
            return []
        document.user_ids.append(user_id)
        return [Put(key, document.SerializeToString(), etag=item.etag if item else "", create=item is None)]

    async def bucket(self, number: int) -> list[str]:
        """Give the users of one of the 256 documents."""
        item = await self._state.get(users_key(number))
        return list(document_pb2.UserBucket.FromString(item.value).user_ids) if item else []

    async def all(self) -> AsyncIterator[str]:
        """Walk all users there are."""
        for number in range(USER_BUCKETS):
            for user_id in await self.bucket(number):
                yield user_id

    async def list(self, request: owner_api.ListUsersRequest) -> owner_api.ListUsersResponse:
        """Serve EntityOwnerService.ListUsers: the users of at least one document at a time."""
        size = paging.page_size(request.page_size, default=_USERS_PAGE, most=_USERS_PAGE)
        number = int(paging.decode(request.page_token, "ListUsers").get("k", 0))
        response = owner_api.ListUsersResponse()
        while number < USER_BUCKETS and len(response.user_ids) < size:
            response.user_ids.extend(await self.bucket(number))
            number += 1
        if number < USER_BUCKETS:
            response.next_page_token = paging.encode({"k": number}, "ListUsers")
        return response
