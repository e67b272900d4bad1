"""What the audit service is told, beside what every service is."""

from pydantic import Field

from services.runtime.settings import ServiceSettings


class AuditSettings(ServiceSettings):
    """Settings of the audit service."""

    readmodel: str = "readmodel"
    """The output binding (bindings.postgresql) that holds the log and the read model."""

    conversation_service: str = "conversation"
    """The service whose conversations are indexed and reconciled."""

    entity_services: tuple[str, ...] = ("task", "reminder", "notification", "extension", "agent", "recipe")
    """App ids, without the mesh's suffix, of services that own entities and serve EntityOwnerService; a JSON array."""

    bulk_max_messages: int = Field(default=0, ge=0)
    """How many events of a topic are delivered together at most; 0: each alone, several at once.

    Only for brokers whose component gathers deliveries itself, as Kafka's does. Where daprd (1.18) gathers them for the
    component, those that wait when the service dies hold a worker for good, and soon nothing is delivered any more.
    """

    bulk_max_wait_ms: int = Field(default=20, ge=1)
    """How long the first of them waits for the others."""

    index_delay_seconds: float = Field(default=1.0, ge=0)
    """How long after a change messages are fetched for the search index; changes in between are fetched together."""

    index_poll_seconds: float = Field(default=0.5, gt=0)
    """How often the indexer looks for work when it has none."""

    index_concurrency: int = Field(default=2, ge=1)
    """How many conversations are indexed at once."""

    index_lease_seconds: float = Field(default=60.0, gt=0)
    """After so long another process takes over a conversation whose indexing did not end."""

    reconcile_interval_seconds: float = Field(default=300.0, gt=0)
    """From the end of one reconciliation to the start of the next."""

    reconcile_grace_seconds: float = Field(default=10.0, ge=0)
    """How long an event may be under way before it counts as lost."""

    watch_poll_seconds: float = Field(default=1.0, gt=0)
    """How long a watcher may miss what another process logged and whose hint was lost."""

    hints_topic: str = "log-hints"
    """Topic of the fan-out component that wakes watchers in other replicas."""

    watch_heartbeat_seconds: float = Field(default=20.0, gt=0)
    """A stream that has nothing to say says so after so long."""

    erasure_poll_seconds: float = Field(default=1.0, gt=0)
    """How often erasures are looked for."""

    hourly_counts_interval_seconds: float = Field(default=300.0, gt=0)
    """How often the hourly counts are made again."""
