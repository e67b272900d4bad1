"""The chart by itself: Helm's own checks, and what it makes of its values."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from cli.binaries.cluster import HELM, KUBERNETES_VERSION
from cli.mesh.data import PROJECT_ROOT
from cli.mesh.runfile import RunFile
from tests.cluster.conftest import CHART
from tests.cluster.policies import World, isolations, passes

_VALUES = {
    "default": [],
    "local": ["-f", str(CHART / "values-local.yaml")],
    "production": ["-f", str(CHART / "values-production.yaml")],
    "rabbitmq": ["--set=components.set=rabbitmq"],
    "todo": ["--set=components.set=todo"],
    "hpa": ["--set=autoscaling.mode=hpa"],
}


def _helm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(HELM.path), *arguments], capture_output=True, text=True, check=False)


def _rendered(values: Sequence[str]) -> list[dict[str, Any]]:
    result = _helm("template", "gaggle", str(CHART), "-n", "mesh", f"--kube-version={KUBERNETES_VERSION}", *values)
    assert result.returncode == 0, result.stderr
    return [one for one in yaml.safe_load_all(result.stdout) if one]


@pytest.mark.parametrize("values", _VALUES.values(), ids=_VALUES.keys())
def test_helm_finds_nothing_wrong(values: list[str]) -> None:
    """`helm lint --strict` passes with each set of values that we ship."""
    result = _helm("lint", "--strict", str(CHART), f"--kube-version={KUBERNETES_VERSION}", *values)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 chart(s) failed" in result.stdout


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("services.conversation.replica=2", "replica"),
        ("components.set=local", "set"),
        ("autoscaling.mode=keda", "bootstrapServers"),
        ("image.digest=latest", "digest"),
        ("clients[0].appId=web", "may"),
    ],
)
def test_a_misspelt_value_is_refused(wrong: str, named: str) -> None:
    """Values are held to a schema: what is misspelt or missing is named, and nothing is installed."""
    result = _helm("template", "gaggle", str(CHART), f"--set={wrong}")
    assert result.returncode != 0
    assert named in result.stderr


@pytest.mark.parametrize("name", ["kafka", "kafka-cloud", "rabbitmq", "todo"])
def test_components_are_those_of_the_repository(name: str) -> None:
    """What the chart installs as components is dapr-components/, item by item."""
    rendered = _rendered([f"--set=components.set={name}"])
    committed = {}
    for file in sorted((CHART / "files" / "components" / name).glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            if document["kind"] != "Configuration":
                committed[document["kind"], document["metadata"]["name"]] = {
                    key: value for key, value in document.items() if key != "metadata"
                }
    installed = {
        (one["kind"], one["metadata"]["name"]): {key: value for key, value in one.items() if key != "metadata"}
        for one in rendered
        if one["kind"] in {"Component", "Resiliency", "Subscription"}
    }
    assert installed == committed
    settings = next(one for one in rendered if one["kind"] == "ConfigMap")["data"]
    lines = (CHART / "files" / "components" / name / "settings.env").read_text().splitlines()
    assert settings == dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_services_are_told_what_dapr_yaml_tells_them() -> None:
    """What a service needs in its environment on one machine it has in the cluster, too; ports aside."""
    deployments = {one["metadata"]["name"]: one for one in _rendered([]) if one["kind"] == "Deployment"}
    told = 0
    for app in RunFile.load(PROJECT_ROOT / "dapr.yaml").apps:
        (container,) = deployments[f"gaggle-{app.service}"]["spec"]["template"]["spec"]["containers"]
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert container["command"] == app.command
        for name, value in app.env.items():
            if not name.endswith("_PORT"):
                assert environment[name] == value, (app.service, name)
                told += 1
    assert told > len(deployments)


def test_overrides_change_one_item_and_nothing_else() -> None:
    """Production's pooled PostgreSQL is the committed component with other numbers."""
    plain = {item["name"]: item for item in _component(_rendered(["--set=components.set=kafka-cloud"]))}
    pooled = {item["name"]: item for item in _component(_rendered(_VALUES["production"]))}
    changed = {"maxConns": "20", "queryExecMode": "exec"}
    assert {name: item["value"] for name, item in pooled.items() if name in changed} == changed
    assert {n: i for n, i in pooled.items() if n not in changed} == {n: i for n, i in plain.items() if n not in changed}


def _component(rendered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    (found,) = (one for one in rendered if one["metadata"]["name"] == "postgres-statestore")
    items: list[dict[str, Any]] = found["spec"]["metadata"]
    return items


@pytest.mark.parametrize("values", [_VALUES["local"], _VALUES["production"]], ids=["local", "production"])
def test_every_pod_is_confined(values: list[str]) -> None:
    """No container runs as root, writes its root file system, keeps a capability, or has no limit of memory."""
    for one in _rendered(values):
        spec = one.get("spec", {})
        pod = spec if one["kind"] == "Pod" else spec.get("template", {}).get("spec")
        if pod is None:
            continue
        assert pod["securityContext"]["runAsNonRoot"] is True, one["metadata"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


def test_a_service_reads_its_own_key_and_nobody_elses() -> None:
    """By RBAC and by Dapr's scopes alike, a service may read its own signing key, and only auth the issuer's."""
    rendered = _rendered([])
    services = {one["metadata"]["labels"]["app.kubernetes.io/name"] for one in rendered if one["kind"] == "Deployment"}
    for service in services:
        (role,) = (
            one for one in rendered if one["kind"] == "Role" and one["metadata"]["name"] == f"gaggle-{service}-secrets"
        )
        (rule,) = role["rules"]
        assert (rule["resources"], rule["verbs"]) == (["secrets"], ["get"])
        (configuration,) = (
            one for one in rendered if one["kind"] == "Configuration" and one["metadata"]["name"] == f"gaggle-{service}"
        )
        ours, daprs = configuration["spec"]["secrets"]["scopes"]
        assert ours["defaultAccess"] == "deny"
        assert daprs == {"storeName": "kubernetes", "defaultAccess": "deny"}
        wanted = {"token-jwks", f"service-key-{service}"} | ({"issuer-key"} if service == "auth" else set())
        for names in (ours["allowedSecrets"], rule["resourceNames"]):
            keys = {name for name in names if name.startswith(("service-key-", "issuer-key", "token-jwks"))}
            assert keys == wanted
        # The stores' are the sidecar's to read, for its components, and not the service's to ask for.
        assert set(ours["allowedSecrets"]) <= set(rule["resourceNames"])
        assert "kafka-secrets" not in ours["allowedSecrets"]


def test_clients_are_let_in_by_name() -> None:
    """An app of somebody else's may call what values say, from its namespace, and nothing more."""
    web = {
        "appId": "web",
        "namespace": "shop",
        "may": {"conversation": ["/gaggle.conversation.v1.ConversationService/*"]},
    }
    rendered = _rendered([f"--set-json=clients=[{json.dumps(web)}]"])
    policies = {
        one["metadata"]["name"]: [
            policy for policy in one["spec"]["accessControl"]["policies"] or [] if policy["appId"] == "web"
        ]
        for one in rendered
        if one["kind"] == "Configuration"
    }
    (policy,) = policies.pop("gaggle-conversation")
    assert (policy["namespace"], policy["defaultAction"]) == ("shop", "deny")
    assert [one["name"] for one in policy["operations"]] == ["/gaggle.conversation.v1.ConversationService/*"]
    assert not any(policies.values())


def test_production_may_send_its_traces() -> None:
    """The policies of production let its Pods reach the collector that its settings name, and nobody else there."""
    rendered = _rendered(_VALUES["production"])
    (settings,) = (one["data"] for one in rendered if one["kind"] == "ConfigMap")
    collector = urlsplit(settings["GAGGLE_OTLP_ENDPOINT"])
    namespace = str(collector.hostname).split(".")[1]
    (task,) = (one for one in rendered if one["kind"] == "Deployment" and one["metadata"]["name"] == "gaggle-task")
    ours = {**task["spec"]["template"], "status": {"podIP": "10.0.0.1"}}
    ours["metadata"]["namespace"] = "mesh"
    theirs = {"metadata": {"namespace": namespace}, "spec": {"containers": []}, "status": {"podIP": "10.0.1.1"}}
    labels = {"name": namespace, "labels": {"kubernetes.io/metadata.name": namespace}}
    policies = [one for one in rendered if one["kind"] == "NetworkPolicy"]
    isolated = isolations(policies, World.of([ours, theirs], [{"metadata": labels}]))
    assert collector.port is not None
    assert passes(isolated, "10.0.0.1", "10.0.1.1", collector.port)
    assert not passes(isolated, "10.0.0.1", "10.0.1.1", collector.port + 1)


def test_the_chart_packs(tmp_path: Path) -> None:
    """`helm package` takes the components along, which lie in the repository beside the chart."""
    result = _helm("package", str(CHART), "--destination", str(tmp_path))
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tgz")
    shown = _helm("template", "gaggle", str(archive), f"--kube-version={KUBERNETES_VERSION}")
    assert "kind: Resiliency" in shown.stdout
