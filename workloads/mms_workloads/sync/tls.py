"""Mutual TLS of a job's pods and the operator: a CA for each job; a certificate's OU says what its holder may do."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


def server_context(folder: Path) -> ssl.SSLContext:
    """For a server that wants a client certificate of the job's CA. folder: tls.crt, tls.key, ca.crt."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.load_verify_locations(folder / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(folder: Path) -> ssl.SSLContext:
    """For a client that shows its certificate and trusts the job's CA only; the server's host name is checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.load_verify_locations(folder / "ca.crt")
    return context


def organisational_units(certificate: dict[str, Any] | None) -> set[str]:
    """The OUs of a peer certificate as ssl gives it; none without a certificate."""
    subject = (certificate or {}).get("subject", ())
    return {value for group in subject for key, value in group if key == "organizationalUnitName"}
