"""A serving pod with a real Triton that follows a real training, while clients ask."""

from __future__ import annotations

import shutil
import signal
import threading
import time
import urllib.request
from collections import Counter
from ctypes.util import find_library
from typing import TYPE_CHECKING, Any, Self

import pytest

from mms_workloads.contract import LiveOrders, LiveSource, live_digest
from mms_workloads.serve import query
from tests.unit.serve import artifacts
from tests.unit.serve.serving_pod import ServingPod, wait
from tests.unit.serve.triton_home import triton_home
from tests.unit.train import runs
from tests.unit.train.quick import QuickRun

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(
        shutil.which("python3.11") is None or find_library("python3.11") is None,
        reason="the backend's stub embeds Python 3.11",
    ),
]

ORDERS = LiveOrders(maxStalenessMilliseconds=1000)
RUN = live_digest("u", 1)


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[tuple[ServingPod, QuickRun]]:
    home = triton_home()
    with QuickRun(tmp_path / "run", runs.job(tmp_path, optimizer={"epochs": 1_000_000})) as run:
        run.start()
        runs.until_step(run, 1)
        pod = ServingPod(tmp_path / "pod", home)
        live = LiveSource(masterHost="127.0.0.1", uid="u", run=1, orders=ORDERS)
        pod.follow(live, run.master_port)
        yield pod, run
        pod.stop()


class Clients:
    """Ask without pause while the context is open."""

    def __init__(self, pod: ServingPod) -> None:
        self.url, self.stop = f"127.0.0.1:{pod.ports[1]}", threading.Event()
        self.failed: list[str] = []
        self.answered: Counter[str] = Counter()  # by digest
        self.ages: list[float] = []

    def __enter__(self) -> Self:
        self.threads = [threading.Thread(target=self.ask) for _ in range(2)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def ask(self) -> None:
        while not self.stop.is_set():
            try:
                answers = query.neighbours(self.url, ["topic1word1", "topic2word2", "topic3word3"], 3)
            except query.QueryError as error:
                self.failed.append(str(error))
                continue
            digests = {answer.digest for answer in answers}
            if len(digests) != 1:
                self.failed.append(f"answered by {digests}")
            (digest,) = digests
            self.answered[digest] += 1
            if digest.count(":") == 4:
                self.ages.append(time.time() - int(digest.rpartition(":")[2]) / 1000)


def live(pod: ServingPod) -> dict[str, Any]:
    found: dict[str, Any] = pod.served()["live"]
    return found


def orders(pod: ServingPod, **changes: Any) -> None:
    part = pod.root / "live.part"
    part.write_text(ORDERS.model_copy(update=changes).model_dump_json())
    part.replace(pod.root / "live")


def test_a_pod_follows_pauses_and_takes_an_artifact(followed: tuple[ServingPod, QuickRun]) -> None:
    pod, _ = followed
    pod.start_all()
    wait(lambda: pod.readyz()[0] == 200)
    assert pod.served()["digest"] == RUN
    wait(lambda: pod.served().get("live", {}).get("taken", 0) > 1)
    with Clients(pod) as clients:
        time.sleep(4)
    assert clients.failed == []
    assert len(clients.answered) >= 4, clients.answered
    assert sorted(clients.ages)[int(0.9 * len(clients.ages))] < 1, "nine of ten answers on a busy machine"
    assert live(pod)["phase"] == "Following"
    with urllib.request.urlopen(f"http://127.0.0.1:{pod.ports[3]}/metrics", timeout=5) as response:
        text = response.read().decode()
    assert "mms_agent_live_age_p99_seconds" in text

    orders(pod, paused=True)
    wait(lambda: live(pod)["phase"] == "Paused")
    kept = live(pod)["digest"]
    time.sleep(1.5)
    assert live(pod)["digest"] == kept
    assert live(pod)["age"] > 1.5
    orders(pod)
    wait(lambda: live(pod)["digest"] != kept)

    other = artifacts.build(pod.root / "other", size=2000, dimensions=50, seed=1)
    pod.want(other)
    wait(lambda: pod.served()["digest"] == other.digest)
    (answer, _) = query.neighbours(f"127.0.0.1:{pod.ports[1]}", ["word5", "word7"], 4)
    assert answer.digest == other.digest
    assert answer.words == [other.words[row] for row, _ in artifacts.cosine_neighbours(other.vectors, 5, 4)]
    assert "live" not in pod.served()


def test_a_killed_triton_and_a_killed_agent_come_back_following(followed: tuple[ServingPod, QuickRun]) -> None:
    pod, _ = followed
    pod.start_all()
    wait(lambda: pod.readyz()[0] == 200)
    wait(lambda: pod.served().get("live", {}).get("taken", 0) > 1)
    pod.processes["triton"].send_signal(signal.SIGKILL)
    wait(lambda: pod.readyz()[0] == 503)
    pod.processes["triton"].wait()
    pod.start_triton()
    wait(lambda: pod.readyz()[0] == 200)
    step = live(pod)["step"]
    wait(lambda: live(pod)["step"] > step)
    pod.processes["agent"].send_signal(signal.SIGKILL)
    pod.processes["agent"].wait()
    pod.start("agent")
    wait(lambda: pod.readyz()[0] == 200)
    step = live(pod)["step"]
    wait(lambda: live(pod)["step"] > step)


def test_the_last_good_parameters_stay_when_the_training_is_gone(followed: tuple[ServingPod, QuickRun]) -> None:
    pod, run = followed
    pod.start_all()
    wait(lambda: pod.readyz()[0] == 200)
    wait(lambda: pod.served().get("live", {}).get("taken", 0) > 1)
    for name in list(run.processes):
        run.kill(name)
    wait(lambda: live(pod)["phase"] == "Unreachable")
    with Clients(pod) as clients:
        time.sleep(1)
    assert clients.failed == []
    assert len(clients.answered) == 1
    wait(lambda: live(pod)["age"] > 2)
