"""KEDA in the cluster: its operator, metrics server and admission webhooks, by the manifests of its own release."""

import re

from tests.cluster.control import Cluster

_NAMESPACE = "keda"
_METRICS = "v1beta1.external.metrics.k8s.io"
# Its certificates lie at a path that this machine lacks, and containers here have no root file system of their own.
_CERTIFICATES = "/run/certs"
_LAST_ARGUMENT = re.compile(r"^( *)- --zap-time-encoding=rfc3339$", re.MULTILINE)


def install_keda(cluster: Cluster) -> None:
    """Returns when all three are ready and the API server serves the metrics."""
    rendered = cluster.kubectl("kustomize", str(cluster.binaries.keda_manifests))
    rendered = rendered.replace("/certs", _CERTIFICATES)
    # The operator and the webhooks leave it to its default.
    rendered = _LAST_ARGUMENT.sub(rf"\g<0>\n\1- --cert-dir={_CERTIFICATES}", rendered)
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=rendered)
    for deployment in ("keda-operator", "keda-metrics-apiserver", "keda-admission"):
        cluster.kubectl("rollout", "status", f"deployment/{deployment}", "-n", _NAMESPACE, "--timeout=3m")
    cluster.kubectl("wait", f"apiservice/{_METRICS}", "--for=condition=Available", "--timeout=2m")
