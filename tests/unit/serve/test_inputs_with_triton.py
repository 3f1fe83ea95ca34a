"""Inputs of clients are answered by another version, too, in another pod: two pods, each with a real Triton."""

from __future__ import annotations

import shutil
import threading
from contextlib import ExitStack, contextmanager
from ctypes.util import find_library
from typing import TYPE_CHECKING, Any

import pytest

from mms_workloads.contract import InputOrders, InputPeer
from mms_workloads.serve import query
from tests.unit.serve import artifacts
from tests.unit.serve.serving_pod import ServingPod, wait
from tests.unit.serve.triton_home import triton_home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    shutil.which("python3.11") is None or find_library("python3.11") is None,
    reason="the backend's stub embeds Python 3.11",
)
SECRET = "höhe"  # asked by clients, and in nobody's file or log


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServingPod]]:
    with ExitStack() as pods:

        def make(name: str, built: artifacts.Built) -> ServingPod:
            pod = ServingPod(tmp_path / name, triton_home(), built=built)
            pods.callback(pod.stop)
            pod.start_all()
            return pod

        yield make


@contextmanager
def clients(pod: ServingPod) -> Iterator[None]:
    """One that asks again and again: one word of two, and vectors, which are not compared."""
    url, stop = f"127.0.0.1:{pod.ports[1]}", threading.Event()

    def ask() -> None:
        while not stop.wait(0.01):
            query.neighbours(url, [SECRET, "word5"], 10)
            query.vectors(url, ["word7"])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def inputs(pod: ServingPod) -> dict[str, Any]:
    found: dict[str, Any] = pod.served().get("inputs", {})
    return found


def test_from_pod_to_pod(tmp_path: Path, start: Callable[..., ServingPod]) -> None:
    """The same vectors answer alike, others do not; golden questions are no inputs of clients; nothing is kept."""
    built = artifacts.build(tmp_path / "store", size=2000, dimensions=50)
    far = artifacts.build(tmp_path / "far", size=2000, dimensions=50, seed=9, version=5)
    first, second = start("first", built), start("second", far)
    wait(lambda: first.readyz()[0] == second.readyz()[0] == 200)
    orders = InputOrders(stable=built.digest, next=far.digest, perSecond=20)
    for pod in (first, second):
        pod.order(orders)
    wait(lambda: bool(inputs(first).get("key") and inputs(second).get("key")))
    (first.root / "probe").write_text("50")
    second.order(orders.model_copy(update={"senders": [inputs(first)["key"]]}))
    to = InputPeer(host="127.0.0.1", port=second.ports[3], key=inputs(second)["key"])
    first.order(orders.model_copy(update={"to": [to]}))
    wait(lambda: first.served()["own"]["requests"] > 30)
    assert inputs(second)["compared"] == 0, "only the agent has asked"
    (first.root / "probe").write_text("")
    before = second.served()
    with clients(first):
        wait(lambda: inputs(second)["compared"] >= 10)
    after = second.served()
    assert inputs(second)["differing"] == inputs(second)["compared"]
    assert inputs(second)["reference"] == built.digest
    assert inputs(first).get("message", "") == ""
    clients_of = [one["counters"]["requests"] - one["own"]["requests"] for one in (before, after)]
    assert clients_of == [0, 0], "what is compared is no client's request"

    first.order(None)
    second.order(None)
    wait(lambda: not inputs(first) and not inputs(second))
    assert not (first.root / "models" / "inputs.sock").exists()
    for pod in (first, second):
        for log in pod.root.glob("*.log"):
            assert SECRET not in log.read_text(), log
        files = [path for path in (pod.root / "models").rglob("*") if path.is_file() and "artifact-" not in str(path)]
        assert not [path for path in files if SECRET.encode() in path.read_bytes()]
