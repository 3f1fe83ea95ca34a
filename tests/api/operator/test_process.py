"""The operator as a process: signals, sudden death, and an API server that restarts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from mms_cluster import process
from mms_cluster.apionly import ApiOnly
from mms_cluster.ports import free_ports
from mms_operator import main
from mms_operator.api import names
from mms_operator.engine.kubeapi import Call
from tests.api.operating import ROOT, Cluster, Object, Replica, beyond_the_rules, install, until

pytestmark = pytest.mark.api


@dataclass
class Process:
    """`python -m tests.trivial`."""

    cluster: Cluster
    folder: Path

    def __post_init__(self) -> None:
        (self.port,) = free_ports(1)
        self.calls_file, self.log = self.folder / f"calls-{self.port}", self.folder / f"log-{self.port}"

    def __enter__(self) -> Self:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("operator", "workloads", "cluster", "")),
            "KUBECONFIG": str(self.cluster.server.kubeconfig),
            "MMS_WORKER_IMAGE": "localhost/worker:1",
            "MMS_SERVER_IMAGE": "localhost/server:1",
            "MMS_NAMESPACES": self.cluster.namespace,
            "MMS_LEASE_NAMESPACE": self.cluster.namespace,
            "MMS_HEALTH_PORT": str(self.port),
            "MMS_TEST_CALLS": str(self.calls_file),
        }
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "tests.trivial"]
            self.popen = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log, stdout=log)
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.wait()
        assert not beyond_the_rules([Call(*call[:3]) for call in self.calls()])

    def ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self, *, leads: bool) -> Self:
        line = f"mms_leader {float(leads)}"
        until(lambda: self.ask("/readyz")[0] == 200 and line in self.ask("/metrics")[1], f"ready, {line}")
        return self

    def calls(self) -> list[tuple[str, str, str, int]]:
        if not self.calls_file.exists():
            return []
        return [tuple(json.loads(line)) for line in self.calls_file.read_text().splitlines() if line.endswith("]")]

    def said(self) -> list[Object]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def ends(self, number: int | None = None, seconds: float = 10) -> int:
        if number is not None:
            self.popen.send_signal(number)
        return self.popen.wait(seconds)


def test_a_process_answers_works_and_stops_cleanly(cluster: Cluster, tmp_path: Path) -> None:
    with Process(cluster, tmp_path) as operator:
        operator.ready(leads=True)
        assert operator.ask("/healthz") == (200, "ok\n")
        cluster.train()
        cluster.there("Pod", "words-worker-1-1")
        written = 'mms_api_writes_total{resource="pods",verb="create"} 2.0'
        until(lambda: written in operator.ask("/metrics")[1], "both answers have come")
        with socket.create_connection(("127.0.0.1", operator.port)) as scraper:  # stays connected, as Prometheus does
            scraper.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert scraper.recv(9) == b"HTTP/1.1 "
            assert operator.ends(signal.SIGTERM) == 0
        assert cluster.holder() == ""
        said = operator.said()
        assert said[-1]["event"] == "stopped"
        assert [line for line in said if line["level"] in ("warning", "error", "critical")] == []


def test_a_standby_stops_cleanly_and_is_ready_before(cluster: Cluster, tmp_path: Path) -> None:
    with Replica(cluster, (cluster.namespace,)) as leader:
        leader.leads()
        holder = cluster.holder()
        with Process(cluster, tmp_path) as standby:
            standby.ready(leads=False)
            assert standby.ends(signal.SIGTERM, 5) == 0
        assert {call[2] for call in standby.calls()} == {"leases"}
        assert cluster.holder() == holder


def test_a_replica_that_is_killed_is_replaced_when_its_lease_has_run_out(cluster: Cluster, tmp_path: Path) -> None:
    with Process(cluster, tmp_path) as first:
        first.ready(leads=True)
        cluster.train()
        cluster.there("Pod", "words-worker-1-1")
        # What is left of the Lease of 15 s is cut short: nothing but the record says how long its holder is believed.
        with Replica(cluster, (cluster.namespace,)) as second:
            until(lambda: second.health.unready() == [], "the standby is ready")
            first.ends(signal.SIGKILL)
            assert cluster.holder()
            killed = time.monotonic()
            cluster.patch("Lease", names.LEASE_NAME, {"spec": {"leaseDurationSeconds": 4}})
            second.leads()
            assert time.monotonic() - killed > 3
            cluster.delete("Pod", "words-worker-0-1")
            cluster.there("Pod", "words-worker-0-1")


def test_who_loses_the_lease_ends(cluster: Cluster, tmp_path: Path) -> None:
    with Process(cluster, tmp_path) as operator:
        operator.ready(leads=True)
        cluster.patch("Lease", names.LEASE_NAME, {"spec": {"holderIdentity": "another"}})
        assert operator.ends() == main.EXIT_LEASE_LOST
        assert cluster.holder() == "another"
        assert operator.said()[-1]["event"] == "lease lost"


def test_an_api_server_that_restarts_is_survived(crds: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ApiOnly(tmp_path) as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        install(server)
        cluster = Cluster(server, "default")
        with Replica(cluster, ("default",)) as replica:
            replica.leads()
            cluster.train()
            cluster.there("Pod", "words-worker-1-1")
            replica.settled()
            apiserver = server._children[1]
            command = Path(f"/proc/{apiserver.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
            process.stop_child(apiserver)
            server._children[1] = process.child(command, tmp_path / "kube-apiserver.log")
            until(lambda: server.api.unready() == "", "the API server is back")
            cluster.train("more")
            cluster.there("Pod", "more-worker-1-1")
            uid = cluster.there("ConfigMap", "words-job")["metadata"]["uid"]
            cluster.delete("ConfigMap", "words-job")
            cluster.there("ConfigMap", "words-job", but=uid)
            assert replica.health.troubles() == []
