"""mesh.json: the running mesh, as the command line, the tests and the bench find it."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cli.errors import CommandError, NotRunning
from cli.mesh.data import DataDirectory, write_private
from cli.mesh.sets import BrokerKind


class ReplicaDescription(BaseModel):
    """One service process and its sidecar. Addresses are host:port."""

    model_config = ConfigDict(frozen=True)

    name: str
    address: str
    sidecar_grpc: str
    sidecar_http: str
    sidecar_internal: str
    sidecar_metrics: str
    metrics: str
    http: str | None = None
    """Of a service that serves HTTP beside gRPC."""
    authority: Path | None = None
    """Of a service that serves by TLS: the file of who signed its certificate."""

    @property
    def sidecar_name(self) -> str:
        """The sidecar's name in `processes`."""
        return f"{self.name}.daprd"


class ServiceDescription(BaseModel):
    """A service: its app id, and every replica that shares it."""

    model_config = ConfigDict(frozen=True)

    app_id: str
    replicas: list[ReplicaDescription]

    @property
    def address(self) -> str:
        """gRPC address of the first replica."""
        return self.replicas[0].address

    @property
    def sidecar_grpc(self) -> str:
        """gRPC address of the first replica's sidecar."""
        return self.replicas[0].sidecar_grpc

    @property
    def sidecar_http(self) -> str:
        """HTTP address (host:port) of the first replica's sidecar."""
        return self.replicas[0].sidecar_http


class ProcessDescription(BaseModel):
    """One process; `started`, its creation time as the kernel tells it, sets it apart from a later one of that id."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: float
    log: Path


class MeshDescription(BaseModel):
    """Everything one needs to know to talk to a mesh, or to kill parts of it."""

    model_config = ConfigDict(frozen=True)

    state: Literal["starting", "ready", "stopping"]
    data: Path
    app_id_suffix: str
    port_base: int
    supervisor_pid: int
    control_socket: Path
    services: dict[str, ServiceDescription]
    # The owner of the database, over the Unix socket: "postgresql://gaggle@/gaggle?host=DIRECTORY".
    database_url: str
    component_set: str
    # Whether sidecars have identities, and access is decided by them.
    mtls: bool = False
    # What the set has the services told, by environment variable.
    settings: dict[str, str]
    broker: BrokerKind
    broker_address: str
    placement: str
    scheduler: str
    secrets_file: Path
    jwks_file: Path
    components: Path
    daprd: Path
    # By name: postgres, redis (or epmd and rabbitmq, or kafka),
    # sentry, placement, scheduler, conversation, conversation.daprd, conversation-2, ...
    processes: dict[str, ProcessDescription]

    def write(self, data: DataDirectory) -> None:
        """Replaces mesh.json at once."""
        write_private(data.mesh_file, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "MeshDescription":
        """Reads a mesh.json.

        Raises:
            NotRunning: there is none.
            CommandError: it is of another version of Gaggle.
        """
        try:
            return cls.model_validate_json(path.read_text())
        except FileNotFoundError:
            raise NotRunning(f"No mesh runs on {path.parent}: start one with `gaggle up`.") from None
        except ValidationError as error:
            raise CommandError(f"{path} was written by another version of Gaggle.") from error
