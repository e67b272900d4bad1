"""Starts the extension service."""

from gaggle.extension.v1 import extension_service_pb2
from gaggle.owner.v1 import owner_service_pb2
from services.extension.connections import Connections
from services.extension.owning import Owner
from services.extension.peers import Peers
from services.extension.registry import WITHDRAWN, Registry
from services.extension.servicer import EXTENSION_ACCESS, ExtensionServicer
from services.extension.settings import ExtensionSettings
from services.extension.store import ExtensionStore
from services.extension.using import Use
from services.runtime import topics
from services.runtime.callbacks import Subscription
from services.runtime.erasure import Erasure
from services.runtime.ids import new_id
from services.runtime.owning import OWNER_ACCESS, OwnerServicer
from services.runtime.service import Exposed, Runtime, Wiring, run


def build(runtime: Runtime, settings: ExtensionSettings) -> Wiring:
    """Put the service together."""

    def issue(user_id: str) -> str:
        # Not `runtime.tokens.issue`: the tokens are there once the service is ready.
        return runtime.tokens.issue(user_id)

    process = new_id()
    store = ExtensionStore(runtime.state, runtime.outbox)
    registry = Registry(store)
    connections = Connections(store, runtime.secret, settings, process)
    peers = Peers(process, settings.peer_credentials)
    use = Use(store, connections, peers, settings, issue)
    owner = Owner(store, registry, connections)
    erasure = Erasure(runtime.state, runtime.outbox, runtime.name, owner.empty)
    servicer = ExtensionServicer(store, registry, use, peers)
    dead = topics.dead_letter_topic(settings.app_id)
    owners = owner_service_pb2.DESCRIPTOR.services_by_name
    return Wiring(
        servicers=[
            Exposed(extension_service_pb2.DESCRIPTOR.services_by_name["ExtensionService"], servicer, EXTENSION_ACCESS),
            Exposed(owners["EntityOwnerService"], OwnerServicer(owner), OWNER_ACCESS),
        ],
        subscriptions=[Subscription(topics.USER_ERASED, erasure.take, dead_letter_topic=dead)],
        start=[runtime.outbox.start, connections.start],
        background=[connections.check_forever],
        stop=[use.close, connections.stop, peers.close],
        clean_ups={WITHDRAWN: registry.withdraw},
    )


if __name__ == "__main__":
    run("extension", ExtensionSettings, build)
