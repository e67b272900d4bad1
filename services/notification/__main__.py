"""Starts the notification service."""

import socket

from gaggle.notification.v1 import notification_service_pb2
from gaggle.owner.v1 import owner_service_pb2
from services.notification.delivering import Delivery
from services.notification.handlers import Events
from services.notification.mail import Mailer
from services.notification.metrics import NotificationMetrics
from services.notification.owning import Owner
from services.notification.reading import Reader
from services.notification.servicer import NOTIFICATION_ACCESS, NotificationServicer
from services.notification.settings import NotificationSettings
from services.notification.store import NotificationStore
from services.notification.sweeping import Sweep
from services.notification.tokens import UnsubscribeTokens
from services.notification.web import UnsubscribePage
from services.notification.webhook import Webhooks
from services.notification.writing import Writer
from services.runtime import topics
from services.runtime.erasure import Erasure
from services.runtime.owning import OWNER_ACCESS, OwnerServicer
from services.runtime.service import Exposed, Runtime, Wiring, run


def build(runtime: Runtime, settings: NotificationSettings) -> Wiring:
    """Put the service together."""
    metrics = NotificationMetrics(runtime.metrics.registry)
    store = NotificationStore(runtime.state, runtime.outbox)
    tokens = UnsubscribeTokens()
    mailer = Mailer(settings, runtime.secret, tokens)
    webhooks = Webhooks(settings)
    holder = f"{settings.app_id}@{socket.gethostname()}:{settings.port}"
    delivery = Delivery(store, mailer, webhooks, settings, metrics, holder=holder)
    writer = Writer(store, delivery, tokens, settings, metrics)
    page = UnsubscribePage(writer, settings.host, settings.unsubscribe_port)
    servicer = NotificationServicer(writer, Reader(store), settings.webhook_allowed_networks)
    owner = Owner(store)
    erasure = Erasure(runtime.state, runtime.outbox, runtime.name, owner.empty)
    events = Events(writer, {topics.USER_ERASED: erasure.take})
    services = notification_service_pb2.DESCRIPTOR.services_by_name
    owners = owner_service_pb2.DESCRIPTOR.services_by_name

    async def load_key() -> None:
        tokens.use(await runtime.secret(f"service-key-{runtime.name}"))

    return Wiring(
        servicers=[
            Exposed(services["NotificationService"], servicer, NOTIFICATION_ACCESS),
            Exposed(owners["EntityOwnerService"], OwnerServicer(owner), OWNER_ACCESS),
        ],
        subscriptions=events.subscriptions(topics.dead_letter_topic(settings.app_id)),
        start=[runtime.outbox.start, load_key, page.start],
        background=[delivery.run, Sweep(store, delivery, settings).run],
        stop=[page.stop],
    )


if __name__ == "__main__":
    run("notification", NotificationSettings, build)
