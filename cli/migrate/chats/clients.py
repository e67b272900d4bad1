"""The conversation service in the name of each user whose conversations are moved."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from cli.conversations.client import Client, Target, connect
from gaggle.auth.v1 import auth_service_pb2 as auth_pb
from gaggle.auth.v1.auth_service_pb2_grpc import AuthServiceStub

_TOKEN_SECONDS = 3600
_MARGIN_SECONDS = 600


@dataclass
class _Issued:
    token: str
    until: float


class LocalClients:
    """Users' tokens are signed with the local mesh's key."""

    def __init__(self, client: Client, **where: Any) -> None:
        """`where`: how `Target.find` finds the service."""
        self._client = client
        self._where = where
        self._clients: dict[str, Client] = {}

    async def of(self, user: str) -> Client:
        """For one user. Raises CommandError."""
        if user not in self._clients:
            target = Target.find(user=user, **self._where)
            self._clients[user] = Client(target, self._client.channel, self._client.timeout_seconds)
        return self._clients[user]


class IssuedClients:
    """Users' tokens are issued by the auth service of a mesh elsewhere, for an admin."""

    def __init__(self, client: Client, auth: Client) -> None:
        """`auth` calls the auth service with the admin's token."""
        self._client = client
        self._auth = auth
        self._stub: Any = AuthServiceStub(auth.channel)
        self._issued: dict[str, _Issued] = {}

    async def of(self, user: str) -> Client:
        """For one user. Raises CommandError: the admin's token is refused, or nobody answers."""
        issued = self._issued.get(user)
        if issued is None or issued.until < time.monotonic():
            request = auth_pb.IssueTokenRequest(user_id=user)
            request.ttl.seconds = _TOKEN_SECONDS
            response = await self._auth.call(self._stub.IssueToken, request, auth_pb.IssueTokenResponse)
            issued = _Issued(response.token, time.monotonic() + _TOKEN_SECONDS - _MARGIN_SECONDS)
            self._issued[user] = issued
        target = replace(self._client.target, token=lambda: issued.token, user=user)
        return Client(target, self._client.channel, self._client.timeout_seconds)


@asynccontextmanager
async def clients(
    *, data: Any, address: str, app_id: str, auth_address: str, auth_app_id: str, token: str, timeout_seconds: float
) -> AsyncIterator[LocalClients | IssuedClients]:
    """The local mesh's, or with `address` and an admin's `token` another one's.

    Raises:
        NotRunning: there is no local mesh.
    """
    where = {"data": data, "address": address, "app_id": app_id}
    if not token:
        async with connect(Target.find(user="migration", **where), timeout_seconds=timeout_seconds) as client:
            yield LocalClients(client, **where)
        return
    conversation = Target.find(token=token, **where)
    auth = Target.find(token=token, data=data, address=auth_address, app_id=auth_app_id, service="auth")
    async with (
        connect(conversation, timeout_seconds=timeout_seconds) as client,
        connect(auth, timeout_seconds=timeout_seconds) as issuer,
    ):
        yield IssuedClients(client, issuer)
