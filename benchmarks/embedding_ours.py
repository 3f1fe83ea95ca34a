"""Trains word vectors with our kernels: folder, kind, epochs, seed, and where the vectors go (or not)."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from mms_workloads.contract import Subwords, WordEmbedding
from mms_workloads.embedding import files, training
from mms_workloads.embedding.distribution import distribution
from mms_workloads.embedding.parameters import initial_parameters

THREADS = 2
BLOCK = 1_000_000  # tokens: the learning rate falls linearly through all of them
TASKS = {
    "skip-gram": WordEmbedding(),
    "cbow": WordEmbedding(model="CBOW"),
    "hierarchical": WordEmbedding(objective="HierarchicalSoftmax"),
    "subword": WordEmbedding(subwords=Subwords(buckets=2_000_000)),
}
RATES = {"cbow": 0.05, "subword": 0.05}


def peak_mib() -> float:
    """Of this program alone: what getrusage says begins with the memory of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    folder, kind, epochs, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    task = TASKS[kind]
    lines = (folder / "words.txt").read_text(encoding="utf-8").splitlines()
    vocabulary, numbers = zip(*(line.split("\t") for line in lines), strict=True)
    tokens = np.load(folder / "tokens.npy")
    words = distribution(np.array(numbers, np.int64), task, vocabulary)
    buckets = task.subwords.buckets if task.subwords else 0
    model = initial_parameters(len(vocabulary), task.dimensions, seed, buckets)
    blocks = np.split(tokens, range(BLOCK, len(tokens), BLOCK))
    rate, total = RATES.get(kind, 0.025), epochs * len(blocks)
    began, done, pairs = time.perf_counter(), 0, 0.0
    for turn in range(total):
        rates = (rate * (1 - turn / total), rate * max(1e-4, 1 - (turn + 1) / total))
        chance = {"seed": seed * 1_000_003 + turn, "threads": THREADS}
        stats = training.train_block(model, blocks[turn % len(blocks)], words, task, rates=rates, **chance)
        done, pairs = done + stats.words, pairs + stats.pairs
    took = time.perf_counter() - began
    if len(sys.argv) > 5:
        np.save(sys.argv[5], files.words_of(model, words))
    counts = np.array(numbers, np.float64)
    used = counts * words.keep  # of each word's occurrences
    outputs = 1.0 + task.negatives
    if words.tree is not None:  # nodes on the way to a word
        outputs = float(np.diff(words.tree.starts) @ used / used.sum())
    row = model.vectors.strides[0]
    # A score, and what the input and the output learn from it: a multiplication and an addition for each dimension.
    flops = pairs * outputs * 6 * task.dimensions
    # Of a window one word's vector and context come new, and of the negatives each is fetched once in eight windows.
    fetched = 2 + (task.negatives / 8 if words.tree is None else 0)
    moved = done * float(used.sum() / counts.sum()) * fetched * 2 * row
    print(
        json.dumps(
            {
                "words_per_second": done / took,
                "peak_mib": peak_mib(),
                "gflops": flops / took / 1e9,
                "gigabytes": moved / took / 1e9,
            }
        )
    )


if __name__ == "__main__":
    main()
