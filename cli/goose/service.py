"""The mesh's side of goose's sessions: an agent session, and the conversation that it names."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import grpc

from cli.conversations.client import Client, Target, connect
from cli.conversations.errors import ServiceRefusedError
from cli.transcripts import MAX_APPEND_BYTES, MAX_APPEND_MESSAGES
from gaggle.agent.v1 import agent_service_pb2 as agent_api
from gaggle.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from gaggle.agent.v1.session_pb2 import Session, UsageEntry, UsageTotals
from gaggle.audit.v1 import audit_service_pb2 as audit_api
from gaggle.audit.v1.audit_service_pb2_grpc import AuditServiceStub
from gaggle.conversation.v1 import conversation_service_pb2 as api
from gaggle.conversation.v1.conversation_pb2 import Conversation
from gaggle.conversation.v1.message_pb2 import Message

_T = TypeVar("_T")

LINES_AT_ONCE = 500
_DAYS_AT_ONCE = 40
_APPEND_BYTES = MAX_APPEND_BYTES - 64 * 1024
_GONE = frozenset({grpc.StatusCode.NOT_FOUND})


@dataclass(frozen=True)
class Where:
    """Which mesh, in whose name; see cli.conversations.client.Target.find."""

    data: Path | None = None
    user: str = ""
    via: str = ""
    token: str = ""
    timeout_seconds: float = 30.0

    def target(self, service: str) -> Target:
        """The way to one service."""
        return Target.find(data=self.data, via=self.via, user=self.user, token=self.token, service=service)


class Mesh:
    """Calls for one user. Every change carries a request_id, so each is repeated until it is answered.

    The ids are fresh ones: who comes back after a kill looks at what is there, and must not be given the answer of a
    change that was undone since.
    """

    def __init__(self, conversation: Client, agent: Client, audit: Client | None) -> None:
        """`audit`: None where the log is not asked."""
        self._conversation = conversation
        self._agent = agent
        self._audit = audit
        self._agents: Any = AgentServiceStub(agent.channel)

    @property
    def user(self) -> str:
        """Whose sessions."""
        return self._conversation.target.user

    async def _change(self, client: Client, method: Callable[..., Any], request: Any, answer: type[_T]) -> _T:
        request.request_id = f"goose-{uuid.uuid4()}"
        return await client.call(method, request, answer)

    # -- conversations

    async def conversation(self, conversation_id: str) -> Conversation | None:
        """One conversation, None if there is none. Raises as Client.call, like all that follow."""
        return await self._conversation.find(conversation_id)

    async def messages(self, conversation_id: str) -> list[Message]:
        """All of a conversation."""
        return [one async for one in self._conversation.messages(conversation_id)]

    async def create_conversation(self, conversation_id: str, title: str, metadata: dict[str, str]) -> bool:
        """Create one without retention; False if the id is or was lately another's."""
        request = api.CreateConversationRequest(conversation_id=conversation_id, title=title, metadata=metadata)
        try:
            await self._change(
                self._conversation, self._conversation.stub.CreateConversation, request, api.CreateConversationResponse
            )
        except ServiceRefusedError as error:
            if error.failure.code is grpc.StatusCode.ALREADY_EXISTS:
                return False
            raise
        return True

    async def append(self, conversation_id: str, after: int, messages: Sequence[Message]) -> tuple[int, str]:
        """Append behind sequence `after`; gives the last sequence and the etag."""
        etag = ""
        place = 0
        while place < len(messages):
            request = api.AppendMessagesRequest(conversation_id=conversation_id, expected_sequence=after)
            size = 0
            for message in messages[place : place + MAX_APPEND_MESSAGES]:
                size += message.ByteSize() + 8
                if request.messages and size > _APPEND_BYTES:
                    break
                request.messages.append(message)
            stub = self._conversation.stub
            response = await self._change(self._conversation, stub.AppendMessages, request, api.AppendMessagesResponse)
            place += len(request.messages)
            after, etag = int(response.last_sequence), response.etag
        return after, etag

    async def truncate(self, conversation_id: str, after: int, etag: str) -> str:
        """Drop all after a sequence; gives the etag."""
        request = api.TruncateConversationRequest(conversation_id=conversation_id, after_sequence=after, etag=etag)
        stub = self._conversation.stub
        answer = api.TruncateConversationResponse
        return (await self._change(self._conversation, stub.TruncateConversation, request, answer)).etag

    async def delete_conversation(self, conversation_id: str, etag: str = "") -> None:
        """Delete one; one that is gone is fine."""
        request = api.DeleteConversationRequest(conversation_id=conversation_id, etag=etag)
        stub = self._conversation.stub
        answer = api.DeleteConversationResponse
        await _if_there(self._change(self._conversation, stub.DeleteConversation, request, answer))

    # -- sessions

    async def session(self, session_id: str) -> Session | None:
        """One session, None if there is none."""
        request = agent_api.GetSessionRequest(session_id=session_id)
        found = await _if_there(self._agent.call(self._agents.GetSession, request, agent_api.GetSessionResponse))
        return found.session if found else None

    async def create_session(self, request: agent_api.CreateSessionRequest) -> Session | None:
        """Create a session; None if the id is taken."""
        try:
            answer = agent_api.CreateSessionResponse
            return (await self._change(self._agent, self._agents.CreateSession, request, answer)).session
        except ServiceRefusedError as error:
            if error.failure.code is grpc.StatusCode.ALREADY_EXISTS:
                return None
            raise

    async def update_session(self, request: agent_api.UpdateSessionRequest) -> Session:
        """Change a session."""
        answer = agent_api.UpdateSessionResponse
        return (await self._change(self._agent, self._agents.UpdateSession, request, answer)).session

    async def import_usage(
        self,
        session: Session,
        entries: Iterable[UsageEntry],
        accumulated: UsageTotals | None = None,
        last: UsageTotals | None = None,
    ) -> Session:
        """Enter lines and sums; gives the session as it is then."""
        batches = list(_batches(entries)) or ([[]] if accumulated is not None else [])
        for number, batch in enumerate(batches, start=1):
            request = agent_api.ImportUsageRequest(session_id=session.id, etag=session.etag, entries=batch)
            if accumulated is not None and number == len(batches):
                request.accumulated_usage.CopyFrom(accumulated)
                request.last_usage.CopyFrom(last or UsageTotals())
            answer = agent_api.ImportUsageResponse
            session = (await self._change(self._agent, self._agents.ImportUsage, request, answer)).session
        return session

    async def delete_session(self, session_id: str, etag: str = "") -> None:
        """Delete one; one that is gone is fine."""
        request = agent_api.DeleteSessionRequest(session_id=session_id, etag=etag)
        answer = agent_api.DeleteSessionResponse
        await _if_there(self._change(self._agent, self._agents.DeleteSession, request, answer))

    async def lines(self, first: datetime, last: datetime, session_id: str = "") -> AsyncIterator[UsageEntry]:
        """The ledger's lines of some days, both included, newest first within a day."""
        day = first.date()
        while day <= last.date():
            request = agent_api.ListUsageEntriesRequest(day=day.isoformat(), session_id=session_id, page_size=1000)
            while True:
                answer = agent_api.ListUsageEntriesResponse
                page = await self._agent.call(self._agents.ListUsageEntries, request, answer)
                for entry in page.entries:
                    yield entry
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            day += timedelta(days=1)

    async def days_with_usage(self, first: datetime, last: datetime) -> list[datetime]:
        """The days that the ledger has lines of, oldest first."""
        days: set[str] = set()
        start = first.date()
        while start <= last.date():
            end = min(start + timedelta(days=365), last.date())
            request = agent_api.ListUsageRequest(first_day=start.isoformat(), last_day=end.isoformat(), page_size=366)
            while True:
                page = await self._agent.call(self._agents.ListUsage, request, agent_api.ListUsageResponse)
                days |= {one.day for one in page.days}
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            start = end + timedelta(days=1)
        return [datetime.fromisoformat(day).replace(tzinfo=UTC) for day in sorted(days)]

    # -- the log

    async def log_position(self) -> int:
        """Where the user's part of the log stands."""
        assert self._audit is not None
        stub: Any = AuditServiceStub(self._audit.channel)
        chosen = audit_api.EventFilter(user_id=self.user)
        request = audit_api.ListEventsRequest(filter=chosen, page_size=1, descending=True)
        page = await self._audit.call(stub.ListEvents, request, audit_api.ListEventsResponse)
        return int(page.entries[0].position) if page.entries else 0

    async def watch(self, position: int) -> AsyncIterator[audit_api.WatchEventsResponse]:
        """What the log says of the user after a position, and what comes; ends when the stream breaks."""
        assert self._audit is not None
        stub: Any = AuditServiceStub(self._audit.channel)
        target = self._audit.target
        chosen = audit_api.EventFilter(user_id=self.user)
        request = audit_api.WatchEventsRequest(filter=chosen, after_position=position)
        stream = (("dapr-stream", "true"),) if target.app_id else ()
        call = stub.WatchEvents(request, metadata=(*target.metadata(), *stream))
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.5)
        finally:
            call.cancel()


@asynccontextmanager
async def mesh(where: Where, *, audit: bool = False) -> AsyncIterator[Mesh]:
    """Connections to the services that keep goose's sessions. Raises NotRunning."""
    timeout = where.timeout_seconds
    async with (
        connect(where.target("conversation"), timeout_seconds=timeout) as conversation,
        connect(where.target("agent"), timeout_seconds=timeout) as agent,
    ):
        if not audit:
            yield Mesh(conversation, agent, None)
            return
        async with connect(where.target("audit"), timeout_seconds=timeout) as log:
            yield Mesh(conversation, agent, log)


async def _if_there(call: Any) -> Any:
    try:
        return await call
    except ServiceRefusedError as error:
        if error.failure.code in _GONE:
            return None
        raise


def _batches(entries: Iterable[UsageEntry]) -> Iterable[list[UsageEntry]]:
    """Of as many lines and days as one call takes."""
    batch: list[UsageEntry] = []
    days: set[int] = set()
    for entry in entries:
        day = entry.time.seconds // 86_400
        if batch and (len(batch) == LINES_AT_ONCE or (day not in days and len(days) == _DAYS_AT_ONCE)):
            yield batch
            batch, days = [], set()
        batch.append(entry)
        days.add(day)
    if batch:
        yield batch
