"""One cluster for the run: control plane, Dapr by its own chart, KEDA, stores, and Gaggle by ours."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from cli.binaries.cluster import cluster_binaries
from cli.binaries.dapr import VERSION as DAPR_VERSION
from cli.cluster import secret_manifests
from cli.mesh.data import PROJECT_ROOT, DataDirectory
from cli.mesh.runfile import RunFile
from tests.cluster.calls import NAMESPACE, Calls
from tests.cluster.control import Cluster
from tests.cluster.keda import install_keda
from tests.cluster.stores import start_stores

CHART = PROJECT_ROOT / "deploy" / "helm" / "gaggle"
SERVICES = tuple(sorted(app.service for app in RunFile.load(PROJECT_ROOT / "dapr.yaml").apps))


@dataclass(frozen=True)
class Installed:
    """The cluster with Dapr and KEDA, the stores' secrets and the mesh's keys; Gaggle is the tests' to install."""

    cluster: Cluster
    calls: Calls


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Everything up to our own chart."""
    if os.environ.get("GAGGLE_TEST_CLUSTER") != "private":
        pytest.fail("run by `make test-cluster`, in namespaces of its own", pytrace=False)
    folder = Path(os.environ.get("GAGGLE_TEST_CLUSTER_FOLDER") or tmp_path_factory.mktemp("cluster"))
    cluster = Cluster(folder, cluster_binaries(lambda _what, _packages: None))
    try:
        cluster.start()
        yield _install(cluster, folder)
    finally:
        cluster.stop()


def _install(cluster: Cluster, folder: Path) -> Installed:
    _install_dapr(cluster)
    install_keda(cluster)
    database, brokers = start_stores(cluster, folder / "stores")
    keys = DataDirectory.at(folder / "keys")
    cluster.kubectl("create", "namespace", NAMESPACE)
    manifests = secret_manifests(keys, SERVICES)
    cluster.kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=yaml.safe_dump_all(manifests))
    _create_secret(cluster, "todo-chatbot-secrets", DATABASE_URL=database)
    _create_secret(cluster, "kafka-secrets", KAFKA_BROKERS=brokers)
    return Installed(cluster, Calls(cluster, keys))


def _install_dapr(cluster: Cluster) -> None:
    cluster.helm(
        *("install", "dapr", str(cluster.binaries.dapr_chart), "--namespace=dapr-system", "--create-namespace"),
        f"--set=global.tag={DAPR_VERSION}",
        *("-f", str(CHART.parent / "values-dapr.yaml")),
        *("--wait", "--timeout=10m"),
    )


def _create_secret(cluster: Cluster, name: str, **values: str) -> None:
    literals = [f"--from-literal={key}={value}" for key, value in values.items()]
    cluster.kubectl("create", "secret", "generic", name, "-n", NAMESPACE, *literals)
