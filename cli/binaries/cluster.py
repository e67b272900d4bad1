"""A Kubernetes control plane, Helm, Dapr's control plane and KEDA: what `make test-cluster` runs, from Go modules.

There is no kubelet among them and no container: tests/cluster/node.py stands for both.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cli.binaries.build import MODULES, Program, Progress, ensure_built
from cli.binaries.dapr import BUILD as DAPR_BUILD
from cli.binaries.dapr import FLAGS as DAPR_FLAGS
from cli.binaries.dapr import VERSION as DAPR_VERSION
from cli.binaries.dapr import dapr_binaries
from cli.binaries.golang import find_go
from cli.binaries.nftables import Nftables, nftables
from cli.errors import CommandError

KUBERNETES_VERSION = "1.34.1"
_MINOR = KUBERNETES_VERSION.split(".")[1]
# Clients judge a server by what it says of itself, and a plain build says v0.0.0.
_STAMP = " ".join(
    f"-X {package}.{name}={value}"
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for name, value in (("gitVersion", f"v{KUBERNETES_VERSION}"), ("gitMajor", "1"), ("gitMinor", _MINOR))
)
_KUBERNETES = [
    Program(name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", KUBERNETES_VERSION, (f"-ldflags=-s -w {_STAMP}",))
    for name in ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kubectl")
]
ETCD = Program("etcd", "etcd", "go.etcd.io/etcd/server/v3", "3.6.16")
_HELM_VERSION = "3.22.0"
_HELM_STAMP = (
    f"-X helm.sh/helm/v3/internal/version.version=v{_HELM_VERSION} "
    f"-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor={_MINOR}"
)
HELM = Program("helm", "helm", "helm.sh/helm/v3/cmd/helm", _HELM_VERSION, (f"-ldflags=-s -w {_HELM_STAMP}",))
# By the names that its images have for them.
_KEDA_VERSION = "2.21.0"
_KEDA_STAMP = f"-X github.com/kedacore/keda/v2/version.Version={_KEDA_VERSION}"
KEDA = [
    Program(
        name, "keda", f"github.com/kedacore/keda/v2/cmd/{package}", _KEDA_VERSION, (f"-ldflags=-s -w {_KEDA_STAMP}",)
    )
    for name, package in (("keda", "operator"), ("keda-adapter", "adapter"), ("keda-admission-webhooks", "webhooks"))
]
_CONTROL_PLANE = [
    Program(name, "dapr", f"github.com/dapr/dapr/cmd/{name}", DAPR_BUILD, DAPR_FLAGS)
    for name in ("sentry", "operator", "injector")
]


@dataclass(frozen=True)
class ClusterBinaries:
    """Paths, by name: those of Kubernetes, etcd, helm, Dapr's six and KEDA's three; nft; and what installs those two.

    Attributes:
        dapr_chart: the folder of Dapr's own chart.
        keda_manifests: the folder of KEDA's own manifests, a kustomization.
    """

    programs: dict[str, Path]
    nftables: Nftables
    dapr_chart: Path
    keda_manifests: Path


def cluster_binaries(progress: Progress) -> ClusterBinaries:
    """All of it from the cache, else built into it (about twenty-five minutes on two cores).

    Raises:
        MissingTool: there is no Go, or no nft and this is no Debian.
        CommandError: a build or a download failed.
    """
    built = [ETCD, HELM, *_KUBERNETES, *_CONTROL_PLANE, *KEDA]
    ensure_built(built, progress)
    dapr = dapr_binaries(progress)
    programs = {program.name: program.path for program in built}
    programs |= {"daprd": dapr.daprd, "scheduler": dapr.scheduler, "placement": dapr.placement}
    return ClusterBinaries(
        programs,
        nftables(progress),
        _module("dapr", f"github.com/dapr/dapr@v{DAPR_VERSION}") / "charts" / "dapr",
        _module("keda", f"github.com/kedacore/keda/v2@v{_KEDA_VERSION}") / "config" / "default",
    )


def _module(folder: str, module: str) -> Path:
    """Where a module's source lies, once its hash was held to go.sum."""
    command = [str(find_go()), "mod", "download", "-json", module]
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "", "GOWORK": "off"}
    result = subprocess.run(command, cwd=MODULES / folder, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise CommandError(f"{module} cannot be had: {result.stderr.strip() or result.stdout.strip()}")
    return Path(json.loads(result.stdout)["Dir"])
