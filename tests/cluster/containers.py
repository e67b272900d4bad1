"""A container of a Pod as a plain process: its command, environment, files and network are the Pod's, its image is not.

The root file system is this machine's. What an image would bring is looked up here: Dapr's programs by their paths in
its images, ours on PATH. securityContext and resources are not applied.
"""

import asyncio
import base64
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.cluster.api import Api, Object
from tests.cluster.network import API_SERVICE, HOST

_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")
_TOKEN_SECONDS = 7200
_SCRIPT = """
set -e
echo "$1" > /proc/sys/kernel/hostname
mount --bind "$2" /etc/hosts
mount -t tmpfs tmpfs /run
shift 2
while [ "$1" != -- ]; do mkdir -p "$2"; mount --bind "$1" "$2"; shift 2; done
shift
exec "$@"
"""


@dataclass(frozen=True)
class Host:
    """What stands for images, and where the node keeps its files."""

    programs: Mapping[str, Path]
    """By the path that a program has in its image, for example /daprd."""

    path: str
    """PATH of every container."""

    directory: Path
    """The working directory of containers: the repository, which our image has too."""

    files: Path
    """Volumes and logs."""

    hosts: Path
    """The hosts file that stands for cluster DNS."""


class NotYetError(Exception):
    """Something that the Pod names is not there yet; it is waited for, as a kubelet does."""


async def prepare_volumes(api: Api, host: Host, pod: Object) -> dict[str, Path]:
    """Fills a folder for each volume of a Pod. Raises NotYetError."""
    folders = {}
    for volume in pod["spec"].get("volumes", []):
        folder = host.files / "volumes" / pod["metadata"]["uid"] / volume["name"]
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        if "persistentVolumeClaim" in volume:
            # Outlives the Pod.
            folder = host.files / "claims" / volume["persistentVolumeClaim"]["claimName"]
            folder.mkdir(parents=True, exist_ok=True)
        for source in volume.get("projected", {}).get("sources", [volume]):
            await _fill(api, pod, folder, source)
        folders[volume["name"]] = folder
    return folders


async def refresh_volumes(api: Api, pod: Object, folders: Mapping[str, Path]) -> None:
    """Writes secrets and config maps that have changed into their volumes. Raises NotYetError."""
    for volume in pod["spec"].get("volumes", []):
        if "secret" in volume or "configMap" in volume:
            await _fill(api, pod, folders[volume["name"]], volume)


async def _fill(api: Api, pod: Object, folder: Path, source: Object) -> None:
    if "serviceAccountToken" in source:
        asked = source["serviceAccountToken"]
        (folder / asked["path"]).write_text(await _token(api, pod, asked.get("audience")))
    elif "secret" in source:
        try:
            values = await _secret(api, pod, source["secret"].get("secretName") or source["secret"]["name"])
        except NotYetError:
            if not source["secret"].get("optional"):
                raise
        else:
            _write(folder, values, source["secret"].get("items"))
    elif "configMap" in source:
        values = await _config_map(api, pod, source["configMap"]["name"])
        _write(folder, values, source["configMap"].get("items"))
    elif "downwardAPI" in source:
        for item in source["downwardAPI"]["items"]:
            (folder / item["path"]).write_text(_field(pod, item["fieldRef"]["fieldPath"]))


async def _token(api: Api, pod: Object, audience: str | None) -> str:
    meta = pod["metadata"]
    account = pod["spec"].get("serviceAccountName", "default")
    bound = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
    # Longer than a Pod asks for: no run of the tests lasts until it would have to be renewed.
    spec: Object = {"expirationSeconds": _TOKEN_SECONDS, "boundObjectRef": bound}
    if audience:
        spec["audiences"] = [audience]
    path = f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{account}/token"
    answer = await api.post(path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
    return str(answer["status"]["token"])


def _write(folder: Path, values: Mapping[str, bytes], items: list[Object] | None) -> None:
    chosen = {item["key"]: item["path"] for item in items} if items else {key: key for key in values}
    for key, path in chosen.items():
        target = folder / path
        if not target.exists() or target.read_bytes() != values[key]:
            # Replaced at once, as a kubelet does: who reads meanwhile reads the old text or the new.
            unfinished = target.with_name(f".{path}.new")
            unfinished.write_bytes(values[key])
            unfinished.replace(target)


async def environment(api: Api, host: Host, pod: Object, container: Object) -> dict[str, str]:
    """A container's environment. Raises NotYetError."""
    variables = {
        "PATH": host.path,
        "HOME": "/nonexistent",
        "LANG": "C.UTF-8",
        "HOSTNAME": pod["metadata"]["name"],
        "KUBERNETES_SERVICE_HOST": API_SERVICE,
        "KUBERNETES_SERVICE_PORT": "443",
        # Programs of Dapr's images do not like to be root, which all is here.
        "DAPR_UNSAFE_SKIP_CONTAINER_UID_GID_CHECK": "true",
        # Set in our image, too.
        "PYTHONUNBUFFERED": "1",
    }
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            values = await _config_map(api, pod, source["configMapRef"]["name"])
        else:
            values = await _secret(api, pod, source["secretRef"]["name"])
        variables |= {key: value.decode() for key, value in values.items()}
    for entry in container.get("env", []):
        variables[entry["name"]] = await _value(api, pod, entry, variables)
    return variables


async def _value(api: Api, pod: Object, entry: Object, known: Mapping[str, str]) -> str:
    source = entry.get("valueFrom")
    if source is None:
        return _expanded(entry.get("value", ""), known)
    if "fieldRef" in source:
        return _field(pod, source["fieldRef"]["fieldPath"])
    kind = "secretKeyRef" if "secretKeyRef" in source else "configMapKeyRef"
    read = _secret if kind == "secretKeyRef" else _config_map
    values = await read(api, pod, source[kind]["name"])
    return values[source[kind]["key"]].decode()


def command_line(host: Host, container: Object, variables: Mapping[str, str]) -> list[str]:
    """What is run: command, then arguments; a program that the image would bring is this machine's."""
    words = [_expanded(word, variables) for word in [*container.get("command", []), *container.get("args", [])]]
    return [str(host.programs.get(words[0], words[0])), *words[1:]]


def _expanded(text: str, known: Mapping[str, str]) -> str:
    return _REFERENCE.sub(lambda found: known.get(found[1], found[0]), text)


def _field(pod: Object, path: str) -> str:
    known = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"]["namespace"],
        "metadata.uid": pod["metadata"]["uid"],
        "spec.nodeName": pod["spec"].get("nodeName", ""),
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", ""),
        "status.podIP": pod.get("status", {}).get("podIP", ""),
        "status.hostIP": HOST,
    }
    return str(known[path])


async def _secret(api: Api, pod: Object, name: str) -> dict[str, bytes]:
    found = await _named(api, pod, "secrets", name)
    return {key: base64.b64decode(value) for key, value in found.get("data", {}).items()}


async def _config_map(api: Api, pod: Object, name: str) -> dict[str, bytes]:
    found = await _named(api, pod, "configmaps", name)
    return {key: value.encode() for key, value in found.get("data", {}).items()}


async def _named(api: Api, pod: Object, kind: str, name: str) -> Object:
    try:
        return await api.get(f"/api/v1/namespaces/{pod['metadata']['namespace']}/{kind}/{name}")
    except httpx.HTTPStatusError as error:
        raise NotYetError(f"{kind} {name}") from error


class Process:
    """A container's process, in the Pod's network, with its volumes mounted for it alone."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls,
        host: Host,
        pod: Object,
        container: Object,
        *,
        network: str,
        volumes: Mapping[str, Path],
        log: Path,
        variables: Mapping[str, str],
    ) -> "Process":
        """Starts it; its output is appended to `log`."""
        binds: list[str] = []
        extra: dict[str, str] = {}
        for mount in container.get("volumeMounts", []):
            source = volumes[mount["name"]]
            if "subPath" in mount:
                source = source / mount["subPath"]
            target = mount["mountPath"].rstrip("/")
            if target == "/tmp":  # noqa: S108 -- the Pod's word for it
                # The repository may lie below this machine's own /tmp.
                extra["TMPDIR"] = str(source)
            elif target.startswith(("/var/run/", "/run/")):
                binds += [str(source), target]
            else:
                raise RuntimeError(f"a volume at {target} would cover this machine's files")
        name = pod["metadata"]["name"]
        words = ["nsenter", f"--net=/run/netns/{network}", "unshare", "--mount", "--uts", "--propagation", "private"]
        words += ["sh", "-c", _SCRIPT, "sh", name, str(host.hosts), *binds, "--"]
        words += command_line(host, container, variables)
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**variables, **extra},
                cwd=host.directory,
                start_new_session=True,
            )
        return cls(process)

    async def wait(self) -> int:
        """Its exit code."""
        return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Signals it and its children."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, number)
