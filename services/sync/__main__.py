"""Starts the sync service."""

from gaggle.audit.v1 import log_service_pb2_grpc
from gaggle.sync.v1 import sync_service_pb2
from services.runtime.errors import UnavailableError
from services.runtime.invocation import Peer
from services.runtime.service import Exposed, Runtime, Wiring, run
from services.sync.domain import Hub
from services.sync.gateway import Gateway
from services.sync.log import AuditLog, Feed
from services.sync.metrics import SyncMetrics
from services.sync.servicer import SYNC_ACCESS, SyncServicer
from services.sync.settings import SyncSettings
from services.sync.watching import Watcher


def build(runtime: Runtime, settings: SyncSettings) -> Wiring:
    """Put the service together."""
    hub = Hub(
        max_clients=settings.max_clients,
        max_clients_per_user=settings.max_clients_per_user,
        pending_events=settings.pending_events,
    )
    log = AuditLog(
        Peer(runtime.sidecar, settings.sibling(settings.audit_service), log_service_pb2_grpc.LogServiceStub),
        # Not `runtime.tokens.issue`: the tokens are there once the service is ready.
        lambda user_id: runtime.tokens.issue(user_id),  # noqa: PLW0108
        concurrency=settings.replay_concurrency,
    )
    metrics = SyncMetrics(runtime.metrics.registry)
    watcher = Watcher(hub, log, metrics, heartbeat_seconds=settings.heartbeat_seconds)
    gateway = Gateway(watcher, runtime.verifier, settings, runtime.metrics)
    servicer = SyncServicer(watcher, send_timeout_seconds=settings.send_timeout_seconds)

    async def let_go() -> None:
        # Clients go to another replica at once, or to the next process here.
        hub.close(UnavailableError("this replica", retry_after_seconds=0.1))

    return Wiring(
        servicers=[Exposed(sync_service_pb2.DESCRIPTOR.services_by_name["SyncService"], servicer, SYNC_ACCESS)],
        start=[gateway.listen],
        background=[Feed(log, hub).run, gateway.serve],
        drain=[let_go],
        keeps_state=False,
        has_events=False,
    )


if __name__ == "__main__":
    run("sync", SyncSettings, build)
