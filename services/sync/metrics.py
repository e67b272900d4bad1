"""What an operator wants to know of streams."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 600)


class SyncMetrics:
    """Counted by this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Make them in the process's registry."""
        self.clients = Gauge("gaggle_sync_clients", "Open streams and sockets", ["way"], registry=registry)
        """Way "grpc" or "websocket"."""

        self.delivered = Counter("gaggle_sync_events_delivered", "Events sent to clients", ["way"], registry=registry)
        self.latency = Histogram(
            "gaggle_sync_delivery_seconds",
            "From a change to its event being sent to a client that watched already",
            buckets=_SECONDS,
            registry=registry,
        )
        self.ended = Counter(
            "gaggle_sync_clients_ended", "Streams and sockets ended by an error", ["way", "reason"], registry=registry
        )
        """Reason as in ErrorReason, without its prefix."""
