"""Starts the agent service."""

import socket

from gaggle.agent.v1 import agent_service_pb2, chat_service_pb2
from gaggle.conversation.v1 import conversation_service_pb2_grpc
from gaggle.extension.v1 import extension_service_pb2_grpc
from gaggle.owner.v1 import owner_service_pb2
from services.agent.a2a import A2A_ACCESS, SERVICE, A2AServicer
from services.agent.chat_service import ChatServicer
from services.agent.chatting import Chats
from services.agent.metrics import AgentMetrics
from services.agent.models.catalog import Catalog
from services.agent.owning import Owner
from services.agent.peers import Conversations, Extensions
from services.agent.running import Parts
from services.agent.runs import Runs
from services.agent.servicer import AGENT_ACCESS, AgentServicer
from services.agent.sessions import Sessions
from services.agent.settings import AgentSettings
from services.agent.store import AgentStore
from services.agent.turns import Turns
from services.agent.watching import Watcher
from services.runtime import topics
from services.runtime.callbacks import Subscription
from services.runtime.erasure import Erasure
from services.runtime.invocation import Peer
from services.runtime.owning import OWNER_ACCESS, OwnerServicer
from services.runtime.service import Exposed, Runtime, Wiring, run


def build(runtime: Runtime, settings: AgentSettings) -> Wiring:
    """Put the service together."""

    def issue(user_id: str) -> str:
        # Not `runtime.tokens.issue`: the tokens are there once the service is ready.
        return runtime.tokens.issue(user_id)

    store = AgentStore(runtime.state, runtime.outbox)
    sessions = Sessions(store)
    catalog = Catalog(settings, runtime.sidecar, runtime.secret)
    conversation = Peer(
        runtime.sidecar,
        settings.sibling(settings.conversation_app),
        conversation_service_pb2_grpc.ConversationServiceStub,
    )
    extension = Peer(
        runtime.sidecar, settings.sibling(settings.extension_app), extension_service_pb2_grpc.ExtensionServiceStub
    )
    conversations = Conversations(conversation, issue)
    # As the outbox names it: the process that comes back in its place knows its predecessor's turns as its own.
    holder = f"{settings.app_id}@{socket.gethostname()}:{settings.port}"
    turns = Turns(store, sessions, conversations, catalog, settings, holder)
    metrics = AgentMetrics(runtime.metrics.registry)
    parts = Parts(turns, sessions, conversations, Extensions(extension, issue), catalog, settings, metrics)
    runs = Runs(parts)
    watcher = Watcher(store, runs, poll_seconds=settings.checkpoint_seconds)
    chats = Chats(turns, runs, watcher, catalog, settings)
    owner = Owner(store, sessions, runs)
    erasure = Erasure(runtime.state, runtime.outbox, runtime.name, owner.empty)
    services = agent_service_pb2.DESCRIPTOR.services_by_name
    chat_services = chat_service_pb2.DESCRIPTOR.services_by_name
    owners = owner_service_pb2.DESCRIPTOR.services_by_name
    dead = topics.dead_letter_topic(settings.app_id)
    return Wiring(
        servicers=[
            Exposed(
                services["AgentService"],
                AgentServicer(store, chats, turns, sessions, watcher, catalog),
                AGENT_ACCESS,
            ),
            Exposed(chat_services["ChatService"], ChatServicer(chats, conversations, settings), AGENT_ACCESS),
            Exposed(
                SERVICE,
                A2AServicer(
                    chats, turns, sessions, watcher, conversations, catalog, url=f"{settings.host}:{settings.port}"
                ),
                A2A_ACCESS,
            ),
            Exposed(owners["EntityOwnerService"], OwnerServicer(owner), OWNER_ACCESS),
        ],
        subscriptions=[Subscription(topics.USER_ERASED, erasure.take, dead_letter_topic=dead)],
        start=[runtime.outbox.start],
        background=[runs.recover_forever],
        stop=[runs.stop],
    )


if __name__ == "__main__":
    run("agent", AgentSettings, build)
