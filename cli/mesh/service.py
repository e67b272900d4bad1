"""Command line and environment of one service process."""

from collections.abc import Mapping

from cli.mesh.data import DataDirectory
from cli.mesh.health import GrpcHealth
from cli.mesh.plan import Replica
from cli.mesh.ports import direct_loopback
from cli.mesh.process import Command


def service_environment(
    replica: Replica, settings: Mapping[str, str], *, suffix: str, tokens: Mapping[str, str]
) -> dict[str, str]:
    """What the Dapr CLI sets for an app, and what is Gaggle's own beside it; `settings` go with the component set."""
    return {
        **settings,
        **replica.app.env,
        "APP_ID": replica.app_id,
        "APP_PORT": str(replica.port),
        "APP_PROTOCOL": replica.app.app_protocol,
        **tokens,
        "DAPR_GRPC_PORT": str(replica.sidecar_grpc_port),
        "DAPR_HTTP_PORT": str(replica.sidecar_http_port),
        "DAPR_METRICS_PORT": str(replica.sidecar_metrics_port),
        "GAGGLE_SERVICE": replica.service,
        "GAGGLE_APP_ID_SUFFIX": suffix,
        "GAGGLE_METRICS_PORT": str(replica.metrics_port),
        **({} if replica.http_port is None else {"GAGGLE_HTTP_PORT": str(replica.http_port)}),
        **direct_loopback(),
        # A line that waits in a buffer is lost when the process is killed.
        "PYTHONUNBUFFERED": "1",
    }


def service_command(data: DataDirectory, replica: Replica, environment: dict[str, str]) -> Command:
    """One service process; it is ready when its grpc.health.v1 says SERVING."""
    health = service_health(replica)
    return Command(
        name=replica.name,
        arguments=replica.command,
        is_ready=health.is_serving,
        close=health.close,
        log=data.log(replica.name),
        environment=environment,
        directory=replica.directory,
    )


def service_health(replica: Replica) -> GrpcHealth:
    """The health of a service."""
    return GrpcHealth(replica.port, replica.authority)
