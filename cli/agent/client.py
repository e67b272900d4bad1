"""The agent service, as one user at a terminal has it."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc

from cli.conversations.client import Client
from cli.conversations.errors import Failure, ServiceRefusedError, UnreachableError
from gaggle.agent.v1 import agent_service_pb2 as pb
from gaggle.agent.v1 import session_pb2, turn_pb2
from gaggle.agent.v1.agent_service_pb2_grpc import AgentServiceStub

SERVICE = "agent"
_PAUSE_SECONDS = 0.2


class AgentClient:
    """Turns, sessions and usage. Every call may be repeated, so all are."""

    def __init__(self, client: Client, timeout_seconds: float) -> None:
        """`timeout_seconds`: how long a stream may be cut off before it counts as lost."""
        self.client = client
        self._stub: Any = AgentServiceStub(client.channel)
        self._timeout_seconds = timeout_seconds

    async def chat(self, request: pb.ChatRequest) -> AsyncIterator[turn_pb2.TurnEvent]:
        """Say something, and give what comes of it, each event once, whatever breaks on the way.

        Raises:
            ServiceRefusedError: the service said no.
            UnreachableError: nothing answered in time.
        """
        request.request_id = request.request_id or f"cli-{uuid.uuid4()}"
        async for event in self._stream(self._stub.Chat, request):
            yield event

    async def watch(self, turn_id: str, after_position: int) -> AsyncIterator[turn_pb2.TurnEvent]:
        """Give what comes of a turn after a position. Raises as `chat`."""
        request = pb.WatchTurnRequest(turn_id=turn_id, after_position=after_position)
        async for event in self._stream(self._stub.WatchTurn, request):
            yield event

    async def _stream(self, method: Any, request: Any) -> AsyncIterator[turn_pb2.TurnEvent]:
        stream = (("dapr-stream", "true"),) if self.client.target.app_id else ()
        answered = time.monotonic()
        while True:
            call = method(request, metadata=(*self.client.target.metadata(), *stream))
            try:
                async for response in call:
                    answered = time.monotonic()
                    yield response.event
                    request.after_position = max(request.after_position, response.event.position)
            except grpc.aio.AioRpcError as error:
                failure = Failure.of(error)
                if not failure.is_transient:
                    raise ServiceRefusedError(failure) from error
                if time.monotonic() - answered > self._timeout_seconds:
                    address = self.client.target.address
                    raise UnreachableError(f"{address} does not answer any more: {failure}") from error
                await asyncio.sleep(failure.retry_after_seconds or _PAUSE_SECONDS)
            else:
                return
            finally:
                call.cancel()

    async def decide(self, turn_id: str, call_id: str, *, approve: bool) -> None:
        """Approve or deny a tool call that waits. Raises as Client.call."""
        if approve:
            allowed = pb.ApproveToolCallRequest(turn_id=turn_id, call_id=call_id)
            await self.client.call(self._stub.ApproveToolCall, allowed, pb.ApproveToolCallResponse)
        else:
            denied = pb.DenyToolCallRequest(turn_id=turn_id, call_id=call_id)
            await self.client.call(self._stub.DenyToolCall, denied, pb.DenyToolCallResponse)

    async def cancel(self, turn_id: str) -> None:
        """End a turn. Raises as Client.call."""
        request = pb.CancelTurnRequest(turn_id=turn_id)
        await self.client.call(self._stub.CancelTurn, request, pb.CancelTurnResponse)

    async def session(self, session_id: str) -> session_pb2.Session:
        """One session. Raises as Client.call."""
        request = pb.GetSessionRequest(session_id=session_id)
        return (await self.client.call(self._stub.GetSession, request, pb.GetSessionResponse)).session

    async def sessions(self, page_size: int) -> AsyncIterator[session_pb2.Session]:
        """All of the user's, newest first. Raises as Client.call."""
        request = pb.ListSessionsRequest(page_size=page_size)
        while True:
            page = await self.client.call(self._stub.ListSessions, request, pb.ListSessionsResponse)
            for session in page.sessions:
                yield session
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def usage(self, first_day: str, last_day: str, model: str) -> list[pb.DailyUsage]:
        """What was used, by day and model, newest day first. Raises as Client.call."""
        request = pb.ListUsageRequest(first_day=first_day, last_day=last_day, model=model, page_size=366)
        days: list[pb.DailyUsage] = []
        while True:
            page = await self.client.call(self._stub.ListUsage, request, pb.ListUsageResponse)
            days += page.days
            if not page.next_page_token:
                return days
            request.page_token = page.next_page_token
