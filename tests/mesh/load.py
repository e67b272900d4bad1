"""A seeded load of appends under faults, and what must hold at its end.

Each client appends to one of a few conversations, under a request_id of its own, and repeats what may or may not have
happened until it is told. So at the end each request was acknowledged, and what is stored is known to the letter.
"""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToDict

from gaggle.audit.v1 import audit_service_pb2 as audit_api
from gaggle.audit.v1 import audit_service_pb2_grpc
from gaggle.conversation.v1 import message_pb2
from tests.conditions import eventually
from tests.conversation.talking import Talker, refusal_of, text_message
from tests.mesh_fixture import Mesh

CALL_SECONDS = 3.0
"""The clients' deadline."""

_OVERDUE_SECONDS = 1.5
"""How much later than its deadline a call may end, on a busy machine."""

# CANCELLED, though no client cancels: what grpc.aio answers to a call that it had taken in and not begun at its stop.
_MAYBE = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
_LOGGED_SECONDS = 90.0
# Looked at less often than other conditions: to count a long log takes its share of the machine.
_DRAINING_SECONDS = 0.5
_GIVE_UP_SECONDS = 60.0
_PAUSE_SECONDS = 0.05
_THINKING_SECONDS = 0.1


@dataclass(frozen=True)
class Attempt:
    """One call, as its client saw it; times in seconds from the beginning of the load."""

    client: int
    request_id: str
    conversation_id: str
    begin: float
    end: float
    outcome: str
    """OK, or the code it failed with."""

    sequences: tuple[int, int] = (0, 0)


@dataclass
class Load:
    """Clients at work."""

    mesh: Mesh
    user: str
    seed: int
    clients: list[Talker]
    conversations: list[str]
    attempts: list[Attempt] = field(default_factory=list)
    stored: dict[str, dict[int, str]] = field(default_factory=dict)
    """By conversation, sequence to text, of all that was acknowledged."""

    began: float = field(default_factory=time.monotonic)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def acknowledged(self) -> int:
        """How many requests were acknowledged so far."""
        return sum(1 for one in self.attempts if one.outcome == "OK")

    def failed(self, code: str) -> int:
        """How many calls ended with a code so far."""
        return sum(1 for one in self.attempts if one.outcome == code)

    async def more(self, requests: int, *, within: float = _GIVE_UP_SECONDS) -> None:
        """Wait until so many more requests are acknowledged."""
        wanted = self.acknowledged() + requests

        async def enough() -> bool:
            return self.acknowledged() >= wanted

        await eventually(enough, within=within, what=f"{requests} more requests acknowledged")

    async def everyone(self, *, within: float) -> None:
        """Wait until each client had a request acknowledged that it sent after now."""
        now = time.monotonic() - self.began

        async def all_of_them() -> bool:
            served = {one.client for one in reversed(self.attempts) if one.outcome == "OK" and one.end > now}
            return len(served) == len(self.clients)

        await eventually(all_of_them, within=within, what="every client is served again")

    async def run(self) -> None:
        """Append until told to stop; requests under way are seen to their end."""
        await asyncio.gather(*(self._client(number) for number in range(len(self.clients))))

    def stop(self) -> None:
        """Let the clients end."""
        self._stopping.set()

    async def _client(self, number: int) -> None:
        chance = random.Random(f"{self.seed}-{number}")
        count = 0
        while not self._stopping.is_set():
            count += 1
            await self._request(number, f"{self.seed}-{number}-{count}", chance)
            # Calls at times of the client's own, not a test of how much fits.
            await asyncio.sleep(chance.uniform(0, _THINKING_SECONDS))

    async def _request(self, number: int, request_id: str, chance: random.Random) -> None:
        conversation_id = chance.choice(self.conversations)
        texts = [f"{request_id}/{part}" for part in range(chance.choice((1, 1, 1, 2, 5)))]
        padding = "x" * chance.choice((0, 10, 400, 3000))
        roles = [chance.choice((message_pb2.ROLE_USER, message_pb2.ROLE_ASSISTANT)) for _ in texts]
        messages = [text_message(f"{text} {padding}", role) for text, role in zip(texts, roles, strict=True)]
        give_up = time.monotonic() + _GIVE_UP_SECONDS
        while True:
            begin = time.monotonic() - self.began
            sequences = (0, 0)
            try:
                answer = await self.clients[number](
                    "AppendMessages", conversation_id=conversation_id, messages=messages, request_id=request_id
                )
                outcome, sequences = "OK", (answer.first_sequence, answer.last_sequence)
            except grpc.aio.AioRpcError as error:
                refusal = refusal_of(error)
                outcome = refusal.code
                # Nothing else may come of a fault: neither a wrong answer nor INTERNAL.
                assert outcome in _MAYBE or refusal.reason == "CONTENTION", f"{request_id}: {refusal}"
            end = time.monotonic() - self.began
            self.attempts.append(Attempt(number, request_id, conversation_id, begin, end, outcome, sequences))
            if outcome == "OK":
                held = self.stored.setdefault(conversation_id, {})
                for sequence, message in zip(range(sequences[0], sequences[1] + 1), messages, strict=True):
                    assert sequence not in held, f"{conversation_id} {sequence} was given twice"
                    held[sequence] = message.content[0].text.text
                return
            assert time.monotonic() < give_up, f"{request_id} was not acknowledged: {outcome}"
            await asyncio.sleep(_PAUSE_SECONDS * (1 + chance.random()))

    # -- what must hold

    def check_deadlines(self) -> None:
        """No call outlived its deadline."""
        late = [one for one in self.attempts if one.end - one.begin > CALL_SECONDS + _OVERDUE_SECONDS]
        assert late == []

    async def check_messages(self) -> None:
        """All that was acknowledged is there, once, without a gap; nothing else is."""
        assert self.acknowledged() == len({one.request_id for one in self.attempts})
        for conversation_id in self.conversations:
            found = await self.clients[0].history(conversation_id)
            assert [sequence for sequence, _ in found] == list(range(1, len(found) + 1)), conversation_id
            assert dict(found) == self.stored.get(conversation_id, {}), conversation_id

    async def check_log(self) -> None:
        """The audit log has each revision and each message once."""
        async with self.mesh.channel("audit") as channel:
            stub: Any = audit_service_pb2_grpc.AuditServiceStub(channel)
            for conversation_id in self.conversations:
                revisions = int((await self.clients[0].get(conversation_id)).etag)
                messages = len(self.stored.get(conversation_id, {}))
                await self._drained(stub, conversation_id, revisions)

                async def complete(
                    conversation_id: str = conversation_id, wanted: tuple[int, int] = (revisions, messages)
                ) -> list[Any]:
                    entries = await self._entries(stub, conversation_id)
                    # Messages of both kinds, appended at once, are told by two events of one revision.
                    found = len({one.event.revision for one in entries}), sum(_told(entries).values())
                    return entries if found[0] >= wanted[0] and found[1] >= wanted[1] else []

                entries = await eventually(
                    complete,
                    within=_LOGGED_SECONDS,
                    what=f"{revisions} revisions and {messages} messages of {conversation_id} logged",
                )
                check_told(entries, messages)

    async def _drained(self, stub: Any, conversation_id: str, revisions: int) -> None:
        """Wait until the log has as many events as revisions, for as long as more of them come."""
        request = audit_api.CountEventsRequest(filter=audit_api.EventFilter(entity_id=conversation_id))
        count, came = 0, time.monotonic()
        while count < revisions:
            assert time.monotonic() - came < _LOGGED_SECONDS, f"{count} of {revisions} events, and no more come"
            await asyncio.sleep(_DRAINING_SECONDS)
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await stub.CountEvents(request, metadata=self.mesh.metadata(self.user), timeout=10)
                if answer.total > count:
                    count, came = answer.total, time.monotonic()

    async def _entries(self, stub: Any, conversation_id: str) -> list[Any]:
        request = audit_api.ListEventsRequest(page_size=1000)
        request.filter.entity_id = conversation_id
        entries: list[Any] = []
        while True:
            try:
                page = await stub.ListEvents(request, metadata=self.mesh.metadata(self.user), timeout=10)
            except grpc.aio.AioRpcError as error:
                assert error.code().name in _MAYBE, error  # noqa: PT017 - what else it may be is the point
                return []
            entries += page.entries
            if not page.next_page_token:
                return entries
            request.page_token = page.next_page_token

    def write(self, folder: Path) -> Path:
        """Keep what happened, for reading after a failure."""
        file = folder / f"history-{self.seed}.jsonl"
        file.write_text("".join(json.dumps(asdict(one)) + "\n" for one in self.attempts))
        return file


def check_told(entries: Sequence[Any], messages: int) -> None:
    """These log entries tell of messages 1..n once each, by events that are there once, of revisions without a gap."""
    ids = Counter(one.event.event_id for one in entries)
    assert [event_id for event_id, count in ids.items() if count > 1] == []
    revisions = {one.event.revision for one in entries}
    assert revisions == set(range(1, len(revisions) + 1))
    assert _told(entries) == Counter(range(1, messages + 1))


def _told(entries: Sequence[Any]) -> Counter[int]:
    """How often these log entries tell of each message, by its sequence."""
    return Counter(
        int(message["sequence"]) for one in entries for message in MessageToDict(one.event.data).get("messages", [])
    )


@asynccontextmanager
async def under_load(
    mesh: Mesh, user: str, folder: Path, *, seed: int, clients: int = 6, conversations: int = 3, replicas: int = 0
) -> AsyncIterator[Load]:
    """Run a load beside the block; then stop it and check everything. The history is kept where that fails.

    `replicas`: how many of the service's replicas are used; 0: all.
    """
    replicas = replicas or len(mesh.service("conversation").replicas)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it where the test fails
    channels = [mesh.channel("conversation", number % replicas) for number in range(clients)]
    talkers = [Talker(channel, mesh.metadata(user), timeout=CALL_SECONDS) for channel in channels]
    names = [f"c{number}" for number in range(conversations)]
    for name in names:
        await talkers[0].create(conversation_id=name)
    load = Load(mesh, user, seed, talkers, names)
    working = asyncio.create_task(load.run())
    try:
        yield load
        load.stop()
        await working
        load.check_deadlines()
        await load.check_messages()
        await load.check_log()
    except BaseException as error:
        error.add_note(f"seed {seed}; history: {load.write(folder)}")
        raise
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        for channel in channels:
            await channel.close()
