"""`gaggle audit`: the log, and the read model made again."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.protobuf import json_format
from rich.console import Console

from cli.channels import open_channel
from cli.conversations.client import Target
from cli.conversations.errors import Failure, ServiceRefusedError, UnreachableError
from cli.mesh.data import DataDirectory
from cli.mesh.keys import sign_token
from cli.mesh_commands import DataOption
from gaggle.audit.v1 import audit_service_pb2 as pb
from gaggle.audit.v1.audit_service_pb2_grpc import AuditServiceStub

_CALL_SECONDS = 30.0
_PAGE_EVENTS = 500

app = typer.Typer(help="The log of everything that happened.", no_args_is_help=True)


@app.command(epilog="Examples: gaggle audit rebuild; gaggle audit rebuild --user ada")
def rebuild(
    user: Annotated[str, typer.Option("--user", "-u", help="Only this user's rows. Default: everyone's.")] = "",
    data: DataOption = None,
) -> None:
    """Make the read model again from the owners' state; the log is left as it is. Needs no downtime."""
    console = Console(stderr=True)

    async def work(stub: Any, target: Target) -> None:
        last = pb.RebuildResponse()
        with console.status("Rebuilding") as status:
            async for last in stub.Rebuild(pb.RebuildRequest(user_id=user), metadata=target.metadata()):
                status.update(f"{last.users} users, {last.conversations} conversations, {last.messages} messages")
        console.print(
            f"Made again: {last.users} users, {last.conversations} conversations, {last.messages} messages, "
            f"{last.entities} recipes, executions, extensions and sessions "
            f"in {last.elapsed.ToMilliseconds() / 1000:.1f} s"
        )

    _run(data, "admin", work, roles=["admin"])


@app.command(
    epilog="Examples: gaggle audit events --user ada; gaggle audit events --entity 0199... | jq .event.eventType"
)
def events(
    user: Annotated[str, typer.Option("--user", "-u", help="Whose. Default: everyone's, as an admin.")] = "",
    entity: Annotated[str, typer.Option(metavar="ID", help="Only those of one conversation, task, ...")] = "",
    event_type: Annotated[list[str] | None, typer.Option("--type", help="Only these types.")] = None,
    last: Annotated[int, typer.Option(min=1, max=1000, help="How many of the newest.")] = 50,
    data: DataOption = None,
) -> None:
    """Print the newest entries of the log, oldest of them first, one JSON object a line."""
    chosen = pb.EventFilter(user_id=user, entity_id=entity, event_types=event_type or [])

    async def work(stub: Any, target: Target) -> None:
        request = pb.ListEventsRequest(filter=chosen, page_size=min(last, _PAGE_EVENTS), descending=True)
        entries: list[pb.LogEntry] = []
        async for entry in _pages(stub, request, target):
            entries.append(entry)
            if len(entries) == last:
                break
        for entry in reversed(entries):
            print(json_format.MessageToJson(entry, indent=None))  # noqa: T201 - this is the output

    _run(data, "admin", work, roles=["admin"])


async def _pages(stub: Any, request: pb.ListEventsRequest, target: Target) -> AsyncIterator[pb.LogEntry]:
    while True:
        page = await stub.ListEvents(request, timeout=_CALL_SECONDS, metadata=target.metadata())
        for entry in page.entries:
            yield entry
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _run(data: Path | None, user: str, work: Callable[[Any, Target], Any], *, roles: list[str]) -> None:
    token = sign_token(DataDirectory.at(data), user, roles=roles)
    target = Target.find(data=data, token=token, service="audit")

    async def call() -> None:
        async with open_channel(target.address, authority=target.authority) as channel:
            await work(AuditServiceStub(channel), target)

    try:
        asyncio.run(call())
    except grpc.aio.AioRpcError as error:
        failure = Failure.of(error)
        if failure.is_transient:
            raise UnreachableError(f"The audit service at {target.address} does not answer: {failure}") from None
        raise ServiceRefusedError(failure) from None
