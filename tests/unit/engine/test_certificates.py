"""A job's certificates: they chain, say what a holder may do, and make connections that no other job is part of."""

from __future__ import annotations

import socket
import ssl
import threading
import uuid
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from mms_operator.api import names
from mms_operator.engine.certificates import CLOCK_SKEW, secret_names, secrets
from mms_operator.engine.polls import client_context
from mms_operator.plan.types import Certificates
from mms_workloads.contract import OU_MASTER, OU_OPERATOR, OU_SHARD, OU_WORKER
from mms_workloads.sync import tls
from tests.unit.engine.fake_api import training

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime.now(UTC)
DNS = ("words-master", "words-master.ns.svc")
Files = dict[str, bytes]
ROLES_OF_ALL = ("master", "worker", "shard")


def make(name: str = "words", days: int = 30) -> dict[str, Files]:
    """The Secrets' files by the Secret's name."""
    made = secrets(Certificates(training(name), {"a": "b"}, DNS, days, ROLES_OF_ALL), NOW)
    return {
        found["metadata"]["name"]: {file: b64decode(text) for file, text in found["data"].items()} for found in made
    }


@pytest.fixture(scope="module")
def words() -> dict[str, Files]:
    return make()


@pytest.fixture(scope="module")
def leaves(words: dict[str, Files]) -> dict[str, x509.Certificate]:
    return {
        OU_OPERATOR: x509.load_pem_x509_certificate(words["words-ca"]["operator.crt"]),
        OU_MASTER: x509.load_pem_x509_certificate(words["words-master-tls"]["tls.crt"]),
        OU_WORKER: x509.load_pem_x509_certificate(words["words-worker-tls"]["tls.crt"]),
        OU_SHARD: x509.load_pem_x509_certificate(words["words-shard-tls"]["tls.crt"]),
    }


ROLES = pytest.mark.parametrize("role", [OU_MASTER, OU_WORKER, OU_SHARD, OU_OPERATOR])


def test_the_secrets(words: dict[str, Files]) -> None:
    assert tuple(words) == secret_names("words", ROLES_OF_ALL)
    assert tuple(words) == ("words-ca", "words-master-tls", "words-worker-tls", "words-shard-tls")
    assert set(words["words-ca"]) == {"ca.crt", "ca.key", "operator.crt", "operator.key"}
    for name in ("words-master-tls", "words-worker-tls", "words-shard-tls"):
        assert set(words[name]) == {"tls.crt", "tls.key", "ca.crt"}, "no pod gets the authority's key"
        assert words[name]["ca.crt"] == words["words-ca"]["ca.crt"]


def test_the_secrets_say_whose_they_are_and_when_they_end() -> None:
    for secret in secrets(Certificates(training(), {"a": "b"}, DNS, 30), NOW):
        assert secret["metadata"]["namespace"] == "ns"
        assert secret["metadata"]["labels"] == {"a": "b"}
        expires = datetime.fromisoformat(secret["metadata"]["annotations"][names.ANNOTATION_EXPIRES])
        assert abs(expires - NOW - timedelta(days=30)) < timedelta(seconds=1)
        for file in ("ca.crt", "tls.crt"):
            if file in secret["data"]:
                certificate = x509.load_pem_x509_certificate(b64decode(secret["data"][file]))
                assert certificate.not_valid_after_utc == expires
                assert certificate.not_valid_before_utc <= NOW - CLOCK_SKEW


@ROLES
def test_each_leaf_chains_to_the_authority(
    words: dict[str, Files], leaves: dict[str, x509.Certificate], role: str
) -> None:
    store = Store([x509.load_pem_x509_certificate(words["words-ca"]["ca.crt"])])
    client = PolicyBuilder().store(store).build_client_verifier().verify(leaves[role], [])
    assert len(client.chain) == 2
    other = Store([x509.load_pem_x509_certificate(make()["words-ca"]["ca.crt"])])
    with pytest.raises(VerificationError):
        PolicyBuilder().store(other).build_client_verifier().verify(leaves[role], [])


@ROLES
def test_each_leaf_says_what_its_holder_may_do(leaves: dict[str, x509.Certificate], role: str) -> None:
    certificate = leaves[role]
    units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    assert [unit.value for unit in units] == [role]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(purposes) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        (OU_MASTER, list(DNS)),
        (OU_WORKER, ["worker.mms.invalid"]),
        (OU_SHARD, ["shard.mms.invalid"]),
        (OU_OPERATOR, ["operator.mms.invalid"]),
    ],
)
def test_alternative_names(leaves: dict[str, x509.Certificate], role: str, expected: list[str]) -> None:
    alternatives = leaves[role].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == expected


def test_without_shards_there_is_no_secret_of_theirs() -> None:
    made = secrets(Certificates(training(), {}, DNS, 30), NOW)
    assert [found["metadata"]["name"] for found in made] == ["words-ca", "words-master-tls", "words-worker-tls"]


def test_the_longest_names_fit() -> None:
    owner = training("n" * 63)
    owner["metadata"] |= {"namespace": "s" * 63, "uid": str(uuid.uuid4())}
    assert len(secrets(Certificates(owner, {}, DNS, 30), NOW)) == 3


# Who calls whom, as in the cluster: (server's Secret, client's files).
@pytest.mark.parametrize(
    ("client", "unit"),
    [
        pytest.param("worker", OU_WORKER, id="worker"),
        pytest.param("shard", OU_SHARD, id="shard"),
        pytest.param("operator", OU_OPERATOR, id="us"),
    ],
)
def test_a_handshake_tells_the_master_who_calls(
    words: dict[str, Files], tmp_path: Path, client: str, unit: str
) -> None:
    server = tls.server_context(folder(tmp_path, words["words-master-tls"]))
    units, error = handshake(server, caller(words, tmp_path, client), DNS[0])
    assert (units, error) == ({unit}, None)


@pytest.mark.parametrize("client", ["worker", "operator"])
def test_another_jobs_certificates_are_refused(words: dict[str, Files], tmp_path: Path, client: str) -> None:
    other = make("other")
    server = tls.server_context(folder(tmp_path, words["words-master-tls"]))
    _, error = handshake(server, caller(other, tmp_path, client, "other"), DNS[0])
    assert isinstance(error, ssl.SSLCertVerificationError), "the client does not believe the server"
    trusting = caller(other, tmp_path, client, "other")
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    units, error = handshake(server, trusting, DNS[0])
    assert units is None, "nor the server the client"
    assert isinstance(error, OSError)


def test_a_worker_is_no_master(words: dict[str, Files], tmp_path: Path) -> None:
    server = tls.server_context(folder(tmp_path, words["words-worker-tls"]))
    _, error = handshake(server, caller(words, tmp_path, "operator"), DNS[0])
    assert isinstance(error, ssl.SSLCertVerificationError)


def test_a_client_without_a_certificate_is_refused(words: dict[str, Files], tmp_path: Path) -> None:
    server = tls.server_context(folder(tmp_path, words["words-master-tls"]))
    client = ssl.create_default_context(cadata=words["words-ca"]["ca.crt"].decode())
    units, error = handshake(server, client, DNS[0])
    assert units is None
    assert isinstance(error, OSError)


def folder(parent: Path, files: Files) -> Path:
    path = parent / "server"
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def caller(job: dict[str, Files], parent: Path, client: str, name: str = "words") -> ssl.SSLContext:
    if client == "operator":
        files = job[f"{name}-ca"]
        return client_context(files["ca.crt"], files["operator.crt"], files["operator.key"])
    return tls.client_context(folder(parent, job[f"{name}-{client}-tls"]))


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> tuple[set[str] | None, Exception | None]:
    """The units that the server saw (None: it refused), and what the client met."""
    ours, theirs = socket.socketpair()
    seen: list[Any] = []

    def serve() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as connection:
                seen.append(connection.getpeercert())
                connection.sendall(b"hello")
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    error: Exception | None = None
    try:
        ours.settimeout(10)
        with client.wrap_socket(ours, server_hostname=host) as connection:
            assert connection.recv(5) == b"hello"  # TLS 1.3: only now is it known whether the server accepts
    except (OSError, AssertionError) as met:
        error = met if isinstance(met, OSError) else OSError("the connection was closed")
    finally:
        ours.close()
        thread.join(10)
    return (tls.organisational_units(seen[0]) if seen else None), error
