"""The edge before a real Triton that has the flags of one behind an edge."""

from __future__ import annotations

import shutil
import socket
import subprocess
from ctypes.util import find_library
from typing import TYPE_CHECKING

import pytest

from mms_operator.plan.service.edge import TRITON_FLAGS, TRITON_LIVES
from mms_workloads import contract
from mms_workloads.serve import query
from mms_workloads.serve.access import Access
from tests.unit.serve import artifacts
from tests.unit.serve.edge_here import EdgeHere
from tests.unit.serve.serving_pod import ServingPod, wait
from tests.unit.serve.triton_home import triton_home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    shutil.which("python3.11") is None or find_library("python3.11") is None,
    reason="the backend's stub embeds Python 3.11",
)
KEY = "a-key-of-the-tests"


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[ServingPod]:
    made = ServingPod(tmp_path, triton_home())
    assert made.start("fetch").wait(60) == 0
    made.start("triton", f"--backend-directory={made.home.folder}/backends", *TRITON_FLAGS)
    made.start("agent")
    yield made
    made.stop()


def test_answers_through_the_edge(pod: ServingPod, tmp_path: Path) -> None:
    spec = {"apiKeys": {"secretRef": {"name": "keys"}}, "maxConnectionAgeSeconds": 60}
    edge = EdgeHere(tmp_path / "edge", (pod.ports[0], pod.ports[1]), spec)
    edge.mount_keys(tests=KEY)
    edge.begin()
    try:
        wait(lambda: pod.readyz()[0] == 200)
        expected = [pod.built.words[row] for row, _ in artifacts.cosine_neighbours(pod.built.vectors, 5, 4)]
        for url in (f"127.0.0.1:{edge.grpc}", f"http://127.0.0.1:{edge.http}"):
            (answer,) = query.neighbours(url, ["word5"], 4, access=Access(KEY))
            assert (answer.words, answer.digest) == (expected, pod.digest)
            assert query.vectors(url, ["word7"] * 300, access=Access(KEY)).shape == (300, 50)
            with pytest.raises(query.UnknownWordError, match="nope"):
                query.neighbours(url, ["nope"], access=Access(KEY))
            with pytest.raises(query.RefusedError, match="no valid API key"):
                query.neighbours(url, ["word5"])
        *command, script = TRITON_LIVES
        lives = [*command, script.replace(str(contract.BEHIND_EDGE_HTTP_PORT), str(pod.ports[0]))]
        assert subprocess.run(lives, check=False).returncode == 0
        for port in pod.ports[:2]:
            assert socket.create_connection(("127.0.0.1", port)).close() is None
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((own_address(), port))
        socket.create_connection((own_address(), pod.ports[2])).close()
        assert edge.stop() == 0
        pod.processes["triton"].terminate()
        assert pod.processes["triton"].wait(20) == 0
        assert subprocess.run(lives, check=False, stderr=subprocess.DEVNULL).returncode != 0
    finally:
        edge.kill()


def own_address() -> str:
    """Of this machine, other than its loopback: no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
