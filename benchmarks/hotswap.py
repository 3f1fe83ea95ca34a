"""Another artifact into a running pod, 1,000 times under load; and new pods instead, a few times. `make bench-hotswap`.

A serving pod (fetch, Triton, agent) is processes on this machine. Eight clients ask over gRPC, each as soon as it has
its answer, and check it: which artifact answered, and that the answer is this artifact's.

Other weights: word vectors of 30,000 words and 100 numbers, of which the ten neighbours of a word are asked for. First
nobody changes anything, for a minute. Then two artifacts take turns SWAPS times, spread over REQUESTS requests.
Another program: three classifiers whose Python code differs take turns, so that none is still loaded when its turn is.
At last the pod is replaced, as a rolling update does it: a second one is started, the clients go to it when it is
ready, and the first one ends; without a scheduler, a registry and a Service, so that a cluster is slower.

Printed: requests that failed, seconds a swap, and how long requests took quiet and while artifacts change. A stall at a
swap holds up eight requests at most, of the thousand that come until the next one: their p99 cannot show it. So p99 and
the longest of those that were in flight during a swap are printed, too, and p99.9 of all.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.hotswap_clients import Clients, Quiz
from tests.unit.serve import artifacts
from tests.unit.serve.networks import of_one_colour
from tests.unit.serve.program_pods import MODEL, Pod, file_of, python
from tests.unit.serve.serving_pod import ServingPod, wait
from tests.unit.serve.triton_home import triton_home

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.hotswap_clients import Span

SWAPS = int(os.environ.get("MMS_BENCH_SWAPS", "1000"))
REQUESTS = int(os.environ.get("MMS_BENCH_REQUESTS", "1000000"))
PROGRAMS = int(os.environ.get("MMS_BENCH_PROGRAMS", "15"))
QUIET_SECONDS = float(os.environ.get("MMS_BENCH_QUIET_SECONDS", "60"))
ROLLS = int(os.environ.get("MMS_BENCH_ROLLS", "5"))
WORDS, DIMENSIONS, K = 30_000, 100, 10
ASKED = 50  # different words
FILE = Path(os.environ.get("MMS_RESULTS", "benchmarks/results")) / "hotswap.json"


def main() -> int:
    found: dict[str, Any] = {}
    for name, measure in (("weights", weights), ("programs", programs)):
        with tempfile.TemporaryDirectory() as made:
            found[name] = measure(Path(made))
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(found))
    report(found)
    return 0


def weights(root: Path) -> dict[str, Any]:
    def pod(folder: Path) -> ServingPod:
        return ServingPod(folder, triton_home(), size=WORDS, dimensions=DIMENSIONS)

    first = pod(root / "pod")
    other = artifacts.build(root / "other", size=WORDS, dimensions=DIMENSIONS, seed=1, version=4)
    built = (other, first.built)
    words = [f"word{row}".encode() for row in range(2, 2 + ASKED)]
    quiz = Quiz("neighbours", "WORDS", "WORDS", words, {one.digest: answers(one) for one in built})

    def want(number: int) -> str:
        first.want(built[number % 2])
        return built[number % 2].digest

    return measured(first, quiz, want, (SWAPS, REQUESTS / SWAPS), lambda number: pod(root / f"pod{number}"))


def programs(root: Path) -> dict[str, Any]:
    turns = {"b": 1, "c": -1, "d": 1}
    red = of_one_colour((255, 0, 0))

    def pod(folder: Path) -> Pod:
        made = Pod(folder, triton_home())
        for letter, sign in turns.items():
            python(folder / letter, sign)
        made.more = file_of(folder, "b")
        return made

    first = pod(root / "pod")
    digests = {letter: file_of(first.root, letter)["artifact"]["digest"] for letter in turns}
    says = {digests[letter]: {red: ["red" if sign > 0 else "green"]} for letter, sign in turns.items()}

    def want(number: int) -> str:
        letter = "cdb"[number % 3]
        first.wants(letter)
        return digests[letter]

    quiz = Quiz(MODEL, "IMAGE", "LABELS", [red], says)
    return measured(first, quiz, want, (PROGRAMS, 0), lambda number: pod(root / f"pod{number}"))


def measured(
    pod: ServingPod,
    quiz: Quiz,
    want: Callable[[int], str],
    swaps: tuple[int, float],
    following: Callable[[int], ServingPod],
) -> dict[str, Any]:
    """Quiet, then so many swaps with so many requests to each, then new pods.

    want(number) tells the pod what to serve next, and is that artifact's digest.
    """
    count, between = swaps
    serving(pod)
    clients = Clients(pod.ports[1], quiz)
    try:
        time.sleep(5)  # the clients' start
        clients.end()
        time.sleep(QUIET_SECONDS)
        found = {"quiet": clients.end()}
        took: list[float] = []
        swapped: list[Span] = []
        for number in range(count):
            seconds, span = swap(pod, want(number))
            took.append(seconds)
            swapped.append(span)
            while (asked := clients.count())[0] < (number + 1) * between:
                time.sleep(0.02)
            if (number + 1) % 50 == 0:
                median = statistics.median(took)
                print(f"{number + 1} swaps, {median:.2f} s each, {asked[1]} of {asked[0]:,} failed", flush=True)
        found["swapped"] = {**clients.end(swapped), "seconds": took}
        found["rolled"] = roll(pod, clients, following)
    finally:
        clients.stop()
        pod.stop()
    return found


def answers(built: artifacts.Built) -> dict[bytes, list[str]]:
    """The neighbours of each word that is asked for."""
    units = built.vectors / np.linalg.norm(built.vectors, axis=1, keepdims=True)
    found = {}
    for row in range(2, 2 + ASKED):
        scores = units @ units[row]
        scores[row] = -2
        best = np.argpartition(-scores, K)[:K]
        found[built.words[row].encode()] = [built.words[other] for other in best[np.argsort(-scores[best])]]
    return found


def serving(pod: ServingPod) -> None:
    pod.start_all()
    wait(lambda: pod.readyz()[0] == 200)


def swap(pod: ServingPod, digest: str) -> tuple[float, Span]:
    """Seconds until the pod says that it serves it; and from when to when its agent was at it, or a few ms more.

    Raises RuntimeError where it says that it cannot.
    """
    told = last = time.monotonic()
    while True:
        asked = time.monotonic()
        served = pod.served()
        said = served.get("swap") or {}
        if said.get("phase") == "Failed":
            raise RuntimeError(f"a swap failed: {said}")
        if (served["digest"], said.get("digest"), said.get("phase")) == (digest, digest, "Done"):
            ended = time.monotonic()
            # The agent says how long it took: it was not done when it was last asked, so it began later than that.
            return ended - told, (max(told, last - said["seconds"]), ended)
        last = asked
        time.sleep(0.01)


def roll(pod: ServingPod, clients: Clients, following: Callable[[int], ServingPod]) -> dict[str, Any]:
    """New pods, one after the other."""
    took, pods = [], [pod]
    for number in range(ROLLS):
        pods.append(following(number))
        began = time.monotonic()
        serving(pods[-1])
        clients.go(pods[-1].ports[1])
        took.append(time.monotonic() - began - 1)
        if number:
            pods[-2].stop()
    found = {**clients.end(), "seconds": took}
    clients.go(pod.ports[1])
    pods[-1].stop()
    return found


def report(found: dict[str, Any]) -> None:
    for what, name in (("programs", "hotswap-program"), ("weights", "hotswap")):
        quiet, swapped, rolled = (found[what][phase] for phase in ("quiet", "swapped", "rolled"))
        for phase, one in found[what].items():
            print(
                f"{what} {phase}: {one['requests']:,} requests, {one['failed']} failed {one['first']}, "
                f"p50 {one['p50']:.1f}, p99 {one['p99']:.1f}, p99.9 {one['p999']:.1f}, worst {one['worst']:.0f} ms"
            )
        ours, theirs = (statistics.median(one["seconds"]) for one in (swapped, rolled))
        print(f"RESULT {name}-seconds {ours:.2f} s vs a new pod's processes {theirs:.2f} s: {theirs / ours:.1f}x")
        print(f"RESULT {name}-failed {swapped['failed']} requests vs new pods {rolled['failed']} requests: "
              f"{swapped['failed'] - rolled['failed']:+d}x")  # fmt: skip
        overlapping = swapped["overlapping"]
        print(f"{what}: {overlapping['requests']:,} requests were in flight during a swap")
        for which, ours, before in (
            ("p99", swapped["p99"], quiet["p99"]),
            ("p999", swapped["p999"], quiet["p999"]),
            ("overlapping-p99", overlapping["p99"], quiet["p99"]),
            ("overlapping-max", overlapping["worst"], quiet["worst"]),
        ):
            print(f"RESULT {name}-{which} {ours:.1f} ms vs quiet {before:.1f} ms: {ours / before:.2f}x")


if __name__ == "__main__":
    sys.exit(main())
