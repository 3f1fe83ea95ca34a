"""Another artifact into a running pod, 1,000 times under load; and new pods instead, a few times. `make bench-hotswap`.

A serving pod (fetch, Triton, agent) is processes on this machine; word vectors of 30,000 words and 100 numbers; eight
clients ask for ten neighbours over gRPC, each as soon as it has its answer, and check it: which artifact answered, and
that the words are those of this artifact. First nobody changes anything, for a minute. Then two artifacts take turns,
each as soon as the other serves. At last the pod is replaced, as a rolling update does it: a second one is started,
the clients go to it when it is ready, and the first one ends; without a scheduler, a registry and a Service, so that a
cluster is slower.

Printed: requests that failed, p99 quiet and while artifacts change, seconds a swap.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tritonclient.grpc as triton

from tests.unit.serve import artifacts
from tests.unit.serve.serving_pod import ServingPod, wait
from tests.unit.serve.triton_home import triton_home

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

SWAPS = int(os.environ.get("MMS_BENCH_SWAPS", "1000"))
QUIET_SECONDS = float(os.environ.get("MMS_BENCH_QUIET_SECONDS", "60"))
ROLLS = int(os.environ.get("MMS_BENCH_ROLLS", "5"))
WORDS, DIMENSIONS, K, CLIENTS = 30_000, 100, 10, 8
ASKED = 50  # different words
FILE = Path(os.environ.get("MMS_RESULTS", "benchmarks/results")) / "hotswap.json"


class Clients:
    """In a process of their own. `begin` and `end` a phase; `go` to another address."""

    def __init__(self, port: int, expected: dict[str, dict[str, list[str]]]) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=ask, args=(theirs, port, expected))
        self._process.start()

    def go(self, port: int) -> None:
        self._pipe.send(("go", port))
        self._pipe.recv()

    def end(self) -> dict[str, Any]:
        """What became of the requests since the last end: count, failures, p50 and p99 in ms."""
        self._pipe.send(("end", 0))
        found: dict[str, Any] = self._pipe.recv()
        return found

    def stop(self) -> None:
        self._pipe.send(("stop", 0))
        self._process.join()


def ask(pipe: Connection, port: int, expected: dict[str, dict[str, list[str]]]) -> None:
    """The clients' process."""
    told = {"port": port, "stop": False}
    seconds: list[float] = []
    failed: list[str] = []
    lock = threading.Lock()

    def client(number: int) -> None:
        at, connection = 0, None
        while not told["stop"]:
            if at != told["port"]:
                if connection:
                    connection.close()
                at = int(told["port"])
                connection = triton.InferenceServerClient(f"127.0.0.1:{at}")
            word = f"word{2 + (number * 7 + len(seconds)) % ASKED}"
            began = time.perf_counter()
            problem = one(connection, word, expected)
            took = time.perf_counter() - began
            with lock:
                seconds.append(took)
                if problem:
                    failed.append(problem)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    while True:
        command, value = pipe.recv()
        if command == "go":
            told["port"] = value
            time.sleep(1)  # each client ends what it has begun
            pipe.send(None)
            continue
        with lock:
            took, problems = np.array(seconds), list(failed)
            seconds.clear()
            failed.clear()
        if command == "stop":
            told["stop"] = True
            return
        p50, p99 = np.percentile(1e3 * took, [50, 99]).tolist()
        pipe.send({"requests": len(took), "failed": len(problems), "first": problems[:3], "p50": p50, "p99": p99,
                   "worst": float(1e3 * took.max())})  # fmt: skip


def one(client: triton.InferenceServerClient, word: str, expected: dict[str, dict[str, list[str]]]) -> str | None:
    """What is wrong with an answer; None: nothing."""
    asked = triton.InferInput("WORDS", [1, 1], "BYTES")
    asked.set_data_from_numpy(np.array([[word.encode()]], dtype=object))
    try:
        answer = client.infer("neighbours", [asked], client_timeout=30)
    except Exception as error:  # noqa: BLE001 - whatever a client sees counts
        return f"{type(error).__name__}: {error}"
    digest = answer.as_numpy("DIGEST").flat[0].decode()
    found = [other.decode() for other in answer.as_numpy("WORDS").ravel()]
    return None if expected.get(digest, {}).get(word) == found else f"{word}: not the answer of {digest}"


def answers(built: artifacts.Built) -> dict[str, list[str]]:
    """The neighbours of each word that is asked for."""
    units = built.vectors / np.linalg.norm(built.vectors, axis=1, keepdims=True)
    found = {}
    for row in range(2, 2 + ASKED):
        scores = units @ units[row]
        scores[row] = -2
        best = np.argpartition(-scores, K)[:K]
        found[built.words[row]] = [built.words[other] for other in best[np.argsort(-scores[best])]]
    return found


def serving(pod: ServingPod) -> None:
    pod.start_all()
    wait(lambda: pod.readyz()[0] == 200)


def swap(pod: ServingPod, built: artifacts.Built) -> float:
    """Seconds until the pod says that it serves it."""
    began = time.monotonic()
    pod.want(built)
    while pod.served()["digest"] != built.digest:
        time.sleep(0.01)
    return time.monotonic() - began


def main() -> int:
    home = triton_home()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        (root / "a").mkdir()
        pod = ServingPod(root / "a", home, size=WORDS, dimensions=DIMENSIONS)
        other = artifacts.build(root / "other", size=WORDS, dimensions=DIMENSIONS, seed=1, version=4)
        serving(pod)
        clients = Clients(pod.ports[1], {built.digest: answers(built) for built in (pod.built, other)})
        try:
            time.sleep(5)  # the clients' start
            clients.end()
            time.sleep(QUIET_SECONDS)
            found["quiet"] = clients.end()
            took = []
            for number in range(SWAPS):
                took.append(swap(pod, (other, pod.built)[number % 2]))
                if (number + 1) % 100 == 0:
                    print(f"{number + 1} swaps, {statistics.median(took):.2f} s each", flush=True)
            found["swapped"] = {**clients.end(), "seconds": took}
            found["rolled"] = roll(pod, root, clients)
        finally:
            clients.stop()
            pod.stop()
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(found))
    report(found)
    return 0


def roll(pod: ServingPod, root: Path, clients: Clients) -> dict[str, Any]:
    """New pods, one after the other."""
    took, pods = [], [pod]
    for number in range(ROLLS):
        folder = root / f"pod{number}"
        folder.mkdir()
        following = ServingPod(folder, pod.home, size=WORDS, dimensions=DIMENSIONS)
        began = time.monotonic()
        serving(following)
        clients.go(following.ports[1])
        took.append(time.monotonic() - began - 1)
        if number:
            pods[-1].stop()
        pods.append(following)
    found = {**clients.end(), "seconds": took}
    clients.go(pod.ports[1])
    pods[-1].stop()
    return found


def report(found: dict[str, Any]) -> None:
    quiet, swapped, rolled = found["quiet"], found["swapped"], found["rolled"]
    for name, one_ in found.items():
        print(f"{name}: {one_['requests']:,} requests, {one_['failed']} failed {one_['first']}, "
              f"p50 {one_['p50']:.1f}, p99 {one_['p99']:.1f}, worst {one_['worst']:.0f} ms")  # fmt: skip
    ours, theirs = (statistics.median(one_["seconds"]) for one_ in (swapped, rolled))
    print(f"RESULT hotswap-seconds {ours:.2f} s vs a new pod's processes {theirs:.2f} s: {theirs / ours:.1f}x")
    print(f"RESULT hotswap-failed {swapped['failed']} requests vs new pods {rolled['failed']} requests: "
          f"{swapped['failed'] - rolled['failed']:+d}x")  # fmt: skip
    ratio = quiet["p99"] / swapped["p99"]
    print(f"RESULT hotswap-p99 {swapped['p99']:.1f} ms vs quiet {quiet['p99']:.1f} ms: {ratio:.2f}x")


if __name__ == "__main__":
    sys.exit(main())
