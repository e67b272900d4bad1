"""A certificate authority of a mesh's own, and a certificate that it signed for a server on loopback."""

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cli.mesh.data import write_private
from cli.mesh.ports import LOOPBACK

_VALID = dt.timedelta(days=3650)
# Clocks of one machine agree; this is for one that is set back.
_SLACK = dt.timedelta(days=1)


@dataclass(frozen=True)
class Certificates:
    """Files in PEM: the authority's certificate; the server's private key with its certificate."""

    authority: Path
    server: Path


def ensure_certificates(folder: Path, server: str) -> Certificates:
    """The certificates of a server, made at the first call. The authority's own key is not kept: it signs once."""
    made = Certificates(folder / "ca.pem", folder / f"{server}.pem")
    if not made.server.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        _make(made, server)
    return made


def _make(made: Certificates, server: str) -> None:
    now = dt.datetime.now(dt.UTC)
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name, server_name = _name("gaggle local authority"), _name(server)
    authority = (
        _builder(authority_name, authority_name, now)
        .public_key(authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
    certificate = (
        _builder(server_name, authority_name, now)
        .public_key(server_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    key = server_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem = serialization.Encoding.PEM
    write_private(made.authority, authority.public_bytes(pem).decode())
    write_private(made.server, (key + certificate.public_bytes(pem)).decode())


def _builder(subject: x509.Name, issuer: x509.Name, now: dt.datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + _VALID)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
