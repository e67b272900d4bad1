"""Who a sidecar is: sentry, a certificate authority of the mesh's own, and the tokens that sidecars ask it with.

On one machine sentry would give any identity to anybody who asks. So each process has a token, a JWT that names the one
identity that it may ask for, and sentry takes no other (its `jwks` validator). The key that signs them, and the
authority's own, are drawn at every start of the mesh; the former is kept nowhere.

| identity (SPIFFE) | whose |
|---|---|
| spiffe://public/ns/default/APP_ID | a sidecar's |
| spiffe://localhost/ns/default/dapr-placement, dapr-scheduler, dapr-sentry | the control plane's |
"""

import functools
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from joserfc import jwt
from joserfc.jwk import ECKey

from cli.mesh.certificates import make_issuer
from cli.mesh.data import DataDirectory, write_private
from cli.mesh.health import http_is_ok
from cli.mesh.ports import LOOPBACK, Ports
from cli.mesh.process import Command

TRUST_DOMAIN = "public"
"""Of the sidecars; daprd 1.18 knows no other on one machine."""

NAMESPACE = "default"
CONTROL_PLANE_TRUST_DOMAIN = "localhost"
PLACEMENT, SCHEDULER = "dapr-placement", "dapr-scheduler"

_AUDIENCE = f"spiffe://{CONTROL_PLANE_TRUST_DOMAIN}/ns/{NAMESPACE}/dapr-sentry"
_CONTROL_PLANE = {PLACEMENT, SCHEDULER}


@dataclass(frozen=True)
class Identities:
    """What a process is told in order to prove itself, and to know the others."""

    sentry: Path
    folder: Path
    ports: Ports

    @property
    def authority(self) -> Path:
        """The certificate that all others come from, in PEM."""
        return self.folder / "ca.crt"

    @property
    def address(self) -> str:
        """Where sentry is."""
        return f"{LOOPBACK}:{self.ports.sentry}"

    @property
    def sidecar_arguments(self) -> list[str]:
        """What daprd's command line has for it."""
        return [
            "--enable-mtls",
            f"--sentry-address={self.address}",
            f"--control-plane-trust-domain={CONTROL_PLANE_TRUST_DOMAIN}",
            f"--control-plane-namespace={NAMESPACE}",
        ]

    @property
    def control_plane_arguments(self) -> list[str]:
        """What placement's and the scheduler's command lines have for it."""
        return [
            "--tls-enabled",
            "--mode=standalone",
            f"--sentry-address={self.address}",
            f"--trust-domain={CONTROL_PLANE_TRUST_DOMAIN}",
            f"--trust-anchors-file={self.authority}",
        ]

    def environment(self, identity: str) -> dict[str, str]:
        """What the process of that app id, or of that part of the control plane, finds in its environment."""
        return {
            "NAMESPACE": NAMESPACE,
            "DAPR_TRUST_ANCHORS": self.authority.read_text(),
            "DAPR_SENTRY_TOKEN_FILE": str(self.token_file(identity)),
        }

    def token_file(self, identity: str) -> Path:
        """Where the token lies by which sentry knows who may have that identity."""
        return self.folder / f"{identity}.jwt"

    def sentry_command(self, data: DataDirectory) -> Command:
        """The authority's process."""
        health = self.ports.sentry + 1
        arguments = [
            str(self.sentry),
            f"--config={self.folder / 'sentry.yaml'}",
            f"--issuer-credentials={self.folder}",
            f"--trust-domain={CONTROL_PLANE_TRUST_DOMAIN}",
            f"--port={self.ports.sentry}",
            f"--listen-address={LOOPBACK}",
            f"--healthz-port={health}",
            f"--healthz-listen-address={LOOPBACK}",
            f"--metrics-port={self.ports.sentry + 2}",
            f"--metrics-listen-address={LOOPBACK}",
            "--log-as-json",
        ]
        return Command(
            name="sentry",
            arguments=arguments,
            is_ready=functools.partial(http_is_ok, health, "/healthz"),
            log=data.log("sentry"),
            environment={"NAMESPACE": NAMESPACE},
        )


def make_identities(sentry: Path, data: DataDirectory, ports: Ports, app_ids: Iterable[str]) -> Identities:
    """Draws a new authority and new tokens; processes of an earlier mesh on this data are strangers to this one."""
    folder = data.identities
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    identities = Identities(sentry, folder, ports)
    make_issuer(folder)
    key = ECKey.generate_key("P-256", {"kid": "mesh", "use": "sig", "alg": "ES256"}, private=True)
    write_private(folder / "tokens.jwks", json.dumps({"keys": [key.as_dict(private=False)]}))
    for identity in {*app_ids, *_CONTROL_PLANE}:
        domain = CONTROL_PLANE_TRUST_DOMAIN if identity in _CONTROL_PLANE else TRUST_DOMAIN
        claims = {"aud": _AUDIENCE, "sub": f"spiffe://{domain}/ns/{NAMESPACE}/{identity}", "iat": int(time.time())}
        write_private(identities.token_file(identity), jwt.encode({"alg": "ES256", "kid": "mesh"}, claims, key))
    validator = {"name": "jwks", "options": {"source": str(folder / "tokens.jwks")}}
    configuration = {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "Configuration",
        "metadata": {"name": "sentry"},
        "spec": {"mtls": {"enabled": True, "tokenValidators": [validator]}},
    }
    write_private(folder / "sentry.yaml", yaml.safe_dump(configuration))
    return identities
