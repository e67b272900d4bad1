"""`gaggle cluster`: the secrets that the Helm chart and the compose file want, and whether services are ready there."""

import asyncio
import json
import os
import secrets as randomness
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from cli.channels import open_channel
from cli.errors import CommandError
from cli.mesh.data import PROJECT_ROOT, DataDirectory, write_private
from cli.mesh.runfile import RunFile
from cli.mesh.secrets import GOOSE_SCHEMA, secret_name

app = typer.Typer(help="A mesh on Kubernetes or in containers (deploy/).", no_args_is_help=True)

_COMPOSE = PROJECT_ROOT / "deploy" / "compose"
_TOKEN_BYTES = 24
_READY = "ready"

KeysOption = Annotated[
    Path, typer.Option("--data", help="The folder that keeps the keys; needed again by `gaggle token --data`.")
]


@app.callback()
def cluster() -> None:
    """A mesh on Kubernetes or in containers."""


@app.command(epilog="Example: gaggle cluster secrets | kubectl -n gaggle apply -f -")
def secrets(*, data: KeysOption = Path(".gaggle-cluster")) -> None:
    """Print the mesh's own secrets as manifests: signing keys, and the tokens between services and their sidecars.

    They are drawn once and kept in the folder: the same ones are printed the next time. The stores' secrets
    (connection strings, the broker's password) are not among them.
    """
    directory = DataDirectory.at(data)
    typer.echo(yaml.safe_dump_all(secret_manifests(directory, _services()), sort_keys=False), nl=False)


@app.command(
    epilog="Example: gaggle cluster compose && docker compose -f deploy/compose/compose.yaml up --build --wait"
)
def compose(*, folder: Annotated[Path, typer.Option(help="Where compose.yaml lies.")] = _COMPOSE) -> None:
    """Draw what the compose file reads: .env (passwords), secrets.json and keys/, all for this user alone.

    What is there already is kept, since the stores' volumes know the passwords.
    """
    write_compose_secrets(folder, _services())
    typer.echo(f"{folder}: .env, secrets.json, keys/")


@app.command(epilog="Example: gaggle cluster ready gaggle-conversation.gaggle.svc:50051")
def ready(
    addresses: Annotated[list[str], typer.Argument(help="host:port of services; https://host:port by TLS.")],
    *,
    timeout: Annotated[float, typer.Option(help="Seconds that each may take.")] = 30.0,
) -> None:
    """Ask services, all at once, whether they take calls (grpc.health.v1, `ready`); fail if one does not."""

    async def ask_all() -> list[str]:
        return await asyncio.gather(*(_health(one, timeout_seconds=timeout) for one in addresses))

    statuses = dict(zip(addresses, asyncio.run(ask_all()), strict=True))
    for address, status in statuses.items():
        typer.echo(f"{address}: {status}")
    if away := [f"{address} is {status}" for address, status in statuses.items() if status != "SERVING"]:
        raise CommandError(f"{'; '.join(away)}.")


def write_compose_secrets(folder: Path, services: Iterable[str]) -> None:
    """Writes .env and secrets.json into the folder of compose.yaml."""
    keys = DataDirectory.at(folder)
    manifests = {one["metadata"]["name"]: one["stringData"] for one in secret_manifests(keys, services)}
    drawn = {
        name: _kept(keys.keys / name.lower()) for name in ("POSTGRES_PASSWORD", "RABBITMQ_PASSWORD", "APP_API_TOKEN")
    }
    database = f"postgresql://gaggle:{drawn['POSTGRES_PASSWORD']}@postgres:5432/gaggle?sslmode=disable"
    broker = f"amqp://gaggle:{drawn['RABBITMQ_PASSWORD']}@rabbitmq:5672/gaggle"
    stores = {
        "postgresql-secrets": {
            "connection-string": database,
            "connection-string-goose": f"{database}&{GOOSE_SCHEMA}",
        },
        # No authority of one's own: without TLS there is nothing to hold a certificate against.
        "rabbitmq-secrets": {"connection-string": broker, "ca-cert": ""},
    }
    served = {name: data for name, data in manifests.items() if "token" not in data}
    write_private(folder / "secrets.json", json.dumps(served | stores, indent=2, sort_keys=True) + "\n")
    lines = {**drawn, "GAGGLE_USER": f"{os.getuid()}:{os.getgid()}"}
    write_private(folder / ".env", "".join(f"{name}={value}\n" for name, value in lines.items()))


def secret_manifests(directory: DataDirectory, services: Iterable[str]) -> list[dict[str, Any]]:
    """The Secrets: token-jwks, issuer-key, and of each service service-key-S, app-token-S and dapr-token-S."""
    from cli.mesh.keys import ISSUER_KEY_ID, ensure_keys, jwks, private_jwk

    services = list(services)
    directory.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.keys.mkdir(mode=0o700, exist_ok=True)
    keys = ensure_keys(directory, services)
    values = {"token-jwks": {"token-jwks": jwks(keys)}}
    for key_id in (ISSUER_KEY_ID, *services):
        name = secret_name(key_id)
        values[name] = {name: private_jwk(keys[key_id])}
    for service in services:
        for name in (f"app-token-{service}", f"dapr-token-{service}"):
            # The key that Dapr's injector looks for.
            values[name] = {"token": _kept(directory.keys / name)}
    return [_secret(name, data) for name, data in values.items()]


def _services() -> list[str]:
    return [one.service for one in RunFile.load(PROJECT_ROOT / "dapr.yaml").apps]


def _secret(name: str, data: dict[str, str]) -> dict[str, Any]:
    labels = {"app.kubernetes.io/part-of": "gaggle"}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": labels},
        "type": "Opaque",
        "stringData": data,
    }


def _kept(path: Path) -> str:
    if not path.exists():
        write_private(path, randomness.token_urlsafe(_TOKEN_BYTES))
    return path.read_text().strip()


async def _health(address: str, *, timeout_seconds: float) -> str:
    import grpc.aio
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with open_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=_READY)
        try:
            answer = await stub.Check(request, timeout=timeout_seconds, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            return error.code().name
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
