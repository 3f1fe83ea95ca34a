"""Who is let in, who is not, what both sides are told, and that nobody keeps another waiting."""

from __future__ import annotations

import os
import resource
import socket
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from mms_workloads.transport import meeting
from mms_workloads.transport.channel import (
    Abort,
    Channel,
    Fence,
    Greeting,
    Listener,
    PeerLost,
    Refused,
    Security,
    connect,
)
from tests.unit.transport.peers import FENCE, GREETING, HOST, SECONDS, Beside, folders, long_ago

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def dial(
    listener: Listener, security: Security, greeting: Greeting = GREETING, timeout: float | None = SECONDS
) -> Channel:
    return connect(HOST, listener.port, security, greeting, Abort(), timeout)


@pytest.fixture
def listener(security: Security) -> Iterator[Listener]:
    made = Listener(HOST, security)
    yield made
    made.close()


def test_greeting_is_told_and_admitted(listener: Listener, security: Security) -> None:
    greeting = Greeting(Fence("ü", 2, 3, 4), "worker", 5, 6, "state of rank 1")
    dialled = Beside(lambda: dial(listener, security, greeting))
    pending, told = listener.accept(Abort(), SECONDS)
    assert told == greeting
    far = pending.admit()
    with closing(far), closing(dialled.result()) as near:
        assert far.peer == greeting
        near.send_message({"a": 1})
        assert far.receive_message() == ({"a": 1}, [])


def test_refusal_says_why(listener: Listener, security: Security) -> None:
    dialled = Beside(lambda: dial(listener, security))
    pending, told = listener.accept(Abort(), SECONDS)
    pending.refuse(Fence("uid", 1, 1, 8).difference(told.fence))
    with pytest.raises(Refused, match="epoch 7 instead of 8"):
        dialled.result()


@contextmanager
def no_descriptors() -> Iterator[None]:
    """None can be opened."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_a_refusal_needs_no_descriptor() -> None:
    with (
        closing(Listener(HOST, Security.plain())) as listener,
        garbage(listener, meeting._packed(asdict(GREETING))) as connection,
    ):
        pending, _ = listener.accept(Abort(), SECONDS)
        with no_descriptors():
            pending.refuse("there are too many")
        connection.settimeout(SECONDS)
        assert b"there are too many" in connection.recv(4096)


def test_whoever_was_deferred_comes_again(listener: Listener, security: Security) -> None:
    """Woken by the Abort of who admits it, not by that of who deferred it."""
    dialled = Beside(lambda: dial(listener, security))
    first = Abort()
    pending, told = listener.accept(first, SECONDS)
    pending.defer()
    first.set()
    second = Abort()
    again, told_again = listener.accept(second, SECONDS)
    assert told_again == told
    with closing(again.admit()) as far, closing(dialled.result()) as near:
        near.send(b"x")
        far.receive_into(bytearray(1))
        second.set()
        with pytest.raises(PeerLost, match="aborted"):
            far.send(b"x")


def test_ipv6(security: Security) -> None:
    try:
        listener = Listener("::1", security)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with closing(listener):
        dialled = Beside(lambda: connect("::1", listener.port, security, GREETING, Abort(), SECONDS))
        listener.accept(Abort(), SECONDS)[0].admit().close()
        dialled.result().close()


# ---- nobody there


def test_nobody_listens(security: Security) -> None:
    listener = Listener(HOST, security)
    listener.close()
    with pytest.raises(PeerLost, match="Connection refused"):
        dial(listener, security)


def test_nobody_accepts_in_time(listener: Listener, security: Security) -> None:
    with pytest.raises(PeerLost, match="in time"):
        dial(listener, security, timeout=0.05)


def test_nobody_comes_in_time(listener: Listener) -> None:
    with pytest.raises(PeerLost, match=r"within 0\.05 s"):
        listener.accept(Abort(), 0.05)


@pytest.mark.parametrize("side", ["accept", "connect"])
def test_abort_wakes_who_waits(listener: Listener, security: Security, side: str) -> None:
    abort = Abort()
    if side == "accept":
        waiting = Beside(lambda: listener.accept(abort, None))
    else:
        waiting = Beside(lambda: connect(HOST, listener.port, security, GREETING, abort, None))
    time.sleep(0.05)
    assert waiting.runs()
    abort.set()
    with pytest.raises(PeerLost, match="aborted"):
        waiting.result()
    with pytest.raises(PeerLost, match="aborted"):
        listener.accept(abort, None)


def test_listener_that_ends_refuses_who_waits(security: Security) -> None:
    listener = Listener(HOST, security)
    dialled = Beside(lambda: dial(listener, security))
    listener.accept(Abort(), SECONDS)[0].defer()
    listener.close()
    with pytest.raises(Refused, match="ended"):
        dialled.result()


# ---- those who greet wrongly


def garbage(listener: Listener, data: bytes) -> socket.socket:
    connection = socket.create_connection((HOST, listener.port))
    connection.sendall(data)
    return connection


WRONG = {
    "silent": b"",
    "half a greeting": b"MMS1\x40\x00\x00\x00{",
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "long": b"MMS1\xff\xff\xff\xff",
    "no JSON": b"MMS1\x01\x00\x00\x00{",
    "deep": b"MMS1\x00\x0f\x00\x00" + b"[" * 3840,
    "a list": b"MMS1\x02\x00\x00\x00[]",
    "no fence": b'MMS1\x0c\x00\x00\x00{"role":"x"}',
    "half a TLS record": b"\x16\x03\x01\x02\x00\x01\x00",
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_greetings_keep_nobody_waiting(listener: Listener, security: Security, wrong: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(garbage(listener, wrong))
        dialled = Beside(lambda: dial(listener, security))
        pending, told = listener.accept(Abort(), SECONDS)
        assert told == GREETING
        pending.admit().close()
        dialled.result().close()


def test_who_stays_silent_is_let_go(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "GREETING_SECONDS", 0.05)
    with garbage(listener, b"") as connection, capture_logs() as logged:
        with pytest.raises(PeerLost, match="no peer"):
            listener.accept(Abort(), 0.5)
        connection.settimeout(SECONDS)
        while connection.recv(4096):  # the reason, as far as it can be told
            pass
    assert [(entry["event"], entry["why"]) for entry in logged] == [
        ("connection refused", "the peer did not answer in time")
    ]


def test_so_many_may_be_silent(security: Security, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of too many is let go."""
    monkeypatch.setattr(meeting, "MAX_WAITING", 3)
    listener = Listener(HOST, security)
    with ExitStack() as stack:
        stack.callback(listener.close)
        silent = [stack.enter_context(garbage(listener, b"")) for _ in range(6)]
        with pytest.raises(PeerLost, match="no peer"):
            listener.accept(Abort(), 0.2)
        for connection in silent[:3]:
            connection.settimeout(SECONDS)
            assert connection.recv(4096) == b""
        silent[5].settimeout(0.01)
        with pytest.raises(TimeoutError):
            silent[5].recv(4096)


# ---- certificates


def meet(server: Security, client: Security) -> tuple[Exception | None, Exception | None, list[str]]:
    """(what the side that accepts raised, what the side that connects raised, the reasons in the log)."""
    listener = Listener(HOST, server)
    outcomes: list[Exception | None] = []
    abort = Abort()
    with closing(listener), capture_logs() as logged:
        accepting = Beside(lambda: listener.accept(abort, SECONDS)[0].admit())  # noqa: PLW0108 - in the thread
        dialled = Beside(lambda: dial(listener, client))
        try:
            dialled.result().close()
            outcomes.append(None)
        except (PeerLost, Refused) as error:
            outcomes.append(error)
        deadline = time.monotonic() + SECONDS
        while accepting.runs() and not logged and time.monotonic() < deadline:
            time.sleep(0.001)
        abort.set()
        try:
            accepting.result().close()
            outcomes.append(None)
        except (PeerLost, Refused) as error:
            outcomes.append(error)
    return outcomes[1], outcomes[0], [entry["why"] for entry in logged]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Certificates of another job, and some that are over."""
    return {
        "job": folders(tmp_path_factory.mktemp("other"), "other"),
        "past": folders(tmp_path_factory.mktemp("past"), "past", long_ago()),
    }


def test_certificates_of_the_job_are_good(job: dict[str, Path]) -> None:
    assert meet(Security.mutual(job["shard"]), Security.mutual(job["worker"])) == (None, None, [])
    only = Security.mutual(job["shard"], frozenset({"worker"}))
    assert meet(only, Security.mutual(job["worker"], frozenset({"shard"}))) == (None, None, [])


@pytest.mark.parametrize("role", ["shard", "master", "operator", ""])
def test_a_role_is_what_the_certificate_is_for(job: dict[str, Path], role: str) -> None:
    """Else a worker could send a shard what only shards may."""
    with capture_logs() as logged, closing(Listener(HOST, Security.mutual(job["shard"]))) as listener:
        abort = Abort()
        accepted = Beside(lambda: listener.accept(abort, SECONDS))
        greeting = Greeting(FENCE, role, 0, 0, "forward")
        with pytest.raises(Refused, match="the certificate is for worker, and the peer says that it is a"):
            dial(listener, Security.mutual(job["worker"]), greeting)
        abort.set()
        with pytest.raises(PeerLost, match="aborted"):
            accepted.result()
    assert [entry["event"] for entry in logged] == ["connection refused"]


CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], str, str]] = {
    "another job's": (
        lambda job, _: Security.mutual(job["worker"]),
        lambda _, others: Security.mutual(others["job"]["worker"]),
        "unknown ca",
        "self-signed certificate in certificate chain",
    ),
    "one that is over": (
        lambda _, others: Security.mutual(others["past"]["worker"]),
        lambda _, others: Security.mutual(others["past"]["worker"]),
        "expired",
        "expired",
    ),
    "the wrong unit connects": (
        lambda job, _: Security.mutual(job["shard"], frozenset({"shard"})),
        lambda job, _: Security.mutual(job["worker"]),
        "the certificate is for worker, and shard is wanted",
        "the certificate is for worker, and shard is wanted",
    ),
    "the wrong unit accepts": (
        lambda job, _: Security.mutual(job["worker"]),
        lambda job, _: Security.mutual(job["worker"], frozenset({"shard", "master"})),
        "closed",
        "the certificate is for worker, and master or shard is wanted",
    ),
    "plain to TLS": (
        lambda job, _: Security.mutual(job["worker"]),
        lambda _job, _: Security.plain(),
        "mutual TLS is wanted on one side",
        "mutual TLS is wanted on one side",
    ),
    "TLS to plain": (
        lambda _job, _: Security.plain(),
        lambda job, _: Security.mutual(job["worker"]),
        "mutual TLS is wanted on one side",
        "mutual TLS is wanted on one side",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_who_is_refused_and_what_both_sides_say(
    job: dict[str, Path], others: dict[str, dict[str, Path]], case: tuple[Any, Any, str, str]
) -> None:
    server, client, logged, says = case
    accepting, connecting, reasons = meet(server(job, others), client(job, others))
    assert isinstance(accepting, PeerLost)  # nobody came that may
    assert isinstance(connecting, Refused)
    assert says in str(connecting)
    assert len(reasons) == 1
    assert logged in reasons[0]


def test_no_client_certificate(job: dict[str, Path]) -> None:
    """A client that trusts the job's authority and shows nothing."""
    import ssl

    listener = Listener(HOST, Security.mutual(job["worker"]))
    context = ssl.create_default_context(cafile=job["worker"] / "ca.crt")
    context.check_hostname = False
    with closing(listener), capture_logs() as logged:
        accepting = Beside(lambda: listener.accept(Abort(), 0.5))
        with (
            socket.create_connection((HOST, listener.port)) as connection,
            context.wrap_socket(connection) as client,
            pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"),
        ):
            client.recv(1)
        with pytest.raises(PeerLost):
            accepting.result()
    assert "did not return a certificate" in logged[0]["why"]


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_tls_1_3_only(job: dict[str, Path], version: str) -> None:
    import ssl

    listener = Listener(HOST, Security.mutual(job["worker"]))
    context = ssl.create_default_context(cafile=job["worker"] / "ca.crt")
    context.check_hostname = False
    context.load_cert_chain(job["worker"] / "tls.crt", job["worker"] / "tls.key")
    context.maximum_version = ssl.TLSVersion[version]
    with closing(listener):
        abort = Abort()
        accepting = Beside(lambda: listener.accept(abort, SECONDS))
        with socket.create_connection((HOST, listener.port)) as connection:
            if version == "TLSv1_2":
                with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
                    context.wrap_socket(connection)
            else:
                with context.wrap_socket(connection) as client:
                    assert client.cipher() == ("TLS_AES_128_GCM_SHA256", "TLSv1.3", 128)
                    assert client.compression() is None
        abort.set()
        with pytest.raises(PeerLost):
            accepting.result()


def test_unusable_folders(tmp_path: Path, job: dict[str, Path], listener: Listener) -> None:
    with pytest.raises(FileNotFoundError, match=r"tls\.crt"):
        Listener(HOST, Security.mutual(tmp_path))
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).write_bytes((job["worker"] / name).read_bytes())
    (tmp_path / "tls.key").write_bytes((job["shard"] / "tls.key").read_bytes())
    with pytest.raises(ValueError, match=r"tls\.key"):
        Listener(HOST, Security.mutual(tmp_path))
    (tmp_path / "ca.crt").write_text("none")
    (tmp_path / "tls.key").write_bytes((job["worker"] / "tls.key").read_bytes())
    with pytest.raises(ValueError, match=r"ca\.crt"):
        dial(listener, Security.mutual(tmp_path))


def test_fence_words() -> None:
    assert FENCE.difference(FENCE) == ""
    assert Fence("a", 1, 1, 1).difference(Fence("b", 1, 1, 2)) == "uid b instead of a, epoch 2 instead of 1"
