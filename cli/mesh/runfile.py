"""dapr.yaml: the mesh in the Dapr CLI's multi-app format, as far as `gaggle up` reads it.

https://docs.dapr.io/developing-applications/local-development/multi-app-dapr-run/multi-app-template/
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cli.errors import CommandError
from cli.mesh.sets import CONFIGURATION


class App(BaseModel):
    """One service and its sidecar. Keys not listed here are the Dapr CLI's business."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    app_id: str = Field(alias="appID")
    app_dir_path: Path = Field(alias="appDirPath")
    app_port: int = Field(alias="appPort", gt=0, lt=65536)
    app_protocol: str = Field(alias="appProtocol", default="grpc")
    dapr_grpc_port: int = Field(alias="daprGRPCPort", gt=0, lt=65536)
    dapr_http_port: int = Field(alias="daprHTTPPort", gt=0, lt=65536)
    dapr_internal_grpc_port: int = Field(alias="daprInternalGRPCPort", gt=0, lt=65536)
    metrics_port: int = Field(alias="metricsPort", gt=0, lt=65536)
    command: list[str] = Field(min_length=1)
    env: dict[str, str] = {}
    resources_paths: list[Path] = Field(alias="resourcesPaths")
    config_file_path: Path = Field(alias="configFilePath")
    max_body_size: str = Field(alias="maxBodySize", default="4Mi")
    enable_app_health_check: bool = Field(alias="enableAppHealthCheck", default=False)
    app_health_probe_interval: int = Field(alias="appHealthProbeInterval", default=5)
    app_health_probe_timeout: int = Field(alias="appHealthProbeTimeout", default=500)
    app_health_threshold: int = Field(alias="appHealthThreshold", default=3)
    log_level: str = Field(alias="logLevel", default="info")

    @property
    def service(self) -> str:
        """The service's name: its folder in services/."""
        return self.env.get("GAGGLE_SERVICE", self.app_id)

    @property
    def service_metrics_port(self) -> int:
        """Where the service itself serves its metrics."""
        return int(self.env["GAGGLE_METRICS_PORT"])

    @property
    def service_http_port(self) -> int | None:
        """Where the service serves HTTP beside gRPC; None: it does not."""
        return int(self.env["GAGGLE_HTTP_PORT"]) if "GAGGLE_HTTP_PORT" in self.env else None


class RunFile(BaseModel):
    """The services of the mesh, `common` merged into each."""

    model_config = ConfigDict(frozen=True)

    path: Path
    apps: list[App]

    @property
    def components(self) -> Path:
        """The folder of the component set: all services stand on one."""
        return self.path.parent / self.apps[0].resources_paths[0]

    def with_components(self, name: str) -> "RunFile":
        """The same services on another set: a folder beside this one's, or a path.

        Raises:
            CommandError: there is no such folder.
        """
        folder = self.components.parent / name
        if not folder.is_dir():
            known = ", ".join(sorted(one.name for one in self.components.parent.iterdir() if one.is_dir()))
            raise CommandError(f"There is no component set {name!r}; there are {known}.")
        swapped = {"resources_paths": [folder.absolute()], "config_file_path": folder.absolute() / CONFIGURATION}
        return RunFile(path=self.path, apps=[app.model_copy(update=swapped) for app in self.apps])

    @classmethod
    def load(cls, path: Path) -> "RunFile":
        """Reads the file.

        Raises:
            CommandError: it is missing or not in the format; the text names the app and the field.
        """
        try:
            document = yaml.safe_load(path.read_text())
        except OSError as error:
            raise CommandError(f"{path} cannot be read: {error.strerror}.") from error
        except yaml.YAMLError as error:
            raise CommandError(f"{path} is not YAML: {error}") from error
        if not isinstance(document, dict) or document.get("version") != 1 or not isinstance(document.get("apps"), list):
            raise CommandError(f"{path} is not a multi-app run file: it needs `version: 1` and a list `apps`.")
        common: dict[str, Any] = document.get("common") or {}
        apps = []
        for entry in document["apps"]:
            merged = common | entry | {"env": (common.get("env") or {}) | (entry.get("env") or {})}
            try:
                app = App.model_validate(merged)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise CommandError(f"{path}: app {entry.get('appID')!r}, {where}: {first['msg']}.") from error
            if "GAGGLE_METRICS_PORT" not in app.env:
                raise CommandError(f"{path}: app {app.app_id!r} has no env GAGGLE_METRICS_PORT.")
            apps.append(app)
        if not apps:
            raise CommandError(f"{path} lists no apps.")
        return cls(path=path, apps=apps)
