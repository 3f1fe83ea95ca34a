"""Daemons, their records, ports and locks."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mms_cluster import paths, ports, process
from mms_cluster.errors import ClusterError
from mms_cluster.report import Reporter


def test_daemon_is_recorded_found_and_stopped(tmp_path: Path) -> None:
    record = tmp_path / "d.pid"
    found = process.daemon(record, ["sleep", "60"], tmp_path / "d.log", "digest")
    assert process.read_record(record) == found
    assert process.alive(found)
    assert found.digest == "digest"
    assert not process.alive(dataclasses.replace(found, start=found.start + 1)), "another process with the same id"
    assert not process.alive(dataclasses.replace(found, boot="before")), "the same id in another boot"
    process.stop(record, grace=5)
    assert not process.alive(found)
    assert not record.exists()


def test_daemon_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    record, log = tmp_path / "d.pid", tmp_path / "d.log"
    found = process.daemon(record, ["sh", "-c", "trap '' TERM; echo on; while :; do sleep 0.05; done"], log, "")
    assert process.wait_gone(lambda: "on" in log.read_text(), 5)
    process.stop(record, grace=0.2)
    assert not process.alive(found)


def test_daemon_that_is_given_no_grace_gets_no_sigterm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, sent = tmp_path / "d.pid", []
    found = process.daemon(record, ["sleep", "60"], tmp_path / "d.log", "")

    def kill(pid: int, number: int) -> None:
        sent.append(number)
        os.kill(pid, number)

    monkeypatch.setattr(process, "_signal", kill)
    process.stop(record, grace=0)
    assert sent == [signal.SIGKILL]
    assert not process.alive(found)


def test_daemon_that_cannot_start(tmp_path: Path) -> None:
    found = process.daemon(tmp_path / "d.pid", ["/no/such/program"], tmp_path / "d.log", "")
    assert process.wait_gone(lambda: not process.alive(found), 5)
    with pytest.raises(ClusterError, match=r"(?s)the process ended.*no/such/program"):
        process.wait_until("x", lambda: "state", 5, lambda: process.alive(found), tmp_path / "d.log")


def test_waiting_ends_with_the_last_state(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("why")
    with pytest.raises(ClusterError, match=r"(?s)not after 0 s \(missing\).*why"):
        process.wait_until("x", lambda: "missing", 0, lambda: True, tmp_path / "log")


def test_half_a_record_is_none(tmp_path: Path) -> None:
    (tmp_path / "d.pid").write_text("4711 (sh) S 1\n")
    assert process.read_record(tmp_path / "d.pid") is None


def test_parse_stat_with_brackets_in_the_name() -> None:
    line = "7 (a) S (b) R " + " ".join(str(n) for n in range(4, 53))
    assert process.parse_stat(line) == (7, 22, "R")


def test_child_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, signal; from mms_cluster import process\n"
        "child = process.child(['sleep', '60'], pathlib.Path(sys.argv[1]))\n"
        "print(child.pid, flush=True); signal.pause()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(process.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        comm = Path(f"/proc/{pid}/comm")
        assert process.wait_gone(lambda: comm.read_text() == "sleep\n", 5)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert process.wait_gone(lambda: not comm.exists() or "Z" in _state(pid), 5)


def _state(pid: int) -> str:
    try:
        return process.parse_stat(Path(f"/proc/{pid}/stat").read_text())[2]
    except OSError:
        return "Z"


def test_holder_names_the_process() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert ports.holder(port).startswith(f"process {os.getpid()} (")
    assert ports.holder(port) == ""


def test_free_ports_are_distinct_and_free() -> None:
    found = ports.free_ports(20)
    assert len(set(found)) == 20
    assert not any(ports.holder(port) for port in found)


def test_a_second_holder_of_a_lock_waits_and_says_so(tmp_path: Path) -> None:
    said, held = io.StringIO(), threading.Event()

    def second() -> None:
        with paths.locked(tmp_path / "lock", Reporter(said)):
            held.set()

    other = threading.Thread(target=second)
    with paths.locked(tmp_path / "lock"):
        other.start()
        assert process.wait_gone(lambda: "waiting for another" in said.getvalue(), 5)
        assert not held.is_set()
    other.join(timeout=5)
    assert held.is_set()


def test_full_disk(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"Building it needs 9999999 GiB .* delete something"):
        paths.require_space(tmp_path / "not" / "there", 9_999_999, "Building it")


def test_write_leaves_an_unchanged_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "f"
    paths.write(path, b"a")
    first = path.stat()
    paths.write(path, b"a")
    assert path.stat().st_ino == first.st_ino
    paths.write(path, b"b")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"b", 0o600)
