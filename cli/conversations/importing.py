"""Imports that may be cut off anywhere and be begun again.

A conversation's id is the SHA-256 of its user and its content; a request's id is that of its body. So an import that
is repeated finds what it stored, asks the service how far that goes, and sends the rest: killed processes, lost
answers and two imports at once lead to the same messages, each once.
"""

import asyncio
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import grpc

from cli.conversations.client import Client
from cli.conversations.errors import ServiceRefusedError
from cli.errors import CommandError
from cli.transcripts import MAX_APPEND_BYTES, MAX_APPEND_MESSAGES, Transcript
from gaggle.conversation.v1 import conversation_service_pb2 as pb
from gaggle.conversation.v1.conversation_pb2 import Conversation
from gaggle.conversation.v1.message_pb2 import ROLE_DEVELOPER, ROLE_SYSTEM, Message

FORMAT_KEY = "import.format"
SHA256_KEY = "import.sha256"
FILE_KEY = "import.file"

# Small enough to show progress and to lose little to a retry, large enough to be quick. Changing them is safe.
_BATCH_MESSAGES = 100
_BATCH_BYTES = 1024 * 1024
_TITLE_CHARACTERS = 80
# A deleted conversation's id is free again after seven days; until then the import takes the next of these.
_LIVES = 4
_AT_ONCE = 8
assert _BATCH_MESSAGES <= MAX_APPEND_MESSAGES
assert _BATCH_BYTES <= MAX_APPEND_BYTES


class Progress(Protocol):
    """Who is told how far an import is."""

    def began(self, plan: "Plan", stored: int) -> None:
        """So many of the plan's messages were there already."""
        ...

    def advanced(self, plan: "Plan", messages: int) -> None:
        """So many more are stored."""
        ...

    def ended(self, plan: "Plan", outcome: "Outcome") -> None:
        """The plan is done."""
        ...


@dataclass(frozen=True, eq=False)
class Plan:
    """One conversation to be stored."""

    transcript: Transcript = field(repr=False)
    format_name: str
    file: str
    user: str
    title: str
    conversation_id: str = ""
    """The caller's own; empty: one made from the content."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the user and the conversation's JSON, white space and the order of members apart."""
        canonical = json.dumps(self.transcript.source, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(f"{len(self.user)}:{self.user}{canonical}".encode()).hexdigest()

    @property
    def messages(self) -> Sequence[Message]:
        """What is to be stored."""
        return self.transcript.messages

    def ids(self) -> list[str]:
        """The ids that this import may have, in the order they are tried."""
        if self.conversation_id:
            return [self.conversation_id]
        first = f"imp-{self.digest[:32]}"
        return [first, *(f"{first}-{life}" for life in range(2, _LIVES + 1))]

    def creation(self, conversation_id: str) -> pb.CreateConversationRequest:
        """The request that creates the conversation."""
        metadata = {FORMAT_KEY: self.format_name, SHA256_KEY: self.digest, FILE_KEY: self.file}
        request = pb.CreateConversationRequest(
            conversation_id=conversation_id, title=self.title, metadata=metadata | self.transcript.metadata
        )
        request.request_id = _request_id(request)
        return request

    def append(self, conversation_id: str, after: int) -> pb.AppendMessagesRequest:
        """The request that stores the next messages after the first `after` ones."""
        request = pb.AppendMessagesRequest(conversation_id=conversation_id, expected_sequence=after)
        size = 0
        for message in self.messages[after : after + _BATCH_MESSAGES]:
            size += message.ByteSize()
            if request.messages and size > _BATCH_BYTES:
                break
            request.messages.append(message)
        request.request_id = _request_id(request)
        return request


@dataclass(frozen=True)
class Outcome:
    """What an import did."""

    conversation_id: str
    stored_before: int
    stored_now: int


def make_plan(
    transcript: Transcript, *, format_name: str, file: str, user: str, title: str = "", conversation_id: str = ""
) -> Plan:
    """`title`: default the transcript's own, else the beginning of what is said first."""
    return Plan(
        transcript=transcript,
        format_name=format_name,
        file=file,
        user=user,
        title=title or transcript.title or _opening(transcript.messages) or file,
        conversation_id=conversation_id,
    )


async def import_all(
    client: Client, plans: Iterable[Plan], progress: Progress
) -> list[tuple[Plan, Outcome | CommandError]]:
    """Stores every plan, several at once; a failure of one does not stop the others."""
    free = asyncio.Semaphore(_AT_ONCE)

    async def run(plan: Plan) -> tuple[Plan, Outcome | CommandError]:
        async with free:
            try:
                return plan, await import_one(client, plan, progress)
            except CommandError as error:
                return plan, error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(plan)) for plan in plans]
    return [task.result() for task in tasks]


async def import_one(client: Client, plan: Plan, progress: Progress) -> Outcome:
    """Stores what is not stored yet.

    Raises:
        CommandError: the conversation holds something else, or the service refused or did not answer.
    """
    conversation = await _open(client, plan)
    total = len(plan.messages)
    stored = before = min(conversation.last_sequence, total)
    await _check(client, plan, conversation.id, stored)
    progress.began(plan, before)
    while stored < total:
        request = plan.append(conversation.id, stored)
        try:
            response = await client.call(client.stub.AppendMessages, request, pb.AppendMessagesResponse)
        except ServiceRefusedError as error:
            if error.failure.reason != "STALE_SEQUENCE":
                raise
            # Another import of the same content was faster, or somebody else writes here.
            reached = min((await client.get(conversation.id)).last_sequence, total)
            if reached <= stored:
                raise
            await _check(client, plan, conversation.id, reached)
        else:
            reached = response.last_sequence
        progress.advanced(plan, reached - stored)
        stored = reached
    outcome = Outcome(conversation.id, before, total - before)
    progress.ended(plan, outcome)
    return outcome


async def _open(client: Client, plan: Plan) -> Conversation:
    """The conversation of an earlier import, else a new one."""
    ids = plan.ids()
    for found in await asyncio.gather(*map(client.find, ids)):
        if found is not None:
            return found
    for conversation_id in ids:
        try:
            await client.call(
                client.stub.CreateConversation, plan.creation(conversation_id), pb.CreateConversationResponse
            )
        except ServiceRefusedError as error:
            if error.failure.code is not grpc.StatusCode.ALREADY_EXISTS:
                raise
        # Asked even if it was created: the answer may be an old one, given before the conversation was deleted.
        found = await client.find(conversation_id)
        if found is not None:
            return found
    raise CommandError(
        f"{plan.file}: {ids[0]} was deleted less than seven days ago, and so long its id can't be used again; "
        "choose another with --conversation."
    )


async def _check(client: Client, plan: Plan, conversation_id: str, stored: int) -> None:
    """Raises CommandError if the last of the messages that seem to be stored is another than the file's."""
    if not stored:
        return
    request = pb.ListMessagesRequest(conversation_id=conversation_id, after_sequence=stored - 1, page_size=1)
    page = await client.call(client.stub.ListMessages, request, pb.ListMessagesResponse)
    if not page.messages or page.messages[0].sequence != stored:
        return  # truncated, or cut by retention, since
    there = Message()
    there.CopyFrom(page.messages[0])
    there.ClearField("sequence")
    there.ClearField("create_time")
    wanted = plan.messages[stored - 1]
    if not wanted.id:
        there.ClearField("id")
    if there != wanted:
        raise CommandError(
            f"{plan.file}: {conversation_id} holds another message {stored} than this file: somebody else wrote to it. "
            "Import into another with --conversation."
        )


def _opening(messages: Sequence[Message]) -> str:
    """How the conversation begins, instructions apart, shortened."""
    for message in messages:
        if message.role in {ROLE_SYSTEM, ROLE_DEVELOPER}:
            continue
        for part in message.content:
            words = " ".join(part.text.text.split())
            if words:
                return words if len(words) <= _TITLE_CHARACTERS else words[: _TITLE_CHARACTERS - 1].rstrip() + "…"
    return ""


def _request_id(request: pb.CreateConversationRequest | pb.AppendMessagesRequest) -> str:
    """An id that only this very body has."""
    body = request.SerializeToString(deterministic=True)
    return f"imp-{hashlib.sha256(request.DESCRIPTOR.name.encode() + body).hexdigest()[:48]}"
