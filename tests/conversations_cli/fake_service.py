"""A small conversation service in this process, which fails when it is told to."""
# ruff: noqa: N802 -- methods have the contract's names and are documented there

import base64
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from gaggle.conversation.v1 import conversation_service_pb2 as pb
from gaggle.conversation.v1.conversation_pb2 import Conversation
from gaggle.conversation.v1.conversation_service_pb2_grpc import (
    ConversationServiceServicer,
    add_ConversationServiceServicer_to_server,
)
from gaggle.conversation.v1.message_pb2 import Message

Fault = Callable[[grpc.ServicerContext], None]
"""Called in place of an answer; raises by aborting, or returns to let the call go on."""


def refuse(
    context: grpc.ServicerContext, code: grpc.StatusCode, reason: str, text: str, *, retry_seconds: float = 0
) -> NoReturn:
    """Ends a call as our services do."""
    status = status_pb2.Status(code=code.value[0], message=text)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="gaggle"))
    if reason == "INVALID_FIELD":
        name, what = text.split(": ")
        violation = error_details_pb2.BadRequest.FieldViolation(field=name, description=what)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_seconds:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(retry_seconds * 1000))
        status.details.add().Pack(retry)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError


@dataclass
class Stored:
    """One conversation of the fake service."""

    conversation: Conversation
    messages: list[Message] = field(default_factory=list)
    deleted: bool = False


class FakeConversations(ConversationServiceServicer):
    """Keeps its promises on request ids, expected sequences and tombstones; answers may be lost or refused by plan."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, str], Stored] = {}
        self.answers: dict[tuple[str, str], tuple[bytes, Any]] = {}
        self.calls: list[str] = []
        self.before: dict[str, list[Fault]] = {}
        """Faults by method, one for each call to come, that strike before the effect."""
        self.after: dict[str, list[Fault]] = {}
        """The same, after the effect: the answer is lost."""
        self._lock = threading.RLock()

    def messages_of(self, user: str, conversation_id: str) -> list[Message]:
        """What is stored."""
        return self.stored[user, conversation_id].messages

    def texts(self) -> list[list[str]]:
        """The first text of each message, conversation by conversation."""
        return [[message.content[0].text.text for message in each.messages] for each in self.stored.values()]

    def _do(self, request: Any, context: grpc.ServicerContext, effect: Callable[[str], Any]) -> Any:
        method = type(request).__name__.removesuffix("Request")
        user = self._user(context)
        with self._lock:
            self.calls.append(method)
            self._strike(self.before, method, context)
            key = (user, getattr(request, "request_id", ""))
            body = method.encode() + request.SerializeToString(deterministic=True)
            if key[1] and key in self.answers:
                known, answer = self.answers[key]
                if known != body:
                    refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED", "used before")
            else:
                answer = effect(user)
                if key[1]:
                    self.answers[key] = (body, answer)
            self._strike(self.after, method, context)
            return answer

    @staticmethod
    def _strike(faults: dict[str, list[Fault]], method: str, context: grpc.ServicerContext) -> None:
        if faults.get(method):
            faults[method].pop(0)(context)

    @staticmethod
    def _user(context: grpc.ServicerContext) -> str:
        sent = {key: value for key, value in context.invocation_metadata()}  # noqa: C416 - pairs of a named tuple
        body = str(sent["authorization"]).removeprefix("Bearer ").split(".")[1]
        return str(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["sub"])

    def _find(self, user: str, conversation_id: str, context: grpc.ServicerContext) -> Stored:
        found = self.stored.get((user, conversation_id))
        if found is None or found.deleted:
            refuse(context, grpc.StatusCode.NOT_FOUND, "NOT_FOUND", f"there is no conversation {conversation_id!r}")
        return found

    def CreateConversation(self, request: pb.CreateConversationRequest, context: grpc.ServicerContext) -> Any:
        def effect(user: str) -> pb.CreateConversationResponse:
            key = (user, request.conversation_id)
            if key in self.stored:
                refuse(context, grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS", "exists already")
            conversation = Conversation(id=key[1], title=request.title, metadata=request.metadata)
            self.stored[key] = Stored(conversation)
            return pb.CreateConversationResponse(conversation=conversation)

        return self._do(request, context, effect)

    def GetConversation(self, request: pb.GetConversationRequest, context: grpc.ServicerContext) -> Any:
        def effect(user: str) -> pb.GetConversationResponse:
            found = self._find(user, request.conversation_id, context)
            return pb.GetConversationResponse(conversation=found.conversation)

        return self._do(request, context, effect)

    def ListConversations(self, request: pb.ListConversationsRequest, context: grpc.ServicerContext) -> Any:
        def effect(user: str) -> pb.ListConversationsResponse:
            own = [each.conversation for (owner, _), each in self.stored.items() if owner == user and not each.deleted]
            begin = int(request.page_token or 0)
            end = begin + request.page_size
            token = str(end) if end < len(own) else ""
            return pb.ListConversationsResponse(conversations=own[::-1][begin:end], next_page_token=token)

        return self._do(request, context, effect)

    def AppendMessages(self, request: pb.AppendMessagesRequest, context: grpc.ServicerContext) -> Any:
        def effect(user: str) -> pb.AppendMessagesResponse:
            found = self._find(user, request.conversation_id, context)
            conversation = found.conversation
            if request.HasField("expected_sequence") and request.expected_sequence != conversation.last_sequence:
                refuse(context, grpc.StatusCode.ABORTED, "STALE_SEQUENCE", "there are later messages")
            first = conversation.last_sequence + 1
            for sequence, message in enumerate(request.messages, first):
                copy = Message.FromString(message.SerializeToString())
                copy.sequence = sequence
                copy.id = copy.id or f"given-{sequence}"
                copy.create_time.GetCurrentTime()
                found.messages.append(copy)
            conversation.last_sequence += len(request.messages)
            conversation.message_count += len(request.messages)
            return pb.AppendMessagesResponse(first_sequence=first, last_sequence=conversation.last_sequence)

        return self._do(request, context, effect)

    def ListMessages(self, request: pb.ListMessagesRequest, context: grpc.ServicerContext) -> Any:
        def effect(user: str) -> pb.ListMessagesResponse:
            messages = self._find(user, request.conversation_id, context).messages
            if request.HasField("after_sequence"):
                begin = int(request.page_token or request.after_sequence)
                end = begin + request.page_size
                token = str(end) if end < len(messages) else ""
            else:
                end = int(request.page_token or len(messages))
                begin = max(0, end - request.page_size)
                token = str(begin) if begin else ""
            return pb.ListMessagesResponse(messages=messages[begin:end], next_page_token=token)

        return self._do(request, context, effect)

    def DeleteConversation(self, request: pb.DeleteConversationRequest, context: grpc.ServicerContext) -> Any:
        def effect(user: str) -> pb.DeleteConversationResponse:
            if (user, request.conversation_id) not in self.stored:
                self._find(user, request.conversation_id, context)
            self.stored[user, request.conversation_id].deleted = True
            return pb.DeleteConversationResponse()

        return self._do(request, context, effect)

    def SearchMessages(self, request: pb.SearchMessagesRequest, context: grpc.ServicerContext) -> Any:
        def effect(user: str) -> pb.SearchMessagesResponse:
            hits = [
                pb.MessageHit(conversation_id=name, sequence=message.sequence, snippet="a <b>find</b> &amp; all")
                for (owner, name), each in self.stored.items()
                for message in each.messages
                if owner == user and any(request.query in part.text.text for part in message.content)
            ]
            return pb.SearchMessagesResponse(hits=hits[: request.page_size])

        return self._do(request, context, effect)


@dataclass
class Service:
    """The fake service and where it listens; it may be killed and started again at the same place."""

    fake: FakeConversations
    port: int = 0
    _server: grpc.Server | None = None

    @property
    def address(self) -> str:
        """host:port."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens, at the port of before if there was one."""
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        add_ConversationServiceServicer_to_server(self.fake, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def kill(self) -> None:
        """Cuts every call and every connection."""
        if self._server is not None:
            self._server.stop(grace=None).wait()
            self._server = None


@dataclass(frozen=True)
class Result:
    """What a command came to."""

    code: int
    out: str
    err: str
