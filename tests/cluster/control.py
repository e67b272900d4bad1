"""The control plane: etcd, API server, controller manager, kube-proxy, and the node that stands for the rest."""

import contextlib
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cli.binaries.cluster import KEDA, ClusterBinaries
from cli.mesh.data import PROJECT_ROOT
from tests.cluster.certificates import Authority, write_signing_key
from tests.cluster.network import API_SERVICE, HOST, PODS, SERVICES, make_node_network

# Minikube's, whose values the chart is installed with.
_API_PORT = 8443
PROXY_PORT = 10256
"""Where kube-proxy tells of its health, on the node's address."""

_READY_SECONDS = 180.0
_STOP_SECONDS = 20.0
_ADMIN = "admin"
# The API server, where it passes calls on to another: KEDA's metrics server.
_FRONT_PROXY = "front-proxy"
_CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "deployment-controller",
    "disruption-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "horizontal-pod-autoscaler-controller",
    "job-controller",
    "namespace-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "statefulset-controller",
)


class Cluster:
    """A running cluster and the commands that work on it."""

    def __init__(self, folder: Path, binaries: ClusterBinaries) -> None:
        self.folder = folder
        self.binaries = binaries
        self.hosts = folder / "hosts"
        self._kubeconfig = folder / "kubeconfig"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Starts everything; returns when the API answers and the node is there."""
        make_node_network()
        self._write_certificates()
        etcd = self.folder / "etcd"
        self.spawn("etcd", [str(self.binaries.programs["etcd"]), f"--data-dir={etcd}", "--unsafe-no-fsync"])
        self.spawn("kube-apiserver", self._api_server())
        self.until("the API server answers", self._answers)
        self.spawn("kube-controller-manager", self._controller_manager())
        self._start_node()
        self.until("the node is there", lambda: self.kubectl("get", "nodes", "-o", "name") == "node/node\n")
        self._start_proxy()

    def spawn(
        self,
        name: str,
        command: Sequence[str],
        directory: Path | None = None,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts a process that ends with the tests' process namespace; its output is NAME.log."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                env={**os.environ, **(environment or {})},
            )

    def stop(self) -> None:
        """Ends what `spawn` started. What the node ran ends with the tests' process namespace."""
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in self._processes.values():
            _see_off(process)

    @contextlib.contextmanager
    def running(self, name: str, command: Sequence[str]) -> Iterator[None]:
        """`spawn`, for as long as the block lasts."""
        self.spawn(name, command)
        try:
            yield
        finally:
            process = self._processes.pop(name)
            process.terminate()
            _see_off(process)

    def until(self, what: str, check: Callable[[], bool], *, seconds: float = _READY_SECONDS) -> None:
        """Waits for a condition. Fails if it does not come, or if a process of the control plane has died."""
        deadline = time.monotonic() + seconds
        while not check():
            for name, process in self._processes.items():
                assert process.poll() is None, f"{name} ended: see {self.folder / name}.log"
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.2)

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """What kubectl printed; its error is the test's."""
        return self._command("kubectl", [*arguments, f"--kubeconfig={self._kubeconfig}"], stdin, check=check)

    def helm(self, *arguments: str, check: bool = True) -> str:
        """What helm printed; its error is the test's."""
        return self._command("helm", [*arguments, f"--kubeconfig={self._kubeconfig}"], None, check=check)

    def objects(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """The objects of a kind."""
        wanted = [f"--selector={selector}"] if selector else []
        found = json.loads(self.kubectl("get", kind, "-n", namespace, "-o", "json", *wanted))
        items: list[dict[str, Any]] = found["items"]
        return items

    def _command(self, program: str, arguments: list[str], stdin: str | None, *, check: bool) -> str:
        environment = {**os.environ, "HELM_CACHE_HOME": str(self.folder / "helm"), "HOME": str(self.folder)}
        result = subprocess.run(
            [str(self.binaries.programs[program]), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        if check:
            assert result.returncode == 0, f"{program} {' '.join(arguments)}:\n{result.stdout}{result.stderr}"
        return result.stdout if check else result.stdout + result.stderr

    def _write_certificates(self) -> None:
        authority = Authority(self.folder)
        authority.sign(_ADMIN, organization="system:masters")
        authority.sign(_FRONT_PROXY)
        names = ["kubernetes", "kubernetes.default.svc", "localhost"]
        authority.sign("server", names=names, addresses=["127.0.0.1", HOST, API_SERVICE])
        write_signing_key(self.folder / "service-accounts.key")
        cluster = {"server": self._url, "certificate-authority": str(authority.certificate)}
        files = {"client-certificate": str(self._file("admin.crt")), "client-key": str(self._file("admin.key"))}
        configuration = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": _ADMIN, "user": files}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": _ADMIN}}],
            "current-context": "test",
        }
        self._kubeconfig.write_text(yaml.safe_dump(configuration))

    def _api_server(self) -> list[str]:
        return [
            str(self.binaries.programs["kube-apiserver"]),
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0",
            f"--advertise-address={HOST}",
            f"--secure-port={_API_PORT}",
            f"--service-cluster-ip-range={SERVICES}",
            f"--tls-cert-file={self._file('server.crt')}",
            f"--tls-private-key-file={self._file('server.key')}",
            f"--client-ca-file={self._file('ca.crt')}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._file('service-accounts.key')}",
            f"--service-account-signing-key-file={self._file('service-accounts.key')}",
            "--authorization-mode=Node,RBAC",
            "--anonymous-auth=false",
            f"--proxy-client-cert-file={self._file(f'{_FRONT_PROXY}.crt')}",
            f"--proxy-client-key-file={self._file(f'{_FRONT_PROXY}.key')}",
            f"--requestheader-client-ca-file={self._file('ca.crt')}",
            f"--requestheader-allowed-names={_FRONT_PROXY}",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--allow-privileged=true",
        ]

    def _controller_manager(self) -> list[str]:
        return [
            str(self.binaries.programs["kube-controller-manager"]),
            f"--kubeconfig={self._kubeconfig}",
            f"--service-account-private-key-file={self._file('service-accounts.key')}",
            f"--root-ca-file={self._file('ca.crt')}",
            # Each controller by its own account: Dapr's injector takes Pods from those alone.
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--secure-port=0",
            f"--controllers={','.join(_CONTROLLERS)}",
            "--horizontal-pod-autoscaler-sync-period=1s",
        ]

    def _start_node(self) -> None:
        self.hosts.write_text("127.0.0.1 localhost\n")
        # The tests' own look-ups, too.
        subprocess.run(["/usr/bin/mount", "--bind", str(self.hosts), "/etc/hosts"], check=True)
        programs = self.binaries.programs
        images = ["daprd", "sentry", "operator", "injector", "placement", "scheduler", *(one.name for one in KEDA)]
        configuration = {
            "url": self._url,
            "authority": str(self._file("ca.crt")),
            "certificate": str(self._file("admin.crt")),
            "key": str(self._file("admin.key")),
            "programs": {f"/{name}": str(programs[name]) for name in images},
            "path": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "directory": str(PROJECT_ROOT),
            "files": str(self.folder),
            "hosts": str(self.hosts),
            "nft": str(self.binaries.nftables.program),
            "nft_environment": self.binaries.nftables.environment,
        }
        path = self.folder / "node.json"
        path.write_text(json.dumps(configuration))
        self.spawn("node", [sys.executable, "-m", "tests.cluster.node", str(path)], PROJECT_ROOT)

    def _start_proxy(self) -> None:
        nft = self.binaries.nftables
        command = [
            str(self.binaries.programs["kube-proxy"]),
            f"--kubeconfig={self._kubeconfig}",
            "--proxy-mode=nftables",
            f"--cluster-cidr={PODS}",
            "--hostname-override=node",
            f"--healthz-bind-address={HOST}:{PROXY_PORT}",
            # These are the whole kernel's, not this network's.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ]
        path = f"{nft.program.parent}:{os.environ['PATH']}"
        self.spawn("kube-proxy", command, environment={**nft.environment, "PATH": path})
        self.until("kube-proxy is ready", lambda: _healthy(f"http://{HOST}:{PROXY_PORT}/healthz"))

    def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=str(self._file("ca.crt")))
        context.load_cert_chain(self._file("admin.crt"), self._file("admin.key"))
        return _healthy(f"{self._url}/readyz", urllib.request.HTTPSHandler(context=context))

    @property
    def _url(self) -> str:
        return f"https://127.0.0.1:{_API_PORT}"

    def _file(self, name: str) -> Path:
        return self.folder / name


def _healthy(url: str, *handlers: urllib.request.BaseHandler) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _see_off(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
