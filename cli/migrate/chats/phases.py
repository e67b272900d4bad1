"""Copy and verify: all conversations of the tables, several at once, each done once and for all."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import grpc
import psycopg

from cli.conversations.client import Client
from cli.conversations.errors import ServiceRefusedError
from cli.errors import CommandError
from cli.migrate.chats.journal import Journal, Work
from cli.migrate.chats.mapping import ID_KEY, Chat, chat, conversation_id, request_id
from cli.migrate.chats.source import Tables, conversations, snapshot
from gaggle.conversation.v1 import conversation_service_pb2 as pb
from gaggle.conversation.v1.conversation_pb2 import Conversation
from gaggle.conversation.v1.message_pb2 import Message

_AT_ONCE = 8
_TOLD_FAULTS = 1_000
_TOLD_REASONS = 5

Spawn = Callable[[Chat, Callable[[], Awaitable[str]], Journal], Awaitable[None]]


class Clients(Protocol):
    """Gives the conversation service as a user sees it."""

    async def of(self, user: str) -> Client:
        """For one user."""
        ...


class Progress(Protocol):
    """Who is told how far a phase is."""

    def did(self, messages: int) -> None:
        """One more conversation, with so many messages, was dealt with."""
        ...


@dataclass
class Outcome:
    """What a phase did."""

    conversations: int = 0
    """All that there are."""

    messages: int = 0
    done: int = 0
    """Conversations dealt with now."""

    done_messages: int = 0
    done_before: int = 0
    """Conversations that an earlier run had dealt with."""

    deleted: int = 0
    """Conversations that had been stored and were deleted from the tables since."""

    faults: list[dict[str, str]] = field(default_factory=list)
    """Conversations that can't be stored or are not as they should be: id, user, why. The first thousand."""

    faulty: int = 0
    seen: set[str] = field(default_factory=set, repr=False)
    """The ids of all that there are."""

    seconds: float = 0.0

    def fault(self, one: Chat, why: str) -> None:
        """Counts one that failed."""
        self.faulty += 1
        if len(self.faults) < _TOLD_FAULTS:
            self.faults.append({"conversation": one.source_id, "user": one.user, "why": why})

    def facts(self) -> dict[str, Any]:
        """What the report says of it."""
        return {
            "conversations": self.conversations,
            "messages": self.messages,
            "done": self.done,
            "done_messages": self.done_messages,
            "done_before": self.done_before,
            "deleted": self.deleted,
            "faulty": self.faulty,
            "faults": self.faults,
            "seconds": round(self.seconds, 1),
            "messages_per_second": round(self.done_messages / self.seconds) if self.seconds else 0,
        }


class Phase:
    """One pass over the tables. `per_second`: conversations, at most; 0 for no limit."""

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        tables: Tables,
        work: Work,
        clients: Clients,
        progress: Progress,
        *,
        per_second: float = 0,
    ) -> None:
        self._connection = connection
        self._tables = tables
        self._work = work
        self._clients = clients
        self._progress = progress
        self._pause = 1 / per_second if per_second else 0.0

    async def copy(self, *, keep_messages: int = 0, again: bool = False) -> Outcome:
        """Stores what is not stored yet; of what an earlier run stored, takes over what has changed since.

        Args:
            keep_messages: the retention of the conversations that are created; 0: all.
            again: look at those too that the journal knows.

        Raises:
            UnreachableError: the mesh does not answer; the next run goes on from there.
        """
        journal = self._work.copied
        stored = journal.users()
        async with self._pass() as (outcome, chats, spawn):
            async for one in chats:
                if not again and journal.has(one.source_id, one.digest):
                    outcome.done_before += 1
                    self._progress.did(len(one.messages))
                    continue
                if (before := stored.get(one.source_id, one.user)) != one.user:
                    await _forget(await self._clients.of(before), one.source_id)
                # One after another: the service lists conversations in the order in which they were created.
                client = await self._clients.of(one.user)
                try:
                    created = await _create(client, one, keep_messages)
                except ServiceRefusedError as error:
                    outcome.fault(one, str(error))
                    self._progress.did(len(one.messages))
                    continue
                await spawn(one, partial(_store, client, one, created), journal)
        for source_id in stored.keys() - outcome.seen:
            user = stored[source_id]
            # Its user has deleted it meanwhile: it must not come back.
            await _forget(await self._clients.of(user), source_id)
            journal.add(source_id, user, "")
            outcome.deleted += 1
        return outcome

    async def verify(self, *, switched: bool = False, again: bool = False) -> Outcome:
        """Reads back what is stored and compares it, message for message, with the tables.

        Args:
            switched: conversations may have gone on since.
            again: read those too that the journal knows.

        Raises:
            UnreachableError: as `copy`.
        """
        journal = self._work.verified
        async with self._pass() as (outcome, chats, spawn):
            async for one in chats:
                if not again and journal.has(one.source_id, one.digest):
                    outcome.done_before += 1
                    self._progress.did(len(one.messages))
                    continue
                client = await self._clients.of(one.user)
                await spawn(one, partial(_compare, client, one, switched=switched), journal)
        return outcome

    @asynccontextmanager
    async def _pass(self) -> AsyncIterator[tuple[Outcome, AsyncIterator[Chat], Spawn]]:
        """All conversations without faults, and how to do something with several of them at once."""
        outcome = Outcome()
        began = time.monotonic()
        free = asyncio.Semaphore(_AT_ONCE)
        try:
            async with (
                snapshot(self._connection),
                aclosing(self._chats(outcome)) as chats,
                asyncio.TaskGroup() as group,
            ):

                async def spawn(one: Chat, do: Callable[[], Awaitable[str]], journal: Journal) -> None:
                    await free.acquire()
                    group.create_task(self._run(one, do, journal, outcome)).add_done_callback(lambda _: free.release())
                    if self._pause:
                        await asyncio.sleep(self._pause)

                yield outcome, chats, spawn
        except BaseExceptionGroup as errors:
            # One of several calls that found nobody: the others say the same.
            told = errors.subgroup(CommandError)
            raise (_first(told) if told is not None else errors) from None
        outcome.seconds = time.monotonic() - began

    async def _chats(self, outcome: Outcome) -> AsyncGenerator[Chat, None]:
        async with aclosing(conversations(self._connection, self._tables)) as rows:
            async for row in rows:
                one = chat(row)
                outcome.conversations += 1
                outcome.seen.add(one.source_id)
                outcome.messages += len(one.messages)
                if one.faults:
                    outcome.fault(one, "; ".join(one.faults[:_TOLD_REASONS]))
                    self._progress.did(len(one.messages))
                    continue
                yield one

    async def _run(self, one: Chat, do: Callable[[], Awaitable[str]], journal: Journal, outcome: Outcome) -> None:
        try:
            why = await do()
        except ServiceRefusedError as error:
            why = str(error)
        if why:
            outcome.fault(one, why)
        else:
            journal.add(one.source_id, one.user, one.digest)
            outcome.done += 1
            outcome.done_messages += len(one.messages)
        self._progress.did(len(one.messages))


def _first(errors: BaseExceptionGroup[CommandError]) -> CommandError:
    one: BaseException = errors
    while isinstance(one, BaseExceptionGroup):
        one = one.exceptions[0]
    assert isinstance(one, CommandError)
    return one


async def _create(client: Client, one: Chat, keep_messages: int) -> Conversation | None:
    """Creates it and gives it; None if it is there already.

    Raises:
        ServiceRefusedError: the service does not take it.
    """
    request = one.creation(keep_messages)
    try:
        response = await client.call(client.stub.CreateConversation, request, pb.CreateConversationResponse)
    except ServiceRefusedError as error:
        if error.failure.code is grpc.StatusCode.ALREADY_EXISTS:
            return None
        raise
    return response.conversation


async def _store(client: Client, one: Chat, created: Conversation | None) -> str:
    """Stores its messages; gives why that can't be, empty if all is well.

    Raises:
        ServiceRefusedError: the service does not take it.
        UnreachableError: it does not answer.
    """
    if created is not None:
        try:
            await _append(client, one, 0, 0)
        except ServiceRefusedError as error:
            # The answer that created it may be an earlier run's, repeated.
            if error.failure.reason != "STALE_SEQUENCE":
                raise
        else:
            return ""
    found = await client.find(one.conversation_id)
    if found is None:
        return "it was deleted from the conversation service less than seven days ago"
    if found.metadata.get(ID_KEY) != one.source_id:
        return "the conversation service has another one of that id, which did not come from here"
    await _update(client, one, found)
    there = [message async for message in client.messages(one.conversation_id)]
    cut = _cut(one, there)
    same = next((n for n, (a, b) in enumerate(zip(there, one.messages[cut:], strict=False)) if not _equal(a, b)), None)
    same = min(len(there), len(one.messages) - cut) if same is None else same
    if same < len(there):
        # They were changed or deleted in the tables after they had been copied.
        request = pb.TruncateConversationRequest(conversation_id=one.conversation_id)
        request.after_sequence = there[same].sequence - 1
        request.request_id = request_id(request)
        await client.call(client.stub.TruncateConversation, request, pb.TruncateConversationResponse)
    await _append(client, one, cut + same, found.last_sequence)
    return ""


async def _append(client: Client, one: Chat, stored: int, last_sequence: int) -> None:
    while stored < len(one.messages):
        request = one.append(stored, last_sequence)
        response = await client.call(client.stub.AppendMessages, request, pb.AppendMessagesResponse)
        stored += len(request.messages)
        last_sequence = response.last_sequence


def _cut(one: Chat, there: list[Message]) -> int:
    """How many of the oldest messages retention has let go of."""
    if not there:
        return 0
    return next((n for n, message in enumerate(one.messages) if message.id == there[0].id), 0)


async def _forget(client: Client, source_id: str) -> None:
    found = await client.find(conversation_id(source_id))
    if found is not None and found.metadata.get(ID_KEY) == source_id:
        await client.delete(found.id)


async def _update(client: Client, one: Chat, found: Conversation) -> None:
    """Takes over a title or a column that has changed in the tables since."""
    if found.title == one.title and dict(found.metadata) == one.metadata:
        return
    request = pb.UpdateConversationRequest(conversation_id=one.conversation_id, etag=found.etag, title=one.title)
    request.metadata.entries.update(one.metadata)
    request.request_id = request_id(request)
    await client.call(client.stub.UpdateConversation, request, pb.UpdateConversationResponse)


async def _compare(client: Client, one: Chat, *, switched: bool) -> str:
    """Says how the stored one differs; empty if it does not.

    Raises:
        ServiceRefusedError: the service does not give it.
        UnreachableError: it does not answer.
    """
    found = await client.find(one.conversation_id)
    if found is None:
        return "it is not in the conversation service"
    if not switched and (found.title != one.title or dict(found.metadata) != one.metadata):
        return "its title or metadata is another"
    there = [message async for message in client.messages(one.conversation_id)]
    kept = found.retention.max_messages
    if switched and kept and there and there[0].id not in {message.id for message in one.messages}:
        return ""  # all that came from the tables has made room since
    return _difference(one, there, kept, more=switched)


def _difference(one: Chat, there: list[Message], kept: int, *, more: bool) -> str:
    """Says how the stored messages differ, of which `kept` are kept (0: all); `more`: others may have come."""
    total, cut = len(one.messages), _cut(one, there)
    if cut and (not kept or len(there) < kept):
        return f"its first {cut} messages are gone"
    for number, wanted in enumerate(one.messages[cut:]):
        if number >= len(there):
            return f"{total - cut - len(there)} of {total} messages are not stored"
        if not _equal(there[number], wanted):
            return f"message {cut + number + 1} is another"
    if cut + len(there) > total and not more:
        return f"{cut + len(there) - total} messages are stored that the tables do not have"
    return ""


def _equal(there: Message, wanted: Message) -> bool:
    plain = Message()
    plain.CopyFrom(there)
    # The server's own.
    plain.ClearField("sequence")
    plain.ClearField("create_time")
    return plain == wanted
