"""What an operator wants to know of notifications."""

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 3600, 86_400)


class NotificationMetrics:
    """Counted by this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Make them in the process's registry."""
        self.created = Counter(
            "gaggle_notifications_created", "Notifications put into inboxes", ["kind"], registry=registry
        )
        self.deliveries = Counter("gaggle_deliveries", "Attempts to deliver", ["channel", "outcome"], registry=registry)
        """Outcome "delivered", "failed" (tried again), "parked", "cancelled"."""

        self.lateness = Histogram(
            "gaggle_delivery_lateness_seconds",
            "From when a delivery was first due until it was done",
            buckets=_SECONDS,
            registry=registry,
        )
