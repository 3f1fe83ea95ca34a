"""The exact softmax: ours against a plain loop of torch's cross-entropy. Arguments: folder, seed.

Skip-gram over the most frequent 10,000 words, on the same pairs. torch's batches are of several sizes, and its best
counts. First both take the same steps from the same parameters, and their losses are compared.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.nn import functional

from mms_workloads.contract import WordEmbedding
from mms_workloads.embedding import softmax
from mms_workloads.embedding.distribution import distribution
from mms_workloads.embedding.parameters import Parameters, initial_parameters

THREADS, VOCABULARY, RATE = 2, 10_000, 0.025
TOKENS = 40_000
BATCHES = (64, 128, 256, 512, 1024, 2048)  # pairs
STEPS = 50  # of a batch size, that are timed; and that are compared


def ours(parameters: Parameters, windows: softmax.Windows, steps: int) -> tuple[float, list[float], int]:
    """Seconds, the mean loss of each step, pairs."""
    pairs, losses, began = 0, [], time.perf_counter()
    with threadpool_limits(limits=THREADS, user_api="blas"):
        for first in range(0, min(steps * softmax.INPUTS, len(windows.starts) - 1), softmax.INPUTS):
            batch = softmax.part(windows, first, min(first + softmax.INPUTS, len(windows.starts) - 1))
            losses.append(softmax.step(parameters, batch, RATE) / len(batch.targets))
            pairs += len(batch.targets)
    return time.perf_counter() - began, losses, pairs


def theirs(
    vectors: torch.nn.Embedding, contexts: torch.nn.Linear, batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[float, list[float]]:
    sparse = torch.optim.SGD(vectors.parameters(), RATE)
    dense = torch.optim.SGD(contexts.parameters(), RATE)
    losses, began = [], time.perf_counter()
    for inputs, targets in batches:
        sparse.zero_grad()
        dense.zero_grad()
        loss = functional.cross_entropy(contexts(vectors(inputs)), targets, reduction="sum")
        loss.backward()
        sparse.step()
        dense.step()
        losses.append(float(loss.detach()) / len(targets))
    return time.perf_counter() - began, losses


def modules(parameters: Parameters) -> tuple[torch.nn.Embedding, torch.nn.Linear]:
    vectors = torch.nn.Embedding.from_pretrained(torch.from_numpy(parameters.vectors.copy()), freeze=False, sparse=True)
    contexts = torch.nn.Linear(parameters.contexts.shape[1], len(parameters.contexts), bias=False)
    contexts.weight.data.copy_(torch.from_numpy(parameters.contexts))
    return vectors, contexts


def main() -> None:
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(THREADS)
    task = WordEmbedding(objective="Softmax", maxVocabulary=VOCABULARY)
    lines = (folder / "words.txt").read_text(encoding="utf-8").splitlines()[:VOCABULARY]
    counts = np.array([int(line.rpartition("\t")[2]) for line in lines])
    tokens = np.load(folder / "tokens.npy")
    tokens = tokens[tokens < VOCABULARY][:TOKENS]
    windows = softmax.windows(tokens, distribution(counts, task), task, np.random.default_rng(seed))
    inputs = torch.from_numpy(windows.words[windows.owners].astype(np.int64))
    targets = torch.from_numpy(windows.targets.astype(np.int64))
    start = initial_parameters(VOCABULARY, task.dimensions, seed)
    ours(start, windows, STEPS)  # away from the first loss, which is log V for any parameters of zero

    mine = start.copy()
    seconds, losses, pairs = ours(mine, windows, STEPS)
    edges = np.searchsorted(windows.owners, np.arange(0, (STEPS + 1) * softmax.INPUTS, softmax.INPUTS))
    same = [(inputs[a:b], targets[a:b]) for a, b in itertools.pairwise(edges) if b > a]
    _, of_torch = theirs(*modules(start), same)
    best = {}
    for size in BATCHES:
        batches = list(zip(inputs.split(size)[:STEPS], targets.split(size)[:STEPS], strict=True))
        took, _ = theirs(*modules(start), batches)
        best[size] = sum(len(t) for _, t in batches) / took
    size = max(best, key=lambda one: best[one])
    found = {
        "ours": pairs / seconds,
        "torch": best[size],
        "batch": size,
        "difference": max(abs(a - b) / b for a, b in zip(losses, of_torch, strict=True)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
