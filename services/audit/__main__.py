"""Starts the audit service."""

from gaggle.audit.v1 import audit_service_pb2, log_service_pb2
from services.audit.entities import EntityOwner
from services.audit.erasing import Erasure
from services.audit.handlers import LogWriter, TopicLog
from services.audit.indexing import Indexer, IndexPace
from services.audit.owner import ConversationOwner
from services.audit.publishing import EventPublisher
from services.audit.rebuilding import Rebuild
from services.audit.reconciliation import EntityReconciliation, Pace, Reconciliation
from services.audit.servicer import AUDIT_ACCESS, LOG_ACCESS, AuditServicer, LogServicer
from services.audit.settings import AuditSettings
from services.audit.store import AuditStore
from services.audit.tail import LogTail
from services.audit.upkeep import Upkeep
from services.runtime import topics
from services.runtime.callbacks import BulkOptions, Subscription
from services.runtime.hints import Hints
from services.runtime.ids import new_id
from services.runtime.service import Exposed, Runtime, Wiring, run


def build(runtime: Runtime, settings: AuditSettings) -> Wiring:
    """Put the service together."""
    holder = f"{settings.app_id}.{new_id()}"
    store = AuditStore(runtime.sidecar, settings.readmodel, index_delay_seconds=settings.index_delay_seconds)
    hints_topic = settings.own(settings.hints_topic)
    hints = Hints(runtime.sidecar, settings.fanout_pubsub, hints_topic)
    tail = LogTail(store, hints, poll_seconds=settings.watch_poll_seconds)
    upkeep = Upkeep(store, hourly_counts_interval_seconds=settings.hourly_counts_interval_seconds)

    def logged(head: int) -> None:
        tail.logged(head)
        upkeep.logged(head)

    log = TopicLog(LogWriter(store, logged), store)

    def issue(user_id: str) -> str:
        # The tokens are there once the service is ready.
        return runtime.tokens.issue(user_id)

    owner = ConversationOwner(runtime.sidecar, settings.sibling(settings.conversation_service), issue)
    pace = IndexPace(settings.index_poll_seconds, settings.index_concurrency, settings.index_lease_seconds)
    indexer = Indexer(store, owner, pace)
    rounds = Pace(holder, settings.reconcile_interval_seconds, settings.reconcile_grace_seconds)
    others = [
        EntityReconciliation(store, EntityOwner(runtime.sidecar, settings.sibling(one), issue), rounds)
        for one in settings.entity_services
    ]
    reconciliations: list[Reconciliation | EntityReconciliation] = [
        Reconciliation(store, owner, rounds),
        *others,
    ]
    erasure = Erasure(store, runtime.sidecar, pubsub=settings.pubsub, poll_seconds=settings.erasure_poll_seconds)
    servicer = AuditServicer(
        store,
        tail,
        EventPublisher(runtime.sidecar, settings.pubsub),
        Rebuild(store, owner, indexer, others, holder=holder),
        heartbeat_seconds=settings.watch_heartbeat_seconds,
    )
    log_servicer = LogServicer(store, tail, heartbeat_seconds=settings.watch_heartbeat_seconds)
    dead_letters = topics.dead_letter_topic(settings.app_id)
    bulk = BulkOptions(settings.bulk_max_messages, settings.bulk_max_wait_ms) if settings.bulk_max_messages else None

    return Wiring(
        servicers=[
            Exposed(audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"], servicer, AUDIT_ACCESS),
            Exposed(log_service_pb2.DESCRIPTOR.services_by_name["LogService"], log_servicer, LOG_ACCESS),
        ],
        subscriptions=[
            *(Subscription(topic, log.take, bulk=bulk, dead_letter_topic=dead_letters) for topic in topics.ALL_TOPICS),
            Subscription(dead_letters, log.take_late, raw=True),
            Subscription(hints_topic, hints.receive, pubsub=settings.fanout_pubsub),
        ],
        background=[
            tail.run,
            hints.send,
            indexer.run,
            *(one.run for one in reconciliations),
            erasure.run,
            upkeep.renew_statistics,
            upkeep.refresh_hourly_counts,
        ],
        drain=[tail.close],
        keeps_state=False,
    )


if __name__ == "__main__":
    run("audit", AuditSettings, build)
