"""Trains word vectors with our kernels: folder, kind, epochs, seed, and where the vectors go (or not)."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from mms_workloads.contract import WordEmbedding
from mms_workloads.embedding import word2vec
from mms_workloads.embedding.distribution import distribution
from mms_workloads.embedding.parameters import initial_parameters
from mms_workloads.train.learner import decayed

THREADS = 2
BLOCK = 1_000_000  # tokens: the learning rate falls linearly through all of them
TASKS = {
    "skip-gram": WordEmbedding(),
    "cbow": WordEmbedding(model="CBOW"),
    "hierarchical": WordEmbedding(objective="HierarchicalSoftmax"),
}


def peak_mib() -> float:
    """Of this program alone: what getrusage says begins with the memory of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    folder, kind, epochs, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    task = TASKS[kind]
    lines = (folder / "words.txt").read_text(encoding="utf-8").splitlines()
    counts = np.array([int(line.rpartition("\t")[2]) for line in lines])
    tokens = np.load(folder / "tokens.npy")
    words, model = distribution(counts, task), initial_parameters(len(counts), task.dimensions, seed)
    blocks = np.split(tokens, range(BLOCK, len(tokens), BLOCK))
    rate, total = 0.05 if task.model == "CBOW" else 0.025, epochs * len(blocks)
    began, done = time.perf_counter(), 0
    for turn in range(total):
        rates = (decayed(rate, turn / total), decayed(rate, (turn + 1) / total))
        block = blocks[turn % len(blocks)]
        chance = {"seed": seed * 1_000_003 + turn, "threads": THREADS}
        done += word2vec.train_block(model, block, words, task, rates=rates, **chance).words
    took = time.perf_counter() - began
    if len(sys.argv) > 5:
        np.save(sys.argv[5], model.vectors)
    print(json.dumps({"words_per_second": done / took, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()
