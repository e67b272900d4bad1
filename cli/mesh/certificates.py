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


def make_issuer(folder: Path) -> None:
    """Writes what Dapr's sentry signs identities with: ca.crt, and issuer.crt with issuer.key, which the former signed.

    The authority's own key is not kept.
    """
    now = dt.datetime.now(dt.UTC)
    authority_key, issuer_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name, issuer_name = _name("gaggle mesh authority"), _name("gaggle mesh issuer")
    authority = _authority(authority_name, authority_name, now, authority_key.public_key(), authority_key, length=1)
    issuer = _authority(issuer_name, authority_name, now, issuer_key.public_key(), authority_key, length=0)
    pem = serialization.Encoding.PEM
    write_private(folder / "ca.crt", authority.public_bytes(pem).decode())
    write_private(folder / "issuer.crt", issuer.public_bytes(pem).decode())
    write_private(folder / "issuer.key", _private(issuer_key).decode())


def _make(made: Certificates, server: str) -> None:
    now = dt.datetime.now(dt.UTC)
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name, server_name = _name("gaggle local authority"), _name(server)
    authority = _authority(authority_name, authority_name, now, authority_key.public_key(), authority_key, length=0)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
    certificate = (
        _builder(server_name, authority_name, now)
        .public_key(server_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    write_private(made.authority, authority.public_bytes(pem).decode())
    write_private(made.server, (_private(server_key) + certificate.public_bytes(pem)).decode())


def _authority(
    subject: x509.Name,
    issuer: x509.Name,
    now: dt.datetime,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    length: int,
) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        _builder(subject, issuer, now)
        .public_key(key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


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
