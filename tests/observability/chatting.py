"""A chat with an assistant whose tool sets a reminder."""

import sys
from pathlib import Path
from typing import Any

from gaggle.agent.v1 import agent_service_pb2, agent_service_pb2_grpc, turn_pb2
from gaggle.conversation.v1 import conversation_service_pb2, conversation_service_pb2_grpc
from gaggle.extension.v1 import extension_pb2, extension_service_pb2, extension_service_pb2_grpc
from tests.agent.agents import said
from tests.mesh_fixture import Mesh
from tests.observability.tracing import Trace, metadata

ASSISTANT = (sys.executable, str(Path(__file__).with_name("assistant_server.py")))
"""What extensions of the mesh must be allowed to run."""

_SECONDS = 60.0


async def chat(mesh: Mesh, user: str, trace: Trace, text: str) -> None:
    """Say one thing in a new conversation, with the assistant's tools; only this is in the trace."""
    plain = mesh.metadata(user)
    async with (
        mesh.channel("conversation") as conversation,
        mesh.channel("extension") as extension,
        mesh.channel("agent") as agent,
    ):
        conversations: Any = conversation_service_pb2_grpc.ConversationServiceStub(conversation)
        create = conversation_service_pb2.CreateConversationRequest()
        created = await conversations.CreateConversation(create, metadata=plain, timeout=_SECONDS)
        extensions: Any = extension_service_pb2_grpc.ExtensionServiceStub(extension)
        command, *arguments = ASSISTANT
        stdio = extension_pb2.StdioConfig(
            cmd=command, args=[*arguments, mesh.service("task").address], envs={"TOKEN": mesh.token(user)}
        )
        config = extension_pb2.ExtensionConfig(name="assistant", stdio=stdio)
        register = extension_service_pb2.RegisterExtensionRequest(config=config)
        await extensions.RegisterExtension(register, metadata=plain, timeout=_SECONDS)
        load = extension_service_pb2.LoadExtensionRequest(name="assistant")
        await extensions.LoadExtension(load, metadata=plain, timeout=_SECONDS)
        agents: Any = agent_service_pb2_grpc.AgentServiceStub(agent)
        request = agent_service_pb2.ChatRequest(
            conversation_id=created.conversation.id, message=said(text), model="offline", extensions=["assistant"]
        )
        sent = agents.Chat(request, metadata=metadata(mesh, user, trace), timeout=_SECONDS)
        events = [one.event async for one in sent]
    assert events[-1].ended.status == turn_pb2.TURN_STATUS_COMPLETED, events
