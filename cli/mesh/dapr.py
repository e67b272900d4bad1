"""Command lines of Dapr's processes: placement, scheduler, and the sidecar of each service. All of it on loopback."""

import functools
import signal
from collections.abc import Mapping
from pathlib import Path

from cli.binaries.dapr import DaprBinaries
from cli.mesh.data import DataDirectory
from cli.mesh.health import http_is_ok
from cli.mesh.identities import PLACEMENT, SCHEDULER, Identities
from cli.mesh.plan import Replica
from cli.mesh.ports import LOOPBACK, Ports, direct_loopback
from cli.mesh.process import Command
from cli.mesh.service import service_health

# Etcd and Raft know their members by these names; jobs survive only under the same one.
# The scheduler's is one of the three that sentry makes certificates for.
_SCHEDULER_ID = "dapr-scheduler-server-0"
_PLACEMENT_ID = "gaggle-placement-0"
_GRACEFUL_SHUTDOWN_SECONDS = 5


def placement_command(
    binaries: DaprBinaries, data: DataDirectory, ports: Ports, identities: Identities | None = None
) -> Command:
    """Placement: where actors and workflows live. It keeps nothing on disk."""
    health = ports.placement + 1
    arguments = [
        str(binaries.placement),
        f"--id={_PLACEMENT_ID}",
        f"--port={ports.placement}",
        f"--listen-address={LOOPBACK}",
        f"--healthz-port={health}",
        f"--healthz-listen-address={LOOPBACK}",
        f"--metrics-port={ports.placement + 2}",
        f"--metrics-listen-address={LOOPBACK}",
        f"--initial-cluster={_PLACEMENT_ID}={LOOPBACK}:{ports.placement + 3}",
        "--log-as-json",
        *(identities.control_plane_arguments if identities else []),
    ]
    return Command(
        name="placement",
        arguments=arguments,
        is_ready=functools.partial(http_is_ok, health, "/healthz"),
        log=data.log("placement"),
        environment=identities.environment(PLACEMENT) if identities else {},
    )


def scheduler_command(
    binaries: DaprBinaries, data: DataDirectory, ports: Ports, identities: Identities | None = None
) -> Command:
    """The scheduler, with its embedded etcd: jobs and workflow reminders lie in the data directory."""
    health = ports.scheduler + 1
    client, peer = ports.scheduler + 3, ports.scheduler + 4
    scheme = "https" if identities else "http"
    arguments = [
        str(binaries.scheduler),
        f"--id={_SCHEDULER_ID}",
        f"--port={ports.scheduler}",
        f"--listen-address={LOOPBACK}",
        f"--override-broadcast-host-port={LOOPBACK}:{ports.scheduler}",
        f"--healthz-port={health}",
        f"--healthz-listen-address={LOOPBACK}",
        f"--metrics-port={ports.scheduler + 2}",
        f"--metrics-listen-address={LOOPBACK}",
        f"--etcd-data-dir={data.scheduler}",
        f"--etcd-client-port={client}",
        f"--etcd-client-listen-address={LOOPBACK}",
        f"--etcd-initial-cluster={_SCHEDULER_ID}={scheme}://{LOOPBACK}:{peer}",
        "--log-as-json",
    ]
    if identities:
        arguments += identities.control_plane_arguments
        # Else in a folder of /tmp that all meshes of a machine share.
        arguments.append(f"--identity-directory-write={identities.folder / 'scheduler'}")
    return Command(
        name="scheduler",
        arguments=arguments,
        is_ready=functools.partial(http_is_ok, health, "/healthz"),
        log=data.log("scheduler"),
        environment=identities.environment(SCHEDULER) if identities else {},
        # Killed outright it leaves its lease of leadership behind, and the next one waits 20 s for that to expire.
        orphan_signal=signal.SIGTERM,
    )


def sidecar_arguments(daprd: Path, replica: Replica, resources: Path, configuration: Path, ports: Ports) -> list[str]:
    """daprd's command line for one replica."""
    app = replica.app
    arguments = [
        str(daprd),
        f"--app-id={replica.app_id}",
        f"--app-port={replica.port}",
        f"--app-protocol={app.app_protocol}",
        f"--dapr-grpc-port={replica.sidecar_grpc_port}",
        f"--dapr-http-port={replica.sidecar_http_port}",
        f"--dapr-listen-addresses={LOOPBACK}",
        # Fixed, since other sidecars remember a name's address for a minute.
        f"--dapr-internal-grpc-port={replica.sidecar_internal_port}",
        f"--dapr-internal-grpc-listen-address={LOOPBACK}",
        f"--metrics-port={replica.sidecar_metrics_port}",
        f"--metrics-listen-address={LOOPBACK}",
        f"--resources-path={resources}",
        f"--config={configuration}",
        f"--placement-host-address={LOOPBACK}:{ports.placement}",
        f"--scheduler-host-address={LOOPBACK}:{ports.scheduler}",
        f"--max-body-size={app.max_body_size}",
        # Left at its own default it would wait for ever in some versions.
        f"--dapr-graceful-shutdown-seconds={_GRACEFUL_SHUTDOWN_SECONDS}",
        f"--log-level={app.log_level}",
        "--log-as-json",
    ]
    if app.enable_app_health_check:
        arguments += [
            "--enable-app-health-check",
            f"--app-health-probe-interval={app.app_health_probe_interval}",
            f"--app-health-probe-timeout={app.app_health_probe_timeout}",
            f"--app-health-threshold={app.app_health_threshold}",
        ]
    return arguments


def sidecar_command(
    binaries: DaprBinaries,
    data: DataDirectory,
    replica: Replica,
    ports: Ports,
    configuration: Path,
    tokens: Mapping[str, str],
    identities: Identities | None = None,
) -> Command:
    """The sidecar of one replica. It is ready once its components are loaded and its service takes calls.

    `tokens` are those by which service and sidecar know each other, by environment variable.
    """
    health = service_health(replica)
    arguments = sidecar_arguments(binaries.daprd, replica, data.components, configuration, ports)
    # In traces a sidecar's spans are apart from its service's.
    environment = {**tokens, "OTEL_SERVICE_NAME": f"{replica.service}.daprd", **direct_loopback()}
    if identities:
        arguments += identities.sidecar_arguments
        environment |= identities.environment(replica.app_id)

    async def is_ready() -> bool:
        return await http_is_ok(replica.sidecar_http_port, "/v1.0/healthz") and await health.takes_calls()

    return Command(
        name=replica.sidecar_name,
        arguments=arguments,
        is_ready=is_ready,
        close=health.close,
        log=data.log(replica.sidecar_name),
        environment=environment,
        directory=replica.directory,
    )
