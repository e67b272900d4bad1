"""Calls into the cluster: by a Service's name, or out of a Pod's own network through its sidecar."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from cli.mesh.data import PROJECT_ROOT, DataDirectory
from cli.mesh.keys import sign_token
from tests.cluster.control import Cluster
from tests.cluster.network import NSENTER

NAMESPACE = "gaggle"
RELEASE = "gaggle"
PORT = 50051
_TIMEOUT_SECONDS = 20.0
T = TypeVar("T")

_THROUGH = """
import json, sys
import grpc
from services.runtime.dapr import dapr_pb2_grpc, secret_pb2
asked = json.load(sys.stdin)
channel = grpc.insecure_channel("127.0.0.1:50001", options=[("grpc.enable_http_proxy", 0)])
metadata = [("dapr-api-token", asked["dapr_token"]), *map(tuple, asked["metadata"])]
try:
    if asked["secret"]:
        request = secret_pb2.GetSecretRequest(store_name=asked["store"], key=asked["secret"])
        answer = dapr_pb2_grpc.DaprStub(channel).GetSecret(request, metadata=metadata, timeout=20)
        print(json.dumps(["OK", ",".join(sorted(answer.data))]))
    else:
        call = channel.unary_unary(asked["method"])
        answer = call(bytes.fromhex(asked["request"]), metadata=metadata, timeout=20)
        print(json.dumps(["OK", answer.hex()]))
except grpc.RpcError as error:
    print(json.dumps([error.code().name, error.details()]))
"""


class Calls:
    """Users' calls of the services in the cluster."""

    def __init__(self, cluster: Cluster, keys: DataDirectory) -> None:
        self._cluster = cluster
        self._keys = keys

    def authorization(self, user: str) -> tuple[str, str]:
        """The metadata that says who calls."""
        return ("authorization", f"Bearer {sign_token(self._keys, user)}")

    def service(
        self, service: str, stub_class: Callable[[grpc.Channel], Any], method: str, request: Any, user: str
    ) -> Any:
        """A call to a service's port by the name of its Service."""
        target = f"{RELEASE}-{service}.{NAMESPACE}.svc:{PORT}"
        with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = stub_class(channel)
            return getattr(stub, method)(
                request, metadata=(self.authorization(user),), timeout=_TIMEOUT_SECONDS, wait_for_ready=True
            )

    def through(self, pod_of: str, app_id: str, method: str, request: Any, user: str) -> tuple[str, str]:
        """A call to `app_id` through the sidecar in the Pod of `pod_of`; status code, and answer or details."""
        metadata = [self.authorization(user), ("dapr-app-id", app_id)]
        return self._inside(
            pod_of, {"method": method, "request": request.SerializeToString().hex(), "metadata": metadata}
        )

    def secret(self, pod_of: str, store: str, name: str) -> tuple[str, str]:
        """A secret as the sidecar of `pod_of` gives it; status code, and the keys or details."""
        return self._inside(pod_of, {"store": store, "secret": name})

    def _inside(self, pod_of: str, asked: dict[str, Any]) -> tuple[str, str]:
        (pod,) = running_pods(self._cluster, pod_of)
        token = (self._keys.keys / f"dapr-token-{pod_of}").read_text().strip()
        asked = {"secret": "", "metadata": [], "dapr_token": token, **asked}
        result = subprocess.run(
            [NSENTER, f"--net=/run/netns/{self.network(pod)}", sys.executable, "-c", _THROUGH],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            cwd=PROJECT_ROOT,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        code, said = json.loads(result.stdout)
        return code, said

    @staticmethod
    def network(pod: dict[str, Any]) -> str:
        """The name of a Pod's network namespace, which follows from its address (see network.py)."""
        _, _, high, low = (int(part) for part in pod["status"]["podIP"].split("."))
        return f"pod{high * 250 + low - 2}"


def running_pods(cluster: Cluster, service: str) -> list[dict[str, Any]]:
    """The Pods of a service that are not being ended."""
    pods: list[dict[str, Any]] = cluster.objects("pods", NAMESPACE, f"app.kubernetes.io/name={service}")
    return [one for one in pods if "deletionTimestamp" not in one["metadata"]]


def eventually(what: str, check: Callable[[], T | None], *, seconds: float = 90.0) -> T:
    """The first true result of `check`; calls that fail meanwhile are made again."""
    deadline = time.monotonic() + seconds
    said: object = None
    while time.monotonic() < deadline:
        try:
            result = check()
        except grpc.RpcError as error:
            said = error
        else:
            if result:
                return result
        time.sleep(0.25)
    raise AssertionError(f"not within {seconds} s: {what}" + (f" ({said})" if said else ""))
