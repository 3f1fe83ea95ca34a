"""The cluster's certificates: one authority, one key pair for each component, kubeconfig files that carry theirs."""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mms_cluster.paths import write

if TYPE_CHECKING:
    from pathlib import Path

LIFETIME = dt.timedelta(days=365)
RENEW_BEFORE = dt.timedelta(days=30)


@dataclass(frozen=True)
class Identity:
    """Who a certificate is for. `hosts` are the DNS names and IP addresses that it serves."""

    name: str
    common_name: str
    organisation: str = ""
    hosts: tuple[str, ...] = ()


def ensure(folder: Path, identities: list[Identity]) -> None:
    """Write what is missing, about to expire or for other hosts: ca.crt, ca.key, sa.pub, sa.key, NAME.crt, NAME.key."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    now = dt.datetime.now(dt.UTC)
    if not _current(folder / "ca.crt", None, now) or not (folder / "ca.key").exists():
        for stale in folder.iterdir():
            stale.unlink()
        _authority(folder, now)
    if not (folder / "sa.pub").exists():
        key = ec.generate_private_key(ec.SECP256R1())
        _write_key(folder / "sa.key", key)
        write(folder / "sa.pub", _public_pem(key))
    for identity in identities:
        if (
            not _current(folder / f"{identity.name}.crt", identity, now)
            or not (folder / f"{identity.name}.key").exists()
        ):
            _issue(folder, identity, now)


def write_kubeconfig(folder: Path, name: str, server: str, target: Path) -> None:
    """A kubeconfig for the identity `name` that needs no other file."""

    def data(file: str) -> str:
        return base64.b64encode((folder / file).read_bytes()).decode()

    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "mms", "cluster": {"server": server, "certificate-authority-data": data("ca.crt")}}],
        "users": [{
            "name": name,
            "user": {"client-certificate-data": data(f"{name}.crt"), "client-key-data": data(f"{name}.key")},
        }],
        "contexts": [{"name": "mms", "context": {"cluster": "mms", "user": name}}],
        "current-context": "mms",
    }  # fmt: skip
    write(target, json.dumps(config, indent=2).encode() + b"\n")


def _current(path: Path, identity: Identity | None, now: dt.datetime) -> bool:
    """Whether the certificate is there, has time left and is for the hosts of `identity`."""
    if not path.exists():
        return False
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    if certificate.not_valid_after_utc < now + RENEW_BEFORE:
        return False
    return identity is None or (
        _hosts(certificate) == set(identity.hosts) and certificate.subject == _subject(identity)
    )


def _hosts(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    addresses = names.get_values_for_type(x509.IPAddress)
    return {*names.get_values_for_type(x509.DNSName), *(str(address) for address in addresses)}


def _subject(identity: Identity) -> x509.Name:
    organisation = (
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, identity.organisation)] if identity.organisation else []
    )
    return x509.Name([*organisation, x509.NameAttribute(NameOID.COMMON_NAME, identity.common_name)])


def _authority(folder: Path, now: dt.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mms-cluster-ca")])
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(name, name, key, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_key(folder / "ca.key", key)
    write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM))


def _issue(folder: Path, identity: Identity, now: dt.datetime) -> None:
    authority_key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{folder / 'ca.key'} is not an elliptic curve key")
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    builder = (
        _builder(_subject(identity), authority.subject, key, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
    )  # fmt: skip
    if identity.hosts:
        names = x509.SubjectAlternativeName([_general_name(host) for host in identity.hosts])
        builder = builder.add_extension(names, critical=False)
    _write_key(folder / f"{identity.name}.key", key)
    certificate = builder.sign(authority_key, hashes.SHA256())
    write(folder / f"{identity.name}.crt", certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    write(path, key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))  # fmt: skip


def _public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
