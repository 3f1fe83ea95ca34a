"""The master's listeners: who may ask what, over mutual TLS, and what an early failure looks like."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mms_cluster.ports import free_ports
from mms_workloads.contract import JobFile, Outcome, StatusReport
from mms_workloads.pod import Pod
from mms_workloads.sync import master, tls, wire
from mms_workloads.sync.wire import Message
from tests.unit.test_contract import JOB_FILE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

Key = ec.EllipticCurvePrivateKey


def certificate(unit: str, key: Key, issuer: x509.Certificate | None, issuer_key: Key) -> x509.Certificate:
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, unit), x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit)]
    )
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(issuer.subject if issuer else name, name, key.public_key(), 1 + hash(unit) % 1000)
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    return builder.add_extension(names, critical=False).sign(issuer_key, hashes.SHA256())


def authority(folder: Path) -> None:
    """A CA with a folder for each unit, as the operator's Secrets are mounted."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = certificate("ca", ca_key, None, ca_key)
    for unit in ("master", "worker", "shard", "operator", "reader"):
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = certificate(unit, key, ca, ca_key)
        (folder / unit).mkdir(parents=True)
        (folder / unit / "tls.crt").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        (folder / unit / "ca.crt").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / unit / "tls.key").write_bytes(pem)


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    """Of a master that runs."""
    authority(tmp_path / "job")
    authority(tmp_path / "other")
    (tmp_path / "a.txt").write_text("one two " * 50)
    fields = {
        **JOB_FILE,
        "data": {"store": {"uri": f"file://{tmp_path}/a.txt"}},
        "storage": {"uri": f"file://{tmp_path}/run"},
    }
    pod = Pod(
        "master", 0, 0, 1, "", JobFile.model_validate(fields), "sha256:0", tmp_path / "job" / "master", tmp_path,
        tmp_path / "log", *free_ports(2),
    )  # fmt: skip
    running = asyncio.create_task(master.run(pod))
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{pod.health_port}/healthz") as answer:
                    assert answer.status == 200
                    break
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.01)
    yield pod
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def url(pod: Pod, path: str) -> str:
    return f"https://127.0.0.1:{pod.master_port}/v1/{path}"


@pytest.mark.parametrize(
    ("unit", "path", "status"),
    [
        ("operator", "status", 200),
        ("worker", "status", 403),
        ("master", "status", 403),
        ("operator", "control", 403),
        ("worker", "control", 400),  # let in, and then no WebSocket
        ("shard", "control", 400),
        ("shard", "status", 403),
        ("reader", "trainers", 200),
        ("reader", "status", 403),
        ("reader", "control", 403),
        ("worker", "trainers", 403),
    ],
)
async def test_units(pod: Pod, tmp_path: Path, unit: str, path: str, status: int) -> None:
    context = tls.client_context(tmp_path / "job" / unit)
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(url(pod, path), ssl=context) as answer:
                if answer.status == 503:  # the storage has not answered yet
                    await asyncio.sleep(0.01)
                    continue
                assert answer.status == status
                break


async def test_a_certificate_of_another_job_is_refused(pod: Pod, tmp_path: Path) -> None:
    stranger = tls.client_context(tmp_path / "other" / "operator")
    stranger.load_verify_locations(tmp_path / "job" / "operator" / "ca.crt")
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(url(pod, "status"), ssl=stranger)


async def test_a_master_of_another_job_is_refused(pod: Pod, tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(url(pod, "status"), ssl=tls.client_context(tmp_path / "other" / "operator"))


async def test_without_a_certificate(pod: Pod) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(url(pod, "status"), ssl=False)


async def test_desired(pod: Pod, tmp_path: Path) -> None:
    context = tls.client_context(tmp_path / "job" / "operator")
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.put(url(pod, "desired"), ssl=context, json={"workers": 0}) as answer:
                assert answer.status == 400
                assert "workers" in await answer.text()
            async with session.put(url(pod, "desired"), ssl=context, json={"workers": 7}) as answer:
                if answer.status == 503:
                    await asyncio.sleep(0.01)
                    continue
                assert StatusReport.model_validate_json(await answer.read()).uid == "u-1"
                break


async def test_a_worker_talks(pod: Pod, tmp_path: Path) -> None:
    context = tls.client_context(tmp_path / "job" / "worker")
    hello = {
        "uid": "u-1", "run": 2, "attempt": 1, "role": "worker", "rank": 0, "incarnation": 0, "address": "a",
        "epoch": 0, "step": None,
        "plan": None,
    }  # fmt: skip
    async with aiohttp.ClientSession() as session:
        for attempt, kinds in ((2, [wire.REFUSED]), (1, [wire.WELCOME, wire.COUNT])):
            while True:
                try:
                    socket = await session.ws_connect(url(pod, "control"), ssl=context)
                    break
                except aiohttp.WSServerHandshakeError:  # the storage has not answered yet
                    await asyncio.sleep(0.01)
            await socket.send_bytes(wire.pack(Message(wire.HELLO, {**hello, "attempt": attempt})))
            assert [wire.unpack(await socket.receive_bytes()).kind for _ in kinds] == kinds
            await socket.send_bytes(b"\x00")  # no message: the connection is dropped
            assert (await socket.receive()).type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED}
            await socket.close()
        async with session.get(f"http://127.0.0.1:{pod.health_port}/metrics") as answer:
            assert 'mms_training_workers_ready{namespace="default",name="words",run="2"} 0' in await answer.text()


@pytest.mark.parametrize(("unit", "role"), [("worker", "shard"), ("shard", "worker"), ("worker", None)])
async def test_nobody_takes_a_role_that_its_certificate_is_not_for(
    pod: Pod, tmp_path: Path, unit: str, role: str | None
) -> None:
    context = tls.client_context(tmp_path / "job" / unit)
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                socket = await session.ws_connect(url(pod, "control"), ssl=context)
                break
            except aiohttp.WSServerHandshakeError:  # the storage has not answered yet
                await asyncio.sleep(0.01)
        await socket.send_bytes(wire.pack(Message(wire.HELLO, {"role": role})))
        assert (await socket.receive()).type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED}
        await socket.close()


async def test_an_early_failure_is_served_and_kept(tmp_path: Path) -> None:
    fields = {
        **JOB_FILE,
        "data": {"store": {"uri": f"file://{tmp_path}/none"}},
        "storage": {"uri": f"file://{tmp_path}/run"},
    }
    pod = Pod(
        "master", 0, 0, 1, "", JobFile.model_validate(fields), "sha256:0", tmp_path, tmp_path, tmp_path / "log",
        *free_ports(2),
    )  # fmt: skip
    running = asyncio.create_task(master.run(pod, plain=True))
    async with aiohttp.ClientSession() as session:
        report = None
        while report is None or report.outcome is None:
            try:
                async with session.get(f"http://127.0.0.1:{pod.master_port}/v1/status") as answer:
                    report = StatusReport.model_validate_json(await answer.read())
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.01)
    assert (await running).reason == report.outcome.reason == "DataNotFound"
    assert Outcome.model_validate_json(pod.termination_log.read_bytes()) == report.outcome


# What it is made of


def test_it_starts_without_pytorch() -> None:
    """Whose import takes seconds at the processor that a master asks for, and most of a master's memory."""
    code = "import sys, mms_workloads.sync.master; sys.exit(any(name in sys.modules for name in ('torch', 's3fs')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("waited", "needed", "expected"),
    [(0.0, False, False), (3.0, False, True), (3.0, True, False), (21.0, True, True)],
    ids=["who stops at the same time says so first", "for nobody", "for those that save", "not for longer"],
)
def test_a_master_that_is_told_to_end(waited: float, needed: bool, expected: bool) -> None:
    assert master.may_stop(waited, needed=needed) is expected


def test_it_is_told_to_end_while_it_imports(tmp_path: Path) -> None:
    """As PID 1 it would not hear of it without a handler of its own: the test sees by the exit code that there is."""
    (tmp_path / "structlog.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ended = subprocess.run([sys.executable, "-m", master.__name__], env=environment, timeout=60, check=False)
    assert ended.returncode == 128 + signal.SIGTERM
