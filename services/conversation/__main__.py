"""Starts the conversation service."""

from gaggle.audit.v1 import audit_service_pb2_grpc
from gaggle.conversation.v1 import conversation_service_pb2, owner_service_pb2
from services.conversation.index import UserIndexes
from services.conversation.owning import Owner
from services.conversation.reading import Reader
from services.conversation.servicer import CONVERSATION_ACCESS, OWNER_ACCESS, ConversationServicer, OwnerServicer
from services.conversation.settings import ConversationSettings
from services.conversation.store import PAGE_CLEAN_UP, ConversationStore, WindowCache
from services.conversation.watching import Watcher
from services.conversation.writing import Writer
from services.runtime import topics
from services.runtime.callbacks import Subscription
from services.runtime.hints import Hints
from services.runtime.invocation import Peer
from services.runtime.service import Exposed, Runtime, Wiring, run


def build(runtime: Runtime, settings: ConversationSettings) -> Wiring:
    """Put the service together."""
    windows = WindowCache(settings.cached_window_bytes, settings.window_staleness_seconds)
    store = ConversationStore(runtime.state, runtime.outbox, windows)
    hints_topic = settings.own(settings.hints_topic)
    hints = Hints(runtime.sidecar, settings.fanout_pubsub, hints_topic)
    store.changed = hints.changed
    indexes = UserIndexes(runtime.state)
    writer = Writer(store, indexes, settings)
    owner = Owner(store, indexes, writer, runtime.name)
    servicer = ConversationServicer(
        store,
        writer,
        Reader(store, indexes, settings),
        Watcher(store, hints, settings.watch_poll_seconds),
        owner,
        Peer(runtime.sidecar, settings.sibling(settings.audit_app), audit_service_pb2_grpc.AuditServiceStub),
    )
    dead = topics.dead_letter_topic(settings.app_id)
    services = conversation_service_pb2.DESCRIPTOR.services_by_name
    owners = owner_service_pb2.DESCRIPTOR.services_by_name
    return Wiring(
        servicers=[
            Exposed(services["ConversationService"], servicer, CONVERSATION_ACCESS),
            Exposed(owners["OwnerService"], OwnerServicer(owner), OWNER_ACCESS),
        ],
        subscriptions=[
            Subscription(topics.USER_ERASED, owner.on_user_erased, dead_letter_topic=dead),
            Subscription(topics.USER_ERASURE_COMPLETED, owner.on_erasure_completed, dead_letter_topic=dead),
            Subscription(hints_topic, hints.receive, pubsub=settings.fanout_pubsub),
        ],
        start=[runtime.outbox.start],
        background=[hints.send, lambda: owner.sweep_forever(settings.sweep_seconds)],
        clean_ups={PAGE_CLEAN_UP: store.clean_up},
    )


if __name__ == "__main__":
    run("conversation", ConversationSettings, build)
