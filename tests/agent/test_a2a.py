"""A2A over gRPC, with the official client."""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from a2a.client import ClientConfig, ClientFactory
from a2a.client.client import Client, ClientCallContext
from a2a.client.errors import A2AClientError
from a2a.types import a2a_pb2, a2a_pb2_grpc
from a2a.utils.errors import (
    ContentTypeNotSupportedError,
    PushNotificationNotSupportedError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)

from gaggle.agent.v1 import agent_service_pb2 as api
from gaggle.agent.v1 import session_pb2
from tests.agent.agents import SCRIPTED, Turns, said, spoken
from tests.agent.scripted import ScriptedModel, script
from tests.mesh_fixture import Mesh

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("agents")]


class Agent:
    """The official client, as one user has it."""

    def __init__(self, client: Client, token: str) -> None:
        self.client = client
        self.context = ClientCallContext(service_parameters={"authorization": f"Bearer {token}"})

    async def send(self, text: str, *, model: str = SCRIPTED, **fields: Any) -> list[Any]:
        """Send a text; gives all that is streamed."""
        message = a2a_pb2.Message(
            message_id=fields.pop("message_id", str(uuid.uuid4())),
            role=a2a_pb2.ROLE_USER,
            parts=[a2a_pb2.Part(text=text)],
            **fields,
        )
        message.metadata.update({"gaggle/model": model, "gaggle/extensions": ["odd"] if "odd__" in text else []})
        request = a2a_pb2.SendMessageRequest(message=message)
        return [one async for one in self.client.send_message(request, context=self.context)]


@pytest.fixture(params=[True, False], ids=["streaming", "whole"])
async def agent(agents: Mesh, user: str, request: pytest.FixtureRequest) -> AsyncIterator[Agent]:
    """A client made from the agent's own card."""
    address = agents.service("agent").replicas[0].address
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = a2a_pb2_grpc.A2AServiceStub(channel)  # type: ignore[no-untyped-call]
        card = await stub.GetExtendedAgentCard(
            a2a_pb2.GetExtendedAgentCardRequest(), metadata=agents.metadata(user), timeout=20
        )
    assert card.supported_interfaces[0].url == address
    config = ClientConfig(
        streaming=request.param,
        grpc_channel_factory=grpc.aio.insecure_channel,
        supported_protocol_bindings=["GRPC"],
    )
    client = ClientFactory(config).create(card)
    yield Agent(client, agents.token(user))
    await client.close()


def _answer(responses: list[Any]) -> str:
    """The artifact as a client puts it together."""
    text = ""
    for one in responses:
        if one.HasField("artifact_update"):
            piece = one.artifact_update.artifact.parts[0].text
            text = text + piece if one.artifact_update.append else piece
        elif one.HasField("task") and one.task.artifacts:
            text = one.task.artifacts[0].parts[0].text
    return text


def _state(responses: list[Any]) -> str:
    last = responses[-1]
    status = last.status_update.status if last.HasField("status_update") else last.task.status
    return a2a_pb2.TaskState.Name(status.state).removeprefix("TASK_STATE_").lower()


async def test_messages_and_tasks(agent: Agent, turns: Turns) -> None:
    """A message begins a task in a context; both are the mesh's own turn and conversation."""
    context_id = f"ctx-{uuid.uuid4()}"
    sent = script({"text": "good evening", "pieces": 3})
    first = await agent.send(sent, context_id=context_id, message_id=f"m-{context_id}"[:64])
    assert (_answer(first), _state(first)) == ("good evening", "completed")
    again = await agent.send(sent, context_id=context_id, message_id=f"m-{context_id}"[:64])
    assert _answer(again) == "good evening"
    assert [role for role, _ in spoken(await turns.messages(context_id))] == ["user", "assistant"]
    second = await agent.send(script({"refusal": "no"}), context_id=context_id)
    assert _state(second) == "failed"

    listed = await agent.client.list_tasks(a2a_pb2.ListTasksRequest(context_id=context_id), context=agent.context)
    assert [one.context_id for one in listed.tasks] == [context_id] * 2
    done = a2a_pb2.ListTasksRequest(status=a2a_pb2.TASK_STATE_COMPLETED, page_size=1, include_artifacts=True)
    page = await agent.client.list_tasks(done, context=agent.context)
    assert (page.total_size, page.tasks[0].artifacts[0].parts[0].text) == (1, "good evening")
    task = await agent.client.get_task(a2a_pb2.GetTaskRequest(id=page.tasks[0].id), context=agent.context)
    assert [a2a_pb2.Role.Name(one.role) for one in task.history] == ["ROLE_USER", "ROLE_AGENT"]
    short = await agent.client.get_task(
        a2a_pb2.GetTaskRequest(id=page.tasks[0].id, history_length=1), context=agent.context
    )
    assert [one.parts[0].text for one in short.history] == ["good evening"]


async def test_a_task_that_waits(agent: Agent, turns: Turns, effects: Any) -> None:
    """A tool that waits makes the task INPUT_REQUIRED; a message to the task decides, and it goes on."""
    await turns.load_odd()
    call = ["", "odd__append", json.dumps({"path": effects.path, "text": "allowed"})]
    conversation = await turns.conversation()
    options = api.ChatOptions(approval=session_pb2.ApprovalPolicy(mode=session_pb2.APPROVAL_MODE_APPROVE))
    async for _ in turns.stream(
        conversation_id=conversation,
        model=SCRIPTED,
        extensions=["odd"],
        request_id=f"w-{conversation}",
        message=said(script({"calls": [call]}, {"text": "done"})),
        options=options,
    ):
        pass
    task = await agent.client.get_task(a2a_pb2.GetTaskRequest(id=f"w-{conversation}"), context=agent.context)
    assert task.status.state == a2a_pb2.TASK_STATE_INPUT_REQUIRED
    with pytest.raises(A2AClientError):
        await agent.send("perhaps", task_id=task.id, context_id=conversation)
    rest = await agent.send("approve", task_id=task.id, context_id=conversation)
    assert (_answer(rest), _state(rest)) == ("done", "completed")
    assert effects() == ["allowed"]
    with pytest.raises(UnsupportedOperationError):
        await agent.send("approve", task_id=task.id, context_id=conversation)


@pytest.mark.parametrize("agent", [True], indirect=True, ids=["streaming"])
async def test_cancel_and_subscribe(agent: Agent, turns: Turns, scripted: ScriptedModel) -> None:
    """A running task can be subscribed to and cancelled; an ended one can't."""
    conversation = await turns.conversation()
    gated = script({"text": "slow story", "pieces": 2, "gate": f"a2a-{conversation}"})
    fields = {"conversation_id": conversation, "model": SCRIPTED}
    await turns.until("text_delta", request_id=f"a-{conversation}", message=said(gated), **fields)
    subscription = agent.client.subscribe(a2a_pb2.SubscribeToTaskRequest(id=f"a-{conversation}"), context=agent.context)
    seen = [await anext(subscription)]
    assert seen[0].task.context_id == conversation
    scripted.open(f"a2a-{conversation}")
    seen += [one async for one in subscription]
    assert (_answer(seen), _state(seen)) == ("slow story", "completed")

    forever = script({"text": "never ends", "pieces": 2, "gate": f"closed-{conversation}"})
    await turns.until("text_delta", request_id=f"b-{conversation}", message=said(forever), **fields)
    named = a2a_pb2.CancelTaskRequest(id=f"b-{conversation}")
    cancelled = await agent.client.cancel_task(named, context=agent.context)
    assert cancelled.status.state == a2a_pb2.TASK_STATE_CANCELED
    with pytest.raises(TaskNotCancelableError):
        await agent.client.cancel_task(named, context=agent.context)
    with pytest.raises(UnsupportedOperationError):
        async for _ in agent.client.subscribe(a2a_pb2.SubscribeToTaskRequest(id=named.id), context=agent.context):
            pass


async def test_errors_of_the_protocol(agent: Agent, stranger: Turns) -> None:
    """Errors are the protocol's own; another user's task is not there."""
    await stranger.chat("say x", request_id="theirs")
    for task_id in ("none", "theirs", "a:b"):
        with pytest.raises(TaskNotFoundError):
            await agent.client.get_task(a2a_pb2.GetTaskRequest(id=task_id), context=agent.context)
    with pytest.raises(PushNotificationNotSupportedError):
        await agent.client.create_task_push_notification_config(
            a2a_pb2.TaskPushNotificationConfig(task_id="none"), context=agent.context
        )
    message = a2a_pb2.Message(
        message_id="m", role=a2a_pb2.ROLE_USER, parts=[a2a_pb2.Part(raw=b"x", media_type="audio/wav")]
    )
    with pytest.raises(ContentTypeNotSupportedError):
        async for _ in agent.client.send_message(a2a_pb2.SendMessageRequest(message=message), context=agent.context):
            pass
