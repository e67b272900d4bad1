"""A sidecar by itself, with no app behind it and none of a mesh's other parts."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import yaml

from cli.binaries.dapr import dapr_binaries
from cli.mesh.components import effective_component
from cli.mesh.data import write_private

_PORTS = ("dapr-grpc-port", "dapr-http-port", "dapr-internal-grpc-port", "metrics-port")


@contextlib.asynccontextmanager
async def lone_sidecar(
    folder: Path, app_id: str, components: Iterable[dict[str, Any]], secrets: dict[str, Any] | None = None
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """daprd with these components, scoped to it; its process, and its gRPC port. Its log is `folder`/daprd.log.

    With `secrets` a store of secrets among the components serves them, whatever its kind.
    """
    secrets_file = folder / "secrets.json"
    if secrets is not None:
        write_private(secrets_file, json.dumps(secrets))
    resources = folder / "components"
    resources.mkdir()
    for document in components:
        scoped = document | {"scopes": [app_id]}
        effective = scoped if secrets is None else effective_component(scoped, secrets_file, "")
        (resources / f"{document['metadata']['name']}.yaml").write_text(yaml.safe_dump(effective))
    ports = _free_ports()
    with (folder / "daprd.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(dapr_binaries(lambda _what, _packages: None).daprd),
            f"--app-id={app_id}",
            *(f"--{name}={port}" for name, port in zip(_PORTS, ports, strict=True)),
            "--dapr-listen-addresses=127.0.0.1",
            "--dapr-internal-grpc-listen-address=127.0.0.1",
            "--metrics-listen-address=127.0.0.1",
            "--dapr-graceful-shutdown-seconds=1",
            f"--resources-path={resources}",
            stdout=log,
            stderr=log,
        )
    try:
        yield process, ports[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _free_ports() -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in _PORTS]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
