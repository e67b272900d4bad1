"""A2A (agent to agent, version 1.0) over its gRPC binding: a task is a turn, a context is a conversation.

A message that begins a task is a Chat whose request_id is the message's id, so that sending it again gives the same
task. Text of the newest step is the artifact `answer`; when a step begins anew the artifact is sent from its start
again. A task that waits for a person is INPUT_REQUIRED: a message to it that says "approve" or "deny" decides on all
calls that wait. Its errors are those of the protocol, beside our own.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, NoReturn

from a2a.types import a2a_pb2, a2a_pb2_grpc
from google.protobuf import json_format, struct_pb2
from google.rpc import error_details_pb2

from gaggle.agent.state.v1 import document_pb2
from gaggle.agent.v1 import agent_service_pb2 as api
from gaggle.agent.v1 import turn_pb2
from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.v1 import message_pb2
from services.agent import validation
from services.agent.chatting import Chats
from services.agent.models.catalog import Catalog
from services.agent.peers import Conversations
from services.agent.sessions import Sessions
from services.agent.turns import ENDED, Turns, text_of
from services.agent.watching import Watcher
from services.runtime import paging
from services.runtime.access import Access, user_or
from services.runtime.errors import FailedPreconditionError, GaggleError, InvalidArgumentError, NotFoundError
from services.runtime.identity import current_caller
from services.runtime.requests import valid_id

SERVICE = a2a_pb2.DESCRIPTOR.services_by_name["A2AService"]
A2A_ACCESS: dict[str, Access] = {"*": user_or("recipe")}
PROTOCOL_VERSION = "1.0"
ANSWER = "answer"
_DOMAIN = "a2a-protocol.org"
_PAGE = 50
_MOST_PAGE = 100
_WAITING = turn_pb2.TOOL_CALL_STATUS_WAITING_APPROVAL

_STATES = {
    turn_pb2.TURN_STATUS_QUEUED: a2a_pb2.TASK_STATE_SUBMITTED,
    turn_pb2.TURN_STATUS_RUNNING: a2a_pb2.TASK_STATE_WORKING,
    turn_pb2.TURN_STATUS_WAITING_APPROVAL: a2a_pb2.TASK_STATE_INPUT_REQUIRED,
    turn_pb2.TURN_STATUS_COMPLETED: a2a_pb2.TASK_STATE_COMPLETED,
    turn_pb2.TURN_STATUS_FAILED: a2a_pb2.TASK_STATE_FAILED,
    turn_pb2.TURN_STATUS_CANCELLED: a2a_pb2.TASK_STATE_CANCELED,
    turn_pb2.TURN_STATUS_INTERRUPTED: a2a_pb2.TASK_STATE_CANCELED,
}


class A2AServicer(a2a_pb2_grpc.A2AServiceServicer):
    """Serves lf.a2a.v1.A2AService."""

    def __init__(
        self,
        chats: Chats,
        turns: Turns,
        sessions: Sessions,
        watcher: Watcher,
        conversations: Conversations,
        catalog: Catalog,
        *,
        url: str,
    ) -> None:
        """`url`: where the agent's card says that it is."""
        self._chats = chats
        self._turns = turns
        self._sessions = sessions
        self._watcher = watcher
        self._conversations = conversations
        self._catalog = catalog
        self._url = url

    # -- messages

    async def SendMessage(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Begin or go on with a task; answers when it ends or waits for a person, or at once if so asked."""
        user_id = _user()
        task_id, events = await self._send(user_id, request)
        async with aclosing(events) as open_events:  # type: ignore[type-var]
            async for event in open_events:
                if event.WhichOneof("event") == "ended" and event.ended.unsaved:
                    return a2a_pb2.SendMessageResponse(task=_unsaved_task(task_id, event.ended))
                if request.configuration.return_immediately:
                    break
        turn = await self._turn(user_id, task_id)
        return a2a_pb2.SendMessageResponse(
            task=await self._task(user_id, turn, _length(request.configuration, "history_length"))
        )

    async def SendStreamingMessage(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        """Begin or go on with a task, and stream what comes of it."""
        user_id = _user()
        task_id, events = await self._send(user_id, request)
        async for response in self._stream(user_id, task_id, events):
            yield response

    async def SubscribeToTask(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        """Stream what comes of a task that has not ended."""
        user_id = _user()
        turn = await self._turn(user_id, request.id)
        if turn.status in ENDED:
            _refuse("UNSUPPORTED_OPERATION", "the task has ended; GetTask has what became of it")
        async for response in self._stream(user_id, turn.id, self._watcher.follow(user_id, turn.id, 0)):
            yield response

    async def _send(self, user_id: str, request: Any) -> tuple[str, AsyncIterator[turn_pb2.TurnEvent]]:
        message = request.message
        if not message.message_id:
            raise InvalidArgumentError({"message.message_id": "must be set"})
        if message.task_id:
            position = await self._reply(user_id, message)
            return message.task_id, self._watcher.follow(user_id, message.task_id, position)
        chat = _chat_request(request)
        validation.chat(chat)
        self._catalog.find(chat.model)
        if chat.conversation_id:
            # A client may name its context before there is one.
            try:
                await self._conversations.exists(user_id, chat.conversation_id)
            except GaggleError as error:
                if error.reason != error_reason_pb2.ERROR_REASON_NOT_FOUND:
                    raise
                await self._conversations.create(user_id, chat.conversation_id, "")
        return chat.request_id, self._chats.chat(user_id, chat)

    async def _reply(self, user_id: str, message: Any) -> int:
        """Decide on what a task waits for; gives where its stream stands."""
        turn = await self._turn(user_id, message.task_id)
        waiting = [call.id for call in turn.calls if call.status == _WAITING]
        if turn.status != turn_pb2.TURN_STATUS_WAITING_APPROVAL or not waiting:
            _refuse("UNSUPPORTED_OPERATION", "the task does not wait for anything; begin another one in its context")
        text = " ".join(part.text for part in message.parts).strip().lower()
        if text not in {"approve", "deny"}:
            raise InvalidArgumentError({"message.parts": 'must be the text "approve" or "deny"'})
        for call_id in waiting:
            await self._chats.decide(user_id, turn.id, call_id, approve=text == "approve")
        return int(turn.position)

    async def _stream(
        self, user_id: str, task_id: str, events: AsyncIterator[turn_pb2.TurnEvent]
    ) -> AsyncIterator[Any]:
        updates: _Updates | None = None
        async with aclosing(events) as open_events:  # type: ignore[type-var]
            async for event in open_events:
                if updates is None:
                    context_id = event.started.conversation_id or event.queued.conversation_id
                    turn = await self._turn(user_id, task_id) if not context_id else None
                    updates = _Updates(task_id, context_id or (turn.request.conversation_id if turn else ""))
                    yield a2a_pb2.StreamResponse(task=updates.begun())
                for update in updates.of(event):
                    yield update

    # -- tasks

    async def GetTask(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Read a task."""
        user_id = _user()
        return await self._task(user_id, await self._turn(user_id, request.id), _length(request, "history_length"))

    async def ListTasks(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """List the user's tasks, newest first, those of the days that turns are kept for."""
        user_id = _user()
        size = paging.page_size(request.page_size, default=_PAGE, most=_MOST_PAGE)
        scope = ("a2a.ListTasks", user_id, request.context_id, str(request.status))
        cursor = paging.decode(request.page_token, *scope)
        since = request.status_timestamp_after.ToNanoseconds() if request.HasField("status_timestamp_after") else 0
        ids = [one async for one in self._sessions.turn_ids(user_id)]
        start = ids.index(str(cursor["t"])) + 1 if cursor and cursor["t"] in ids else 0
        response = a2a_pb2.ListTasksResponse(page_size=size)
        for turn_id in ids:
            turn = await self._turns.store.turn(user_id, turn_id)
            if turn is None or (request.context_id and turn.request.conversation_id != request.context_id):
                continue
            if (request.status and _STATES[turn.status] != request.status) or _moment(turn) < since:
                continue
            response.total_size += 1
            if ids.index(turn_id) < start:
                continue
            if len(response.tasks) == size:
                response.next_page_token = response.next_page_token or paging.encode(
                    {"t": response.tasks[-1].id}, *scope
                )
                continue
            task = await self._task(user_id, turn, _length(request, "history_length") or 0)
            if not request.include_artifacts:
                del task.artifacts[:]
            response.tasks.append(task)
        return response

    async def CancelTask(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """End a task."""
        user_id = _user()
        turn = await self._turn(user_id, request.id)
        if turn.status in ENDED:
            _refuse("TASK_NOT_CANCELABLE", "the task has ended")
        return await self._task(user_id, await self._chats.cancel(user_id, turn.id), None)

    async def _turn(self, user_id: str, task_id: str) -> document_pb2.TurnDocument:
        turn = await self._turns.store.turn(user_id, task_id) if valid_id(task_id) else None
        if turn is None:
            missing = NotFoundError("task", task_id)
            missing.foreign = (_info("TASK_NOT_FOUND"),)
            raise missing
        return turn

    async def _task(self, user_id: str, turn: document_pb2.TurnDocument, history: int | None) -> Any:
        """Shape a turn; `history`: so many of its newest messages, None: all."""
        task = a2a_pb2.Task(id=turn.id, context_id=turn.request.conversation_id, status=_status(turn))
        if turn.HasField("answer") and turn.status in ENDED:
            task.artifacts.add(artifact_id=ANSWER, parts=[a2a_pb2.Part(text=text_of(turn.answer))])
        if history != 0 and turn.first_sequence:
            conversation_id = turn.request.conversation_id
            last = turn.last_sequence or turn.first_sequence
            found = await self._conversations.span(user_id, conversation_id, turn.first_sequence, last)
            shown = [_message(one, turn) for one in found if not one.hidden_from_user and _parts(one)]
            task.history.extend(shown if history is None else shown[-history:])
        return task

    # -- the card, and what there is not

    async def GetExtendedAgentCard(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Tell what this agent is."""
        card = a2a_pb2.AgentCard(
            name="Gaggle agent",
            description="Answers messages by a model and its tools, in conversations that are kept.",
            version="0.1.0",
            default_input_modes=["text/plain", "image/*"],
            default_output_modes=["text/plain"],
        )
        card.supported_interfaces.add(url=self._url, protocol_binding="GRPC", protocol_version=PROTOCOL_VERSION)
        card.capabilities.streaming = True
        card.capabilities.push_notifications = False
        card.capabilities.extended_agent_card = True
        card.security_schemes["bearer"].http_auth_security_scheme.scheme = "Bearer"
        card.security_requirements.add().schemes["bearer"].SetInParent()
        for model in self._catalog.listed():
            card.skills.add(
                id=model.name,
                name=model.name,
                description=f'{model.description}. Choose it by the metadata "gaggle/model".',
                tags=["chat", *(["tools"] if model.tools else [])],
            )
        return card

    async def CreateTaskPushNotificationConfig(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """There are none."""
        _refuse("PUSH_NOTIFICATION_NOT_SUPPORTED", "subscribe to the task")

    GetTaskPushNotificationConfig = CreateTaskPushNotificationConfig
    ListTaskPushNotificationConfigs = CreateTaskPushNotificationConfig
    DeleteTaskPushNotificationConfig = CreateTaskPushNotificationConfig


class _Updates:
    """A turn's events as the protocol's updates."""

    def __init__(self, task_id: str, context_id: str) -> None:
        self._task_id = task_id
        self._context_id = context_id
        self._append = False

    def begun(self) -> Any:
        """The task as the stream begins."""
        return a2a_pb2.Task(
            id=self._task_id,
            context_id=self._context_id,
            status=a2a_pb2.TaskStatus(state=a2a_pb2.TASK_STATE_SUBMITTED),
        )

    def of(self, event: turn_pb2.TurnEvent) -> list[Any]:
        """Shape an event."""
        kind = event.WhichOneof("event")
        if kind == "started":
            status = a2a_pb2.TaskStatus(state=a2a_pb2.TASK_STATE_WORKING)
            if event.started.history == turn_pb2.HISTORY_UNAVAILABLE:
                status.message.CopyFrom(
                    _say(
                        "There is no history, no tool runs, and nothing is saved.",
                        task_id=self._task_id,
                        context_id=self._context_id,
                    )
                )
            return [self._status(status)]
        if kind == "text_delta":
            artifact = a2a_pb2.Artifact(artifact_id=ANSWER, parts=[a2a_pb2.Part(text=event.text_delta.text)])
            update = a2a_pb2.TaskArtifactUpdateEvent(
                task_id=self._task_id, context_id=self._context_id, artifact=artifact, append=self._append
            )
            self._append = True
            return [a2a_pb2.StreamResponse(artifact_update=update)]
        if kind in {"restarted", "tool_result"}:
            self._append = False
        if kind == "waiting":
            status = a2a_pb2.TaskStatus(state=a2a_pb2.TASK_STATE_INPUT_REQUIRED)
            status.message.CopyFrom(
                _say(
                    'Tools wait for a person: answer "approve" or "deny".',
                    task_id=self._task_id,
                    context_id=self._context_id,
                )
            )
            return [self._status(status)]
        if kind == "ended":
            status = a2a_pb2.TaskStatus(state=_STATES[event.ended.status])
            if event.ended.HasField("error"):
                status.message.CopyFrom(
                    _say(_error_text(event.ended.error), task_id=self._task_id, context_id=self._context_id)
                )
            return [self._status(status)]
        return []

    def _status(self, status: Any) -> Any:
        status.timestamp.GetCurrentTime()
        update = a2a_pb2.TaskStatusUpdateEvent(task_id=self._task_id, context_id=self._context_id, status=status)
        return a2a_pb2.StreamResponse(status_update=update)


def _chat_request(request: Any) -> api.ChatRequest:
    message = request.message
    turn_id = message.message_id
    if not valid_id(turn_id):
        turn_id = hashlib.blake2b(turn_id.encode(), digest_size=16).hexdigest()
    chat = api.ChatRequest(request_id=turn_id, conversation_id=message.context_id)
    for index, part in enumerate(message.parts):
        chat.message.append(_content(index, part))
    for source in (message.metadata, request.metadata):
        told = json_format.MessageToDict(source)
        chat.model = str(told.get("gaggle/model", chat.model))
        extensions = told.get("gaggle/extensions", ())
        if isinstance(extensions, list):
            chat.extensions.extend(str(one) for one in extensions)
    return chat


def _content(index: int, part: Any) -> message_pb2.ContentPart:
    kind = part.WhichOneof("content")
    if kind == "text":
        return message_pb2.ContentPart(text=message_pb2.TextContent(text=part.text))
    if kind == "data":
        return message_pb2.ContentPart(text=message_pb2.TextContent(text=json_format.MessageToJson(part.data)))
    if kind in {"raw", "url"} and part.media_type.startswith("image/"):
        image = message_pb2.ImageContent(mime_type=part.media_type)
        if kind == "raw":
            image.data = part.raw
        else:
            image.uri = part.url
        return message_pb2.ContentPart(image=image)
    error = InvalidArgumentError({f"message.parts[{index}]": "must be a text, data or an image"})
    error.foreign = (_info("CONTENT_TYPE_NOT_SUPPORTED"),)
    raise error


def _status(turn: document_pb2.TurnDocument) -> Any:
    status = a2a_pb2.TaskStatus(state=_STATES[turn.status], timestamp=turn.update_time)
    ids = {"task_id": turn.id, "context_id": turn.request.conversation_id}
    if turn.HasField("error"):
        status.message.CopyFrom(_say(_error_text(turn.error), **ids))
    elif turn.status == turn_pb2.TURN_STATUS_WAITING_APPROVAL:
        names = ", ".join(call.name for call in turn.calls if call.status == _WAITING)
        status.message.CopyFrom(_say(f'{names} wait for a person: answer "approve" or "deny".', **ids))
    return status


def _unsaved_task(task_id: str, ended: turn_pb2.TurnEnded) -> Any:
    """A task that there was no state store for; nobody can ask for it again."""
    task = a2a_pb2.Task(id=task_id, context_id=ended.conversation_id)
    task.status.state = _STATES[ended.status]
    task.status.timestamp.GetCurrentTime()
    task.artifacts.add(artifact_id=ANSWER, parts=[a2a_pb2.Part(text=text_of(ended.message))])
    task.metadata.update({"gaggle/unsaved": True})
    return task


def _message(message: message_pb2.Message, turn: document_pb2.TurnDocument) -> Any:
    role = a2a_pb2.ROLE_USER if message.role == message_pb2.ROLE_USER else a2a_pb2.ROLE_AGENT
    return a2a_pb2.Message(
        message_id=message.id,
        context_id=turn.request.conversation_id,
        task_id=turn.id,
        role=role,
        parts=_parts(message),
    )


def _parts(message: message_pb2.Message) -> list[Any]:
    parts = []
    for part in message.content:
        kind = part.WhichOneof("kind")
        if kind == "text":
            parts.append(a2a_pb2.Part(text=part.text.text))
        elif kind in {"tool_request", "tool_response"}:
            told = json_format.MessageToDict(getattr(part, kind))
            value = struct_pb2.Value()
            json_format.ParseDict({kind: told}, value)
            parts.append(a2a_pb2.Part(data=value))
    return parts


def _say(text: str, *, task_id: str, context_id: str) -> Any:
    return a2a_pb2.Message(
        message_id=f"{task_id}-status",
        task_id=task_id,
        context_id=context_id,
        role=a2a_pb2.ROLE_AGENT,
        parts=[a2a_pb2.Part(text=text)],
    )


def _error_text(error: turn_pb2.TurnError) -> str:
    return f"{error.message} ({error.reason})"


def _moment(turn: document_pb2.TurnDocument) -> int:
    return int(turn.update_time.ToNanoseconds())


def _length(holder: Any, field: str) -> int | None:
    return max(int(getattr(holder, field)), 0) if holder.HasField(field) else None


def _info(reason: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=_DOMAIN)


def _refuse(reason: str, text: str) -> NoReturn:
    error = FailedPreconditionError(text)
    error.foreign = (_info(reason),)
    raise error


def _user() -> str:
    return current_caller().user_id
