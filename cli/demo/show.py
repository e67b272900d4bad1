"""What `gaggle demo` does, step by step."""

import asyncio
import contextlib
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import typer
import uvloop
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from cli.conversations.client import Client, Target, connect
from cli.conversations.errors import Failure, ServiceRefusedError
from cli.conversations.importing import Plan, import_all, make_plan
from cli.conversations.progress import ImportProgress
from cli.conversations.rendering import harmless, hit_line
from cli.demo.measuring import Latencies, measure
from cli.errors import CommandError, NotRunning
from cli.mesh import control
from cli.mesh.data import PROJECT_ROOT, DataDirectory
from cli.mesh.description import MeshDescription
from cli.mesh.up import UpRequest, start_detached, wait_until_gone
from cli.samples import OBSERVATORY, sample
from cli.transcripts import Document, read
from gaggle.audit.v1 import audit_service_pb2 as audit_pb
from gaggle.audit.v1.audit_service_pb2_grpc import AuditServiceStub
from gaggle.conversation.v1 import conversation_service_pb2 as pb
from gaggle.conversation.v1.message_pb2 import ROLE_ASSISTANT, ROLE_USER, Message, TextContent

_T = TypeVar("_T")

_CALL_SECONDS = 30.0
_SOON_SECONDS = 20.0
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.02
_WINDOW = 50
_TRAIL_LINES = 12
_SAID = (
    (ROLE_USER, "Wren, a late question: what do I tell somebody who wants to start an observatory?"),
    (ROLE_ASSISTANT, "That the first instrument is a list, and the second a person who knows about rails."),
    (ROLE_USER, "And the third?"),
    (ROLE_ASSISTANT, "Soup."),
    (ROLE_USER, "You never tasted it."),
    (ROLE_ASSISTANT, "No, but I have read everybody's notes on it. They agree more than on any measurement."),
)


@dataclass
class Show:
    """One run of the demonstration."""

    data: Path | None
    user: str
    locomo: Path | None
    reads: int
    keep: bool
    port_base: int | None = None

    def run(self) -> None:
        """All of it.

        Raises:
            CommandError: the mesh did not start, or did not do what it promises.
        """
        self._console = Console(highlight=False)
        self._directory = DataDirectory.at(self.data)
        began = time.monotonic()
        started = self._start()
        try:
            uvloop.run(self._steps(paste=self.keep or not started))
        finally:
            if started and not self.keep:
                self._console.print("Stopping the mesh.")
                control.ask(self._mesh.control_socket, {"command": "down"})
                wait_until_gone(self._mesh.supervisor_pid, _STOP_SECONDS)
        self._console.print(f"\nAll of this took {time.monotonic() - began:.0f} s.")

    def _start(self) -> bool:
        """Whether the mesh had to be started."""
        self._step("The mesh")
        try:
            mesh = MeshDescription.load(self._directory.mesh_file)
            control.ask(mesh.control_socket, {"command": "status"})
        except NotRunning:
            began = time.monotonic()
            mesh = start_detached(UpRequest(data=self._directory, port_base=self.port_base), self._console)
            self._tell(f"PostgreSQL, Redis, Dapr and the services are up after {time.monotonic() - began:.1f} s.")
            started = True
        else:
            self._tell(f"It runs already, on {mesh.data}.")
            started = False
        table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
        for heading in ("  SERVICE", "APP ID", "GRPC", "SIDECAR'S GRPC"):
            table.add_column(heading)
        for name, service in sorted(mesh.services.items()):
            table.add_row(f"  {name}", service.app_id, service.address, service.sidecar_grpc)
        self._console.print(table)
        self._mesh = mesh
        return started

    async def _steps(self, *, paste: bool) -> None:
        others = [name for name in sorted(self._mesh.services) if name != "conversation"]
        if not {"conversation", "audit"} <= self._mesh.services.keys():
            raise CommandError("The demonstration needs the services conversation and audit: `gaggle up` starts them.")
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(connect(self._target(), timeout_seconds=_CALL_SECONDS))
            through = {
                name: await stack.enter_async_context(connect(self._target(via=name), timeout_seconds=_CALL_SECONDS))
                for name in others
            }
            target = self._target(service="audit")
            audit = await stack.enter_async_context(connect(target, timeout_seconds=_CALL_SECONDS))
            conversation_id = await self._import(client)
            appended = await self._watch(client, through[others[-1]], others[-1], conversation_id)
            table = await self._fetch(client, through, conversation_id)
            await self._fork(client, conversation_id)
            await self._search(client, conversation_id, appended)
            await self._trail(client, audit, conversation_id)
            last_sequence = (await client.get(conversation_id)).last_sequence
        self._step("Measured, one caller, in milliseconds")
        self._console.print(table)
        self._tell("One Python process made these calls one after the other; `make bench` measures properly.")
        if paste:
            self._paste(conversation_id, last_sequence, others[0])

    async def _import(self, client: Client) -> str:
        self._step("Import")
        documents = [Document(OBSERVATORY, sample(OBSERVATORY).read_bytes())]
        if self.locomo is not None:
            documents += [Document.load(file) for file in sorted(self.locomo.glob("*.json"))[:1]]
        plans: list[Plan] = []
        for document in documents:
            form, transcripts = read(document)
            file = Path(document.name).name
            plans += [
                make_plan(transcript, format_name=form.name, file=file, user=self.user) for transcript in transcripts
            ]
        began = time.perf_counter()
        with ImportProgress(self._console, plans) as progress:
            results = await import_all(client, plans, progress)
        seconds = time.perf_counter() - began
        for _, result in results:
            if isinstance(result, CommandError):
                raise result
        stored = sum(result.stored_now for _, result in results if not isinstance(result, CommandError))
        if stored:
            self._tell(f"{stored} messages in {seconds:.2f} s, each durable and with its events before it was counted.")
        else:
            self._tell("All of it was there from an earlier run, and is recognised by its content.")
        first = results[0][1]
        assert not isinstance(first, CommandError)
        return first.conversation_id

    async def _watch(self, client: Client, watcher: Client, name: str, conversation_id: str) -> Message:
        self._step(f"Append, while another client watches through the sidecar of {name}")
        last_sequence = (await client.get(conversation_id)).last_sequence
        seen: dict[int, tuple[float, Message]] = {}
        watching = asyncio.Event()

        async def watch() -> None:
            # From the last message that exists: when it arrives, the watch stands.
            async for message in watcher.watch(conversation_id, last_sequence):
                seen[message.sequence] = time.perf_counter(), message
                watching.set()

        task = asyncio.create_task(watch())
        try:
            await asyncio.wait_for(watching.wait(), _SOON_SECONDS)
            table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
            for heading in ("    #", "WHO", "WHAT THE WATCHER READ", "STORED", "SEEN"):
                table.add_column(heading, justify="right" if heading in {"    #", "STORED", "SEEN"} else "left")
            for role, text in _SAID:
                message = Message(role=role)
                message.content.add(text=TextContent(text=text))
                request = pb.AppendMessagesRequest(conversation_id=conversation_id, messages=[message])
                request.request_id = f"demo-{uuid.uuid4()}"
                began = time.perf_counter()
                response = await client.call(client.stub.AppendMessages, request, pb.AppendMessagesResponse)
                stored = time.perf_counter()
                sequence = response.last_sequence
                at, received = await self._soon(partial(_get, seen, sequence), f"the watcher sees {sequence}")
                table.add_row(
                    str(sequence),
                    "user" if role == ROLE_USER else "assistant",
                    Text(harmless(received.content[0].text.text), overflow="ellipsis", no_wrap=True),
                    f"{(stored - began) * 1000:.1f} ms",
                    f"{(at - began) * 1000:.1f} ms",
                )
            self._console.print(table)
            self._tell("Both times count from the call: until it was durable, and until the other client had it.")
        except TimeoutError:
            raise CommandError(f"The watcher saw nothing for {_SOON_SECONDS:.0f} s.") from None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return seen[max(seen)][1]

    async def _fetch(self, client: Client, through: dict[str, Client], conversation_id: str) -> Table:
        self._step(f"Fetch the last {_WINDOW} messages: straight, and through two sidecars")
        request = pb.ListMessagesRequest(conversation_id=conversation_id, page_size=_WINDOW)
        straight = await client.call(client.stub.ListMessages, request, pb.ListMessagesResponse)
        size = straight.ByteSize()
        self._tell(
            f"{len(straight.messages)} messages, {straight.messages[0].sequence} to {straight.messages[-1].sequence}, "
            f"{size:,} bytes."
        )
        known = pb.ListMessagesRequest(
            conversation_id=conversation_id, page_size=_WINDOW, min_sequence=straight.last_sequence
        )
        ways: list[tuple[str, Client, pb.ListMessagesRequest]] = [
            ("straight to the service, strong read", client, request),
            (f"the same, by a caller that knows message {straight.last_sequence}", client, known),
        ]
        for name, other in through.items():
            answer = await other.call(other.stub.ListMessages, request, pb.ListMessagesResponse)
            if answer.SerializeToString() != straight.SerializeToString():
                raise CommandError(f"The answer through the sidecar of {name} is another.")
            self._tell(f"Through the sidecars of {name} and conversation: the same {size:,} bytes.")
            ways.append((f"through the sidecars of {name} and conversation", other, request))
        table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
        for heading in (f"  {self.reads} READS OF {_WINDOW} MESSAGES", "MEDIAN", "P99", "A SECOND"):
            table.add_column(heading, justify="left" if heading.startswith(" ") else "right")
        with self._console.status("Measuring") if self._console.is_terminal else contextlib.nullcontext():
            for what, reader, asked in ways:
                _row(table, what, await measure(_call(reader, reader.stub.ListMessages, asked), self.reads))
            appends = max(self.reads // 4, 1)
            scratch = await self._scratch(client)
            _row(table, f"append one message, durable ({appends} times)", await measure(scratch, appends))
        return table

    async def _scratch(self, client: Client) -> Callable[[], Awaitable[object]]:
        """An append to a conversation made for measuring; the next run's takes its place."""
        conversation_id = f"demo-{uuid.uuid4()}"
        creation = pb.CreateConversationRequest(
            conversation_id=conversation_id, title="Appends that were measured", request_id=f"demo-{uuid.uuid4()}"
        )
        creation.retention.ttl.FromSeconds(3600)
        await client.call(client.stub.CreateConversation, creation, pb.CreateConversationResponse)

        def append() -> Awaitable[object]:
            request = pb.AppendMessagesRequest(conversation_id=conversation_id, request_id=f"demo-{uuid.uuid4()}")
            request.messages.add(role=ROLE_USER).content.add(text=TextContent(text="One of many."))
            return client.stub.AppendMessages(request, metadata=client.target.metadata(), timeout=_CALL_SECONDS)

        return append

    async def _fork(self, client: Client, conversation_id: str) -> None:
        self._step("Fork")
        source = await client.get(conversation_id)
        request = pb.ForkConversationRequest(
            conversation_id=conversation_id,
            sequence=source.last_sequence - 2,
            title="Another end",
            request_id=f"demo-{uuid.uuid4()}",
        )
        began = time.perf_counter()
        fork = await client.call(client.stub.ForkConversation, request, pb.ForkConversationResponse)
        milliseconds = (time.perf_counter() - began) * 1000
        append = pb.AppendMessagesRequest(conversation_id=fork.conversation_id, request_id=f"demo-{uuid.uuid4()}")
        append.messages.add(role=ROLE_USER).content.add(text=TextContent(text="Let us end this in another way."))
        await client.call(client.stub.AppendMessages, append, pb.AppendMessagesResponse)
        after = await client.get(fork.conversation_id)
        unchanged = await client.get(conversation_id)
        self._tell(
            f"In {milliseconds:.1f} ms, without its two newest messages: {fork.conversation_id} has "
            f"{after.message_count} messages after an append of its own, the source still {unchanged.message_count}."
        )
        if (after.message_count, unchanged.message_count) != (source.message_count - 1, source.message_count):
            raise CommandError("The fork and its source do not have the messages that they should.")

    async def _search(self, client: Client, conversation_id: str, appended: Message) -> None:
        self._step("Search, in the read model")
        query = '"everybody\'s notes"'

        async def found() -> list[pb.MessageHit]:
            hits = await client.search(query, conversation_id=conversation_id, limit=100)
            return hits if any(hit.sequence == appended.sequence for hit in hits) else []

        hits = await self._soon(found, f"message {appended.sequence} is found")
        self._tell(f"{query}, said a moment ago:")
        self._hit(next(hit for hit in hits if hit.sequence == appended.sequence))
        words = "rail wheel -soup"
        self._tell(f"{words}:")
        for hit in await client.search(words, limit=3):
            self._hit(hit)

    async def _trail(self, client: Client, audit: Client, conversation_id: str) -> None:
        self._step("The audit log of this conversation")
        conversation = await client.get(conversation_id)
        stub = AuditServiceStub(audit.channel)

        async def complete() -> list[audit_pb.LogEntry]:
            request = audit_pb.ListEventsRequest(page_size=1000)
            request.filter.entity_type = "conversation"
            request.filter.entity_id = conversation_id
            entries: list[audit_pb.LogEntry] = []
            while True:
                page = await audit.call(stub.ListEvents, request, audit_pb.ListEventsResponse)
                entries += page.entries
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            newest = max((entry.event.revision for entry in entries), default=0)
            return entries if newest >= int(conversation.etag) else []

        entries = await self._soon(complete, f"revision {conversation.etag} is in the log")
        logged = [sequence for entry in entries for sequence in _sequences(entry)]
        table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
        for heading in ("  POSITION", "EVENT", "REVISION", "MESSAGES", "LOGGED AFTER"):
            table.add_column(heading, justify="left" if heading == "EVENT" else "right")
        for entry in entries[-_TRAIL_LINES:]:
            event = entry.event
            late = (entry.log_time.ToNanoseconds() - event.timestamp.ToNanoseconds()) / 1e6
            table.add_row(
                str(entry.position),
                event.event_type,
                f"{event.revision}" if event.parts <= 1 else f"{event.revision} ({event.part} of {event.parts})",
                _span(_sequences(entry)),
                f"{late:.0f} ms",
            )
        if len(entries) > _TRAIL_LINES:
            self._tell(f"The last {_TRAIL_LINES} of {len(entries)} events:")
        self._console.print(table)
        revisions = {entry.event.revision for entry in entries}
        if sorted(logged) != list(range(1, conversation.last_sequence + 1)) or len(revisions) != int(conversation.etag):
            raise CommandError(
                f"The log tells of {len(logged)} messages and {len(revisions)} revisions; the conversation has "
                f"{conversation.last_sequence} and {conversation.etag}."
            )
        self._tell(
            f"Every message from 1 to {conversation.last_sequence} is told of once, and no revision of the "
            f"{conversation.etag} is missing."
        )

    def _paste(self, conversation_id: str, last_sequence: int, other: str) -> None:
        service, sidecar = self._mesh.services["conversation"], self._mesh.services[other].sidecar_grpc
        default = self._directory == DataDirectory.at(None)
        data = "" if default else f" --data {shlex.quote(str(self._directory.path))}"
        user = shlex.quote(self.user)
        gaggle = _command()
        protoset = shlex.quote(str(self._directory.path / "conversation.protoset"))
        service_name = "gaggle.conversation.v1.ConversationService"
        call = '"$GRPCURL" -plaintext -H "authorization: Bearer $TOKEN"'
        through = f"{call} -protoset {protoset} -H 'dapr-app-id: {service.app_id}'"
        which = f'"conversation_id": "{conversation_id}"'
        newest = f"-d '{{{which}, \"page_size\": 3}}'"
        again = f"-d '{{{which}, \"from_sequence\": {last_sequence}}}'"
        said = '"messages": [{"role": "ROLE_USER", "content": [{"text": {"text": "Hello from grpcurl"}}]}]'
        self._step("To be pasted")
        self._lines(
            f'GRPCURL="$({gaggle} tools grpcurl)"; TOKEN="$({gaggle} token {user}{data})"',
            f'"$GRPCURL" -plaintext {service.address} list',
            f"{call} {newest} {service.address} {service_name}/ListMessages",
            f"{call} -d '{{{which}, {said}}}' {service.address} {service_name}/AppendMessages",
            f"{gaggle} conversations show {conversation_id} --user {user}{data} --last 10",
        )
        if self._mesh.mtls:
            self._tell("The sidecars of this mesh take calls of their own services alone.")
        else:
            self._tell(f"Through the sidecar of {other}. Asked to describe, it describes itself: take it along.")
            self._lines(
                f'"$GRPCURL" -plaintext -protoset-out {protoset} {service.address} describe {service_name} > /dev/null',
                f"{through} {newest} {sidecar} {service_name}/ListMessages",
                f"{through} -H 'dapr-stream: true' {again} {sidecar} {service_name}/Watch",
            )
            self._tell("The last one goes on until Ctrl-C.")
        self._tell(f"The mesh runs on; `{gaggle} down{data}` ends it.")

    @staticmethod
    def _lines(*lines: str) -> None:
        # Not through rich: it would break lines where a shell must not.
        for line in lines:
            typer.echo(line)

    def _target(self, *, service: str = "conversation", via: str = "") -> Target:
        return Target.find(data=self.data, user=self.user, service=service, via=via)

    def _hit(self, hit: pb.MessageHit) -> None:
        self._console.print(Text("  ") + hit_line(hit), no_wrap=True, overflow="ellipsis")

    def _step(self, title: str) -> None:
        self._console.print()
        self._console.print(Rule(Text(title, style="bold"), align="left", style="dim"))

    def _tell(self, text: str) -> None:
        self._console.print(Text(f"  {text}"), soft_wrap=True)

    @staticmethod
    async def _soon(check: Callable[[], Awaitable[_T | None]], what: str) -> _T:
        """The first true answer of `check`. Raises CommandError if none comes soon."""
        deadline = time.monotonic() + _SOON_SECONDS
        while True:
            answer = await check()
            if answer:
                return answer
            if time.monotonic() > deadline:
                raise CommandError(f"Not within {_SOON_SECONDS:.0f} s: {what}.")
            await asyncio.sleep(_POLL_SECONDS)


def _call(
    client: Client, method: Callable[..., Any], request: pb.ListMessagesRequest
) -> Callable[[], Awaitable[object]]:
    """The bare call, without the client's patience: what is measured."""

    async def call() -> object:
        try:
            return await method(request, metadata=client.target.metadata(), timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise ServiceRefusedError(Failure.of(error)) from error

    return call


async def _get(seen: dict[int, _T], sequence: int) -> _T | None:
    return seen.get(sequence)


def _row(table: Table, what: str, latencies: Latencies) -> None:
    p99 = latencies.percentile(99)
    table.add_row(f"  {what}", f"{latencies.median:.2f}", f"{p99:.2f}", f"{latencies.per_second:,.0f}")


def _sequences(entry: audit_pb.LogEntry) -> list[int]:
    """The messages that an event tells of."""
    told = MessageToDict(entry.event.data).get("messages")
    return [int(message["sequence"]) for message in told] if isinstance(told, list) else []


def _span(sequences: list[int]) -> str:
    if not sequences:
        return ""
    span = str(sequences[0]) if len(sequences) == 1 else f"{sequences[0]} to {sequences[-1]}"
    return span if len(sequences) <= 1 else f"{len(sequences)} of {span}"


def _command() -> str:
    """How this command line is called from here."""
    beside = Path(sys.executable).with_name("gaggle")
    found = shutil.which("gaggle")
    if found and Path(found).resolve() == beside.resolve():
        return "gaggle"
    if beside.exists():
        here = Path.cwd()
        return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))
    path = shlex.quote(f"{PROJECT_ROOT}:{PROJECT_ROOT / 'gen'}")
    return f"PYTHONPATH={path} {shlex.quote(sys.executable)} -m cli.main"
