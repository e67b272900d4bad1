"""What lets others look into a running mesh: where Prometheus finds its metrics, and where traces go.

DATA/targets/services.json       service discovery by file, for each scrape job of deploy/observability/prometheus.yml
DATA/targets/sidecars.json
DATA/targets/control-plane.json

One setting is for services and sidecars alike: GAGGLE_OTLP_ENDPOINT, GAGGLE_ZIPKIN_ENDPOINT and
GAGGLE_TRACE_SAMPLE_RATIO of the environment of `gaggle up` go to services as they are, and into each sidecar's
Configuration.
"""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from cli.errors import CommandError
from cli.mesh.data import DataDirectory, write_private
from cli.mesh.description import MeshDescription

OTLP, ZIPKIN, RATIO = "GAGGLE_OTLP_ENDPOINT", "GAGGLE_ZIPKIN_ENDPOINT", "GAGGLE_TRACE_SAMPLE_RATIO"

# Dapr's placement and scheduler have their metrics two ports above their API (see cli.mesh.ports).
_METRICS_ABOVE_API = 2


def write_targets(mesh: MeshDescription, data: DataDirectory) -> None:
    """Writes the files from which Prometheus learns what to scrape; it notices a change by itself."""
    data.targets.mkdir(mode=0o700, exist_ok=True)
    for name, groups in targets(mesh).items():
        write_private(data.targets / f"{name}.json", json.dumps(groups, indent=2) + "\n")


def targets(mesh: MeshDescription) -> dict[str, list[dict[str, Any]]]:
    """Target groups by scrape job, in the format of Prometheus's file_sd_config."""
    services, sidecars = [], []
    for name, service in mesh.services.items():
        for replica in service.replicas:
            labels = {"service": name, "replica": replica.name}
            services.append({"targets": [replica.metrics], "labels": labels})
            sidecars.append({"targets": [replica.sidecar_metrics], "labels": labels})
    control_plane = [
        {"targets": [_metrics_address(address)], "labels": {"service": name, "replica": name}}
        for name, address in (("placement", mesh.placement), ("scheduler", mesh.scheduler))
    ]
    return {"services": services, "sidecars": sidecars, "control-plane": control_plane}


def with_tracing(configuration: dict[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """A sidecar's Configuration that sends traces where the environment says, and samples as it says.

    Raises:
        CommandError: an endpoint is no address, or the ratio no number from 0 to 1.
    """
    tracing = dict(configuration.get("spec", {}).get("tracing", {}))
    if ratio := environment.get(RATIO):
        try:
            valid = 0 <= float(ratio) <= 1
        except ValueError:
            valid = False
        if not valid:
            raise CommandError(f"{RATIO} is {ratio!r}: it takes a number from 0 to 1.")
        tracing["samplingRate"] = ratio
    if endpoint := environment.get(OTLP):
        parts = _address(OTLP, endpoint)
        secure = parts.scheme == "https"
        tracing["otel"] = {"endpointAddress": parts.netloc, "isSecure": secure, "protocol": "grpc"}
    if endpoint := environment.get(ZIPKIN):
        _address(ZIPKIN, endpoint)
        tracing["zipkin"] = {"endpointAddress": endpoint}
    return {**configuration, "spec": {**configuration.get("spec", {}), "tracing": tracing}}


def _address(name: str, endpoint: str) -> Any:
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise CommandError(f"{name} is {endpoint!r}: it takes an address such as http://127.0.0.1:4317.")
    return parts


def _metrics_address(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + _METRICS_ABOVE_API}"
