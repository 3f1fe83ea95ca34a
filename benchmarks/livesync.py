"""How old what a pod answers with is while a training runs, and what following costs both. `make bench-livesync`.

A training of skip-gram (100 numbers, one worker, one thread) and a serving pod (Triton, agent) are processes on this
machine, on a processor each; the clients are beside the pod. One of them asks fifty times a second and looks at when
the parameters that answered were copied, four ask as fast as they can.

In turns the pod follows the training and pauses: rounds of training and answers a second, each with the other; and the
processor time that the follower takes, which what else runs on the machine does not change. Then
what one would do without LiveSync, as fast as it can be done: the parameters are written into a store as an artifact,
here a folder in memory, and the pod takes it by a hot swap, again and again.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc as triton

from mms_cluster import corpus, paths
from mms_workloads import tensors
from mms_workloads.contract import JobFile, LiveOrders, LiveSource
from mms_workloads.serve import live_files
from mms_workloads.serve.ages import Ages
from mms_workloads.serve.follow import source_of
from mms_workloads.train.local import LocalRun
from tests.unit.serve import artifacts
from tests.unit.serve.serving_pod import ServingPod, wait
from tests.unit.serve.triton_home import triton_home

if TYPE_CHECKING:
    from mms_workloads.serve.trainers import Got

TURNS = int(os.environ.get("MMS_BENCH_TURNS", "8"))
TURN_SECONDS = float(os.environ.get("MMS_BENCH_TURN_SECONDS", "20"))
SWAP_SECONDS = float(os.environ.get("MMS_BENCH_SWAP_SECONDS", "60"))
BOUND = int(os.environ.get("MMS_BENCH_BOUND", "1000"))
CLIENTS, SAMPLED = 4, 50.0
UID = "bench"
FILE = Path(os.environ.get("MMS_RESULTS", "benchmarks/results")) / "livesync.json"


@dataclass
class Asked:
    """What clients saw since it was taken last."""

    answers: int = 0
    failed: int = 0
    ages: list[float] = field(default_factory=list)


class Clients:
    """Threads of this process, which is on the pod's processor."""

    def __init__(self, port: int, words: list[str]) -> None:
        self.url, self.words, self.stopped = f"127.0.0.1:{port}", words, threading.Event()
        self._asked, self._lock = Asked(), threading.Lock()
        rates = [0.0] * CLIENTS + [SAMPLED]
        self._threads = [threading.Thread(target=self._ask, args=(number, rate)) for number, rate in enumerate(rates)]
        for thread in self._threads:
            thread.start()

    def take(self) -> Asked:
        with self._lock:
            found, self._asked = self._asked, Asked()
        return found

    def stop(self) -> None:
        self.stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int, rate: float) -> None:
        """rate: a second; 0: without pause."""
        client, count = triton.InferenceServerClient(self.url), number
        while not self.stopped.is_set():
            asked = triton.InferInput("WORDS", [1, 1], "BYTES")
            asked.set_data_from_numpy(np.array([[self.words[count % len(self.words)].encode()]], dtype=object))
            count += 1
            began = time.time()
            try:
                digest = client.infer("neighbours", [asked]).as_numpy("DIGEST").flat[0].decode()
            except Exception:  # noqa: BLE001 - whatever a client sees counts
                digest = ""
            with self._lock:
                self._asked.failed += not digest
                if rate and digest.count(":") == 4:
                    self._asked.ages.append(time.time() - int(digest.rpartition(":")[2]) / 1000)
                elif not rate:
                    self._asked.answers += 1
            if rate:
                self.stopped.wait(max(0.0, began + 1 / rate - time.time()))


class Rounds:
    """How fast the training steps: by its master."""

    def __init__(self, run: LocalRun) -> None:
        self.run = run
        self.step, self.at = self._now()

    def _now(self) -> tuple[int, float]:
        """At the moment of a step: rounds are whole."""
        first = self.run.until(lambda _: True).step
        step = self.run.until(lambda report: report.step > first).step
        return step, time.monotonic()

    def rate(self) -> float:
        """Rounds a second since it was asked last."""
        before, began = self.step, self.at
        self.step, self.at = self._now()
        return (self.step - before) / (self.at - began)


def training(root: Path) -> JobFile:
    text = corpus.speeches(paths.cache_folder())
    return JobFile.model_validate({
        "job": {"namespace": "bench", "name": "words", "uid": UID, "run": 1},
        "task": {"wordEmbedding": {"dimensions": 100, "minCount": 2}},
        "data": {"store": {"uri": text.as_uri()}, "blockBytes": 16_384},
        "optimizer": {"epochs": 10_000}, "workers": 1, "checkpoint": {"intervalSeconds": 100_000},
        "storage": {"uri": (root / "storage").as_uri()}, "masterHost": "127.0.0.1",
    })  # fmt: skip


def pin(pid: int, processor: int) -> None:
    """A process with all its threads and children, which inherit it."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {processor})
        for child in (task / "children").read_text().split():
            pin(int(child), processor)


def follower_seconds(pod: ServingPod) -> float:
    """Processor time of the agent's child."""
    (child,) = (
        Path(f"/proc/{pod.processes['agent'].pid}/task/{pod.processes['agent'].pid}/children").read_text().split()
    )
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def order(pod: ServingPod, *, paused: bool) -> None:
    part = pod.root / "live.part"
    part.write_text(LiveOrders(maxStalenessMilliseconds=BOUND, paused=paused).model_dump_json())
    part.replace(pod.root / "live")
    phase = "Paused" if paused else "Following"
    wait(lambda: pod.served()["live"]["phase"] == phase)
    time.sleep(2)


def turns(pod: ServingPod, run: LocalRun, clients: Clients) -> dict[str, Any]:
    """Following and paused, in turns that begin with either."""
    found: dict[str, Any] = {"following": [], "paused": [], "ages": [], "failed": 0}
    for number in range(TURNS):
        for paused in (False, True) if number % 2 else (True, False):
            order(pod, paused=paused)
            rounds = Rounds(run)
            clients.take()
            began, cpu = time.monotonic(), follower_seconds(pod)
            time.sleep(TURN_SECONDS)
            asked, seconds = clients.take(), time.monotonic() - began
            one = {"rounds": rounds.rate(), "answers": asked.answers / seconds}
            one["follower"] = (follower_seconds(pod) - cpu) / seconds
            found["paused" if paused else "following"].append(one)
            found["failed"] += asked.failed
            if not paused:
                found["ages"] += asked.ages
        ratios = {key: found["following"][-1][key] / found["paused"][-1][key] for key in ("rounds", "answers")}
        print(f"turn {number + 1}: {ratios}", flush=True)
    return found


def publish(folder: Path, got: Got, words: bytes, number: int) -> artifacts.Built:
    """An artifact of parameters that were just copied, in the store."""
    assert got.body is not None
    rows = live_files.widened(live_files.matrix(got.body, got.rows, got.columns))
    folder.mkdir()
    tensors.write(folder / "model.safetensors", {"vectors": rows, "contexts": rows})
    (folder / "vocabulary.txt").write_bytes(words)
    case = {"model": "vectors", "inputs": {"IDS": [0]}, "outputs": {"VECTORS": rows[0].tolist()}}
    (folder / "golden.json").write_text(json.dumps({"cases": [case]}))
    (folder / "evaluation.json").write_text("{}")
    return artifacts.Built(folder, artifacts.seal(folder, version=1, metrics={"number": number}), [], rows)


def swaps(pod: ServingPod, run: LocalRun, root: Path) -> dict[str, Any]:
    """Artifact after artifact into the pod, without a pause; ages by the same reckoning."""
    live = LiveSource(masterHost="127.0.0.1", uid=UID, run=1)
    source = source_of(live, {"MMS_MASTER_PORT": str(run.master_port), "MMS_READER_TLS_DIR": ""})
    words = bytes(source.get("vocabulary").body or b"")
    ages, took, began, number = Ages(), [], time.monotonic(), 0
    while time.monotonic() - began < SWAP_SECONDS:
        got = source.get("parameters")
        made = publish(root / f"artifact-{number}", got, words, number)
        pod.want(made)
        wait(lambda made=made: pod.served()["digest"] == made.digest)  # type: ignore[misc]
        ages.switched(time.monotonic(), got.copied)
        took.append(time.monotonic() - got.copied)
        number += 1
    seen = ages.distribution(time.monotonic())
    return {"seconds": took, "p50": seen.p50, "p99": seen.p99}


def main() -> int:
    home = triton_home()
    serving = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
        root = Path(made)
        with LocalRun(root / "run", training(root)) as run:
            run.start()
            run.until(lambda report: report.step > 1, 300)
            for name, process in run.processes.items():
                pin(process.pid, 0 if name.startswith("worker") else serving)
            os.sched_setaffinity(0, {serving})
            pod = ServingPod(root / "pod", home)
            pod.follow(LiveSource(masterHost="127.0.0.1", uid=UID, run=1), run.master_port)
            try:
                pod.start_all()
                wait(lambda: pod.readyz()[0] == 200, 120)
                wait(lambda: pod.served().get("live", {}).get("taken", 0) > 1)
                found = measure(pod, run, root)
            finally:
                pod.stop()
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(found))
    report(found)
    return 0


def measure(pod: ServingPod, run: LocalRun, root: Path) -> dict[str, Any]:
    vocabulary = next((pod.root / "models").glob("artifact-*/vocabulary.txt"))
    words = [line.split("\t")[0] for line in vocabulary.read_text().splitlines()]
    clients = Clients(pod.ports[1], words[:200])
    try:
        time.sleep(5)  # their start
        found = turns(pod, run, clients)
    finally:
        clients.stop()
    found["words"], found["live"] = len(words), pod.served()["live"]
    found["swapped"] = swaps(pod, run, root)
    return found


def report(found: dict[str, Any]) -> None:
    p50, p99 = np.percentile(found["ages"], [50, 99]).tolist()
    print(f"{found['words']} words, {len(found['ages'])} answers looked at, {found['failed']} failed")
    print(f"age of what answered: p50 {p50:.3f} s, p99 {p99:.3f} s, longest {max(found['ages']):.3f} s")
    for key, name in (("rounds", "training"), ("answers", "serving")):
        pairs = zip(found["following"], found["paused"], strict=True)
        costs = [100 * (1 - with_[key] / without[key]) for with_, without in pairs]
        rate = statistics.median(one[key] for one in found["paused"])
        print(f"{name}: {rate:.1f} {key} a second without, {statistics.median(costs):.1f} % fewer with; turns "
              f"{', '.join(f'{cost:.1f}' for cost in sorted(costs))}")  # fmt: skip
    follower = statistics.median(one["follower"] for one in found["following"])
    print(f"the follower takes {100 * follower:.1f} % of a processor")
    theirs = found["swapped"]
    print(f"artifacts by hot swaps: {statistics.median(theirs['seconds']):.2f} s each, age p50 {theirs['p50']:.3f} s")
    print(f"RESULT livesync-staleness {p99:.2f} s vs an artifact and a hot swap {theirs['p99']:.2f} s: "
          f"{theirs['p99'] / p99:.1f}x")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
