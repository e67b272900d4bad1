"""What is to run: replicas of services with their app ids, ports and commands, from dapr.yaml and the command line."""

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.channels import AUTHORITY
from cli.errors import CommandError
from cli.mesh.ports import HIGHEST_BASE, LOWEST_BASE, MOST_REPLICAS, Ports, find_free_base, is_free
from cli.mesh.runfile import App, RunFile


@dataclass(frozen=True)
class Replica:
    """One service process and the sidecar that it shares an app id with. `root` is the folder of dapr.yaml."""

    app: App
    index: int
    app_id: str
    root: Path
    port: int
    sidecar_grpc_port: int
    sidecar_http_port: int
    sidecar_internal_port: int
    sidecar_metrics_port: int
    metrics_port: int
    http_port: int | None = None

    @property
    def directory(self) -> Path:
        """Where the service runs."""
        return (self.root / self.app.app_dir_path).resolve()

    @property
    def service(self) -> str:
        """The service's name."""
        return self.app.service

    @property
    def name(self) -> str:
        """The process's name in the mesh: the service's, with -2, -3, ... for further replicas."""
        return self.service if self.index == 0 else f"{self.service}-{self.index + 1}"

    @property
    def authority(self) -> Path | None:
        """Who signed the certificate of a service that serves by TLS alone (`appProtocol: grpcs`)."""
        named = self.app.env.get(AUTHORITY) if self.app.app_protocol == "grpcs" else None
        return Path(named) if named else None

    @property
    def sidecar_name(self) -> str:
        """The sidecar's name in the mesh."""
        return f"{self.name}.daprd"

    @property
    def ports(self) -> list[int]:
        """Every port that the pair listens on."""
        return [
            self.port,
            self.sidecar_grpc_port,
            self.sidecar_http_port,
            self.sidecar_internal_port,
            self.sidecar_metrics_port,
            self.metrics_port,
            *([] if self.http_port is None else [self.http_port]),
        ]

    @property
    def command(self) -> list[str]:
        """The service's command line, with this very Python in place of `python`."""
        program, *arguments = self.app.command
        return [sys.executable if program in {"python", "python3"} else program, *arguments]


@dataclass(frozen=True)
class Plan:
    """The replicas to run and the ports of everything."""

    replicas: list[Replica]
    ports: Ports

    @property
    def services(self) -> list[str]:
        """Names of the services, in the order of dapr.yaml."""
        return list(dict.fromkeys(replica.service for replica in self.replicas))

    @property
    def listening(self) -> list[int]:
        """Every port of the plan."""
        return [*self.ports.infrastructure, *(port for replica in self.replicas for port in replica.ports)]

    def occupied(self) -> list[int]:
        """The ports of the plan that something else holds."""
        return sorted(port for port in self.listening if not is_free(port))


def make_plan(
    run_file: RunFile,
    *,
    suffix: str = "",
    port_base: int | None = None,
    only: Collection[str] = (),
    replicas: Mapping[str, int] | None = None,
) -> Plan:
    """What `gaggle up` runs.

    Args:
        run_file: the services there are.
        suffix: appended to every app id.
        port_base: first port of the layout; None is dapr.yaml's own, 0 finds a free block.
        only: names of the services to run, all that exist by default; `none` stands for the stores alone.
        replicas: how many of a service, 1 by default, at most 5.

    Raises:
        CommandError: a name is not in the file, or a number is out of bounds.
    """
    replicas = replicas or {}
    known = {app.service: app for app in run_file.apps}
    for name in {*only, *replicas} - {"none"}:
        if name not in known:
            raise CommandError(f"{run_file.path.name} has no service {name!r}; it has {', '.join(known)}.")
    chosen = [app for app in run_file.apps if not only or app.service in only]
    chosen = [app for app in chosen if _exists(app, run_file.path.parent)]
    for name, count in replicas.items():
        if not 1 <= count <= MOST_REPLICAS:
            raise CommandError(f"{name}: 1 to {MOST_REPLICAS} replicas, not {count}.")
    wanted = [(app, index) for app in chosen for index in range(replicas.get(app.service, 1))]
    if port_base is None:
        ports = Ports()
    elif port_base == 0:
        ports = find_free_base([port for app, index in wanted for port in _replica(app, index, Ports(), "").ports])
    elif LOWEST_BASE <= port_base <= HIGHEST_BASE:
        ports = Ports(port_base)
    else:
        raise CommandError(f"--port-base takes 0 or a port from {LOWEST_BASE} to {HIGHEST_BASE}, not {port_base}.")
    root = run_file.path.parent
    return Plan([_replica(app, index, ports, suffix, root) for app, index in wanted], ports)


def _replica(app: App, index: int, ports: Ports, suffix: str, root: Path = Path()) -> Replica:
    http_port = app.service_http_port
    return Replica(
        app=app,
        index=index,
        app_id=f"{app.app_id}{suffix}",
        root=root,
        port=ports.shifted(app.app_port, index),
        sidecar_grpc_port=ports.shifted(app.dapr_grpc_port, index),
        sidecar_http_port=ports.shifted(app.dapr_http_port, index),
        sidecar_internal_port=ports.shifted(app.dapr_internal_grpc_port, index),
        sidecar_metrics_port=ports.shifted(app.metrics_port, index),
        metrics_port=ports.shifted(app.service_metrics_port, index),
        http_port=None if http_port is None else ports.shifted(http_port, index),
    )


def _exists(app: App, root: Path) -> bool:
    """A service listed ahead of its code is left out, unless its command is of another kind than `python -m`."""
    if app.command[:2] not in (["python", "-m"], ["python3", "-m"]):
        return True
    module = (root / app.app_dir_path).joinpath(*app.command[2].split("."))
    return (module / "__main__.py").is_file() or module.with_suffix(".py").is_file()
