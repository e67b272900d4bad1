"""Calls of the local mesh's audit service, as an admin."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf import json_format

from cli.channels import open_channel
from cli.conversations.client import Target
from cli.conversations.errors import Failure, ServiceRefusedError, UnreachableError
from cli.mesh.data import DataDirectory
from cli.mesh.keys import sign_token
from gaggle.audit.v1 import audit_service_pb2 as pb
from gaggle.audit.v1.audit_service_pb2_grpc import AuditServiceStub

_CALL_SECONDS = 30.0
_PAGE_EVENTS = 500
_ROLE = "admin"


class Log:
    """The log and its read model."""

    def __init__(self, stub: Any, target: Target) -> None:
        """Made by `connected`."""
        self._stub = stub
        self._target = target

    async def rebuild(self, user: str) -> AsyncIterator[pb.RebuildResponse]:
        """Make the read model again, of one user or of all; tells how far it is."""
        async for told in self._stub.Rebuild(pb.RebuildRequest(user_id=user), metadata=self._target.metadata()):
            yield told

    async def newest(self, last: int, *, user: str, entity: str, event_types: list[str]) -> list[str]:
        """Give the newest entries as JSON, the oldest of them first."""
        chosen = pb.EventFilter(user_id=user, entity_id=entity, event_types=event_types)
        request = pb.ListEventsRequest(filter=chosen, page_size=min(last, _PAGE_EVENTS), descending=True)
        entries: list[pb.LogEntry] = []
        while True:
            page = await self._stub.ListEvents(request, timeout=_CALL_SECONDS, metadata=self._target.metadata())
            entries += page.entries
            if len(entries) >= last or not page.next_page_token:
                return [json_format.MessageToJson(entry, indent=None) for entry in reversed(entries[:last])]
            request.page_token = page.next_page_token


@asynccontextmanager
async def connected(data: Path | None) -> AsyncIterator[Log]:
    """The log of the mesh that runs on `data`.

    Raises:
        NotRunning: no mesh runs there, or without the audit service.
        UnreachableError: it does not answer.
        ServiceRefusedError: it said no.
    """
    token = sign_token(DataDirectory.at(data), _ROLE, roles=[_ROLE])
    target = Target.find(data=data, token=token, service="audit")
    async with open_channel(target.address, authority=target.authority) as channel:
        try:
            yield Log(AuditServiceStub(channel), target)
        except grpc.aio.AioRpcError as error:
            failure = Failure.of(error)
            if failure.is_transient:
                raise UnreachableError(f"The audit service at {target.address} does not answer: {failure}") from None
            raise ServiceRefusedError(failure) from None
