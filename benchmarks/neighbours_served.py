"""Nearest neighbours of one word at a time, through a serving pod on one core. `make bench-neighbours-served`.

A pod (fetch, Triton, agent) is processes on this machine, all on one processor; the client, which asks over gRPC as
soon as it has its answer, is on the others. 100,000 words of 100 numbers are searched one by one, 250,000 in a graph.
The vectors are made as word vectors are: of 20 hidden numbers, mixed, and noise. Of the graph's answers is told how
many of the ten nearest are in them. The peer is a product of the word's vector with all by numpy, in this process, on
that core.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

# Before numpy, which reads them when it is imported.
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

import numpy as np
import tritonclient.grpc as triton

from tests.unit.serve import artifacts
from tests.unit.serve.serving_pod import ServingPod, wait
from tests.unit.serve.triton_home import triton_home

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORDS, MANY_WORDS = 100_000, 250_000
DIMENSIONS, HIDDEN, NOISE, K = 100, 20, 0.3, 10
QUESTIONS = int(os.environ.get("MMS_BENCH_QUESTIONS", "2000"))
WARM_UP = 50
GOAL = 10.0  # ms, of 99 in 100 answers
FILE = Path(os.environ.get("MMS_RESULTS", "benchmarks/results")) / "neighbours_served.json"


def vectors(size: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    mixed = rng.standard_normal((size, HIDDEN), np.float32) @ rng.standard_normal((HIDDEN, DIMENSIONS), np.float32)
    found: NDArray[np.float32] = mixed / np.sqrt(HIDDEN) + NOISE * rng.standard_normal((size, DIMENSIONS), np.float32)
    return found


def nearest(unit: NDArray[np.float32], row: int) -> NDArray[np.int64]:
    """The K rows that are nearest to that one."""
    scores = unit @ unit[row]
    scores[row] = -np.inf
    best = np.argpartition(-scores, K)[:K]
    return best[np.argsort(-scores[best])]


def measured(root: Path, size: int, core: int) -> dict[str, list[float]]:
    """Milliseconds of each answer, of numpy's, and the part of the nearest that each answer has."""
    given, all_cores = vectors(size), os.sched_getaffinity(0)
    built = artifacts.build(root / "store", given=given, neighbours=size >= MANY_WORDS)
    unit = given / np.linalg.norm(given, axis=1, keepdims=True)
    rows = {word: row for row, word in enumerate(built.words)}
    pod = ServingPod(root / "pod", triton_home(), built=built)
    found: dict[str, list[float]] = {"ms": [], "numpy": [], "recall": []}
    os.sched_setaffinity(0, {core})  # processes that are started inherit it
    try:
        pod.start_all()
        wait(lambda: pod.readyz()[0] == 200)
        asked = np.random.default_rng(2).integers(0, size, WARM_UP + QUESTIONS)
        for row in asked[WARM_UP : WARM_UP + QUESTIONS // 10]:
            began = time.perf_counter()
            nearest(unit, int(row))
            found["numpy"].append(1e3 * (time.perf_counter() - began))
        os.sched_setaffinity(0, all_cores - {core} or all_cores)
        with triton.InferenceServerClient(f"127.0.0.1:{pod.ports[1]}") as client:
            for number, row in enumerate(asked):
                inputs = question(built.words[row])
                began = time.perf_counter()
                answer = client.infer("neighbours", inputs)
                took = 1e3 * (time.perf_counter() - began)
                if number < WARM_UP:
                    continue
                found["ms"].append(took)
                told = {rows[word.decode()] for word in answer.as_numpy("WORDS")[0]}
                found["recall"].append(len(told & set(nearest(unit, int(row)).tolist())) / K)
    finally:
        os.sched_setaffinity(0, all_cores)
        pod.stop()
    return found


def question(word: str) -> list[triton.InferInput]:
    words, count = triton.InferInput("WORDS", [1, 1], "BYTES"), triton.InferInput("K", [1, 1], "INT32")
    words.set_data_from_numpy(np.array([[word.encode()]], np.object_))
    count.set_data_from_numpy(np.array([[K]], np.int32))
    return [words, count]


def main() -> int:
    core = max(os.sched_getaffinity(0))
    found = {}
    for size in (MANY_WORDS, WORDS):
        with tempfile.TemporaryDirectory() as made:
            found[size] = measured(Path(made), size, core)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(found))
    for size, one in found.items():
        p50, p99 = np.percentile(one["ms"], [50, 99])
        peer = float(np.percentile(one["numpy"], 99))
        print(f"{size:,} words: p50 {p50:.2f}, p99 {p99:.2f} ms, {np.mean(one['recall']):.2%} of the ten nearest")
        print(f"RESULT neighbours-served-{size}-numpy {p99:.2f} ms vs numpy {peer:.2f} ms: {peer / p99:.2f}x")
        print(f"RESULT neighbours-served-{size} {p99:.2f} ms vs goal {GOAL:g} ms: {GOAL / p99:.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
