"""A job's own certificate authority, and a leaf for each role: mutual TLS that no other job is part of.

ECDSA on P-256 (RFC 5480): a key takes a tenth of a millisecond to make, so that a thousand jobs at once are no matter.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mms_operator.api import names
from mms_operator.api.names import Role
from mms_workloads.contract import OU_MASTER, OU_OPERATOR, OU_READER, OU_SHARD, OU_WORKER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mms_operator.plan.types import Certificates, Object

CLOCK_SKEW = timedelta(minutes=5)
OPERATOR_CRT, OPERATOR_KEY = "operator.crt", "operator.key"
_UNITS = {Role.MASTER: OU_MASTER, Role.WORKER: OU_WORKER, Role.SHARD: OU_SHARD, Role.READER: OU_READER}
TLS_CRT, TLS_KEY, CA_CRT, CA_KEY = "tls.crt", "tls.key", "ca.crt", "ca.key"


def authority_name(owner: str) -> str:
    """The Secret with the authority, which the operator alone reads."""
    return f"{owner}-ca"


def secret_names(owner: str, roles: Sequence[str]) -> tuple[str, ...]:
    """The authority's Secret, then one of each role."""
    return authority_name(owner), *(f"{owner}-{role}-tls" for role in roles)


@dataclass(frozen=True)
class _Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    begins: datetime
    ends: datetime


def secrets(wanted: Certificates, now: datetime) -> tuple[Object, ...]:
    """The authority's Secret and the roles', with fresh keys, without owner references. About a millisecond of work."""
    metadata = wanted.owner["metadata"]
    job = f"{metadata['namespace']}/{metadata['name']}"
    authority = _authority(f"MMS job {metadata['uid']}", now, now + timedelta(days=wanted.lifetime_days))
    ca = _pem(authority.certificate)
    operator = _leaf(authority, OU_OPERATOR, job, ())
    contents = [{CA_CRT: ca, CA_KEY: _key_pem(authority.key), OPERATOR_CRT: operator[0], OPERATOR_KEY: operator[1]}]
    for role in wanted.roles:
        dns_names = wanted.master_dns_names if role == Role.MASTER else ()
        certificate, key = _leaf(authority, _UNITS[Role(role)], job, dns_names)
        contents.append({TLS_CRT: certificate, TLS_KEY: key, CA_CRT: ca})
    return tuple(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "namespace": metadata["namespace"],
                "labels": dict(wanted.labels),
                "annotations": {names.ANNOTATION_EXPIRES: authority.ends.isoformat()},
            },
            "type": "Opaque",
            "data": {file: b64encode(text.encode()).decode() for file, text in content.items()},
        }
        for name, content in zip(secret_names(metadata["name"], wanted.roles), contents, strict=True)
    )


def _authority(name: str, now: datetime, ends: datetime) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begins, ends = now.astimezone(UTC) - CLOCK_SKEW, ends.astimezone(UTC).replace(microsecond=0)
    certificate = (
        _builder(subject, subject, key, begins, ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _Authority(key, certificate, begins, ends)


def _leaf(authority: _Authority, unit: str, job: str, dns_names: Sequence[str]) -> tuple[str, str]:
    """(certificate, key) in PEM. The unit in the subject says what the peer may do."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{job} {unit}"[:64]),
        ]
    )
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in dns_names or (f"{unit}.mms.invalid",)])
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    certificate = (
        _builder(subject, authority.certificate.subject, key, authority.begins, authority.ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(purposes, critical=False)
        .add_extension(alternatives, critical=False)
        .add_extension(issuer_key, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return _pem(certificate), _key_pem(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
