"""What is the same for all blocks: which occurrences are used, what noise is, the tree, what words are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads.embedding.subwords import Pieces, pieces

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mms_workloads.contract import WordEmbedding

NOISE_POWER = 0.75


# A column of the alias method (Walker, 1977; Vose, 1991). One is drawn at random: its word is the column's number with
# probability share / 2^32, else the other one.
COLUMN = np.dtype([("share", "<u4"), ("other", "<i4")])


@dataclass(frozen=True, slots=True)
class Tree:
    """Huffman's, for the hierarchical softmax (Morin and Bengio, 2005).

    The way from the root to word w has the inner nodes nodes[starts[w]:starts[w + 1]]; the code says which way each is
    left.
    """

    starts: NDArray[np.int64]  # [V + 1]
    nodes: NDArray[np.int32]
    codes: NDArray[np.uint8]

    def path(self, word: int) -> tuple[list[int], list[int]]:
        window = slice(int(self.starts[word]), int(self.starts[word + 1]))
        return self.nodes[window].tolist(), self.codes[window].tolist()


@dataclass(frozen=True, slots=True)
class Distribution:
    keep: NDArray[np.float32]  # [V] the probability that an occurrence is used
    noise: NDArray[np.void] | None = None  # [V] COLUMN, of negative sampling: words in proportion to count^0.75
    tree: Tree | None = None  # of the hierarchical softmax
    pieces: Pieces | None = None  # of words that are made of subwords


def distribution(counts: NDArray[np.int64], task: WordEmbedding, words: Sequence[str] = ()) -> Distribution:
    """counts: [V]; words: where they are made of subwords. The formulas are word2vec.c's."""
    keep = np.ones(len(counts), np.float32)
    if task.subsample > 0:
        ratio = task.subsample * counts.sum() / counts
        keep = np.minimum(np.sqrt(ratio) + ratio, 1.0).astype(np.float32)
    return Distribution(
        keep,
        alias(counts.astype(np.float64) ** NOISE_POWER) if task.objective == "NegativeSampling" else None,
        huffman(counts) if task.objective == "HierarchicalSoftmax" else None,
        pieces(words, task.subwords) if task.subwords else None,
    )


def alias(weights: NDArray[np.float64]) -> NDArray[np.void]:
    """Vose's columns [V] for drawing words with these weights [V]."""
    size = len(weights)
    scaled = (weights * (size / weights.sum())).tolist()
    share, other = [1.0] * size, list(range(size))
    small = [i for i, weight in enumerate(scaled) if weight < 1]
    large = [i for i, weight in enumerate(scaled) if weight >= 1]
    while small and large:
        low, high = small.pop(), large[-1]
        share[low], other[low] = scaled[low], high
        scaled[high] -= 1 - scaled[low]
        if scaled[high] < 1:
            small.append(large.pop())
    shares = np.minimum(np.array(share) * 2**32, 2**32 - 1)
    columns = np.empty(size, COLUMN)
    columns["share"], columns["other"] = shares, other
    return columns


def huffman(counts: NDArray[np.int64]) -> Tree:
    """counts: [V]. By two queues (van Leeuwen, 1976): words, and nodes in the order of their making."""
    size = len(counts)
    order = np.argsort(-counts, kind="stable").tolist()
    weights = counts.tolist()
    word, node = size - 1, 0  # heads of the queues; words by their place in `order`
    made: list[int] = []
    parents, bits = [0] * (2 * size - 1), [0] * (2 * size - 1)
    for parent in range(size - 1):
        total = 0
        for bit in (0, 1):
            if word >= 0 and (node >= len(made) or weights[order[word]] <= made[node]):
                child, weight = order[word], weights[order[word]]
                word -= 1
            else:
                child, weight = size + node, made[node]
                node += 1
            parents[child], bits[child] = parent, bit
            total += weight
        made.append(total)
    return _paths(np.array(parents, np.int32), np.array(bits, np.uint8), size)


def _paths(parents: NDArray[np.int32], bits: NDArray[np.uint8], size: int) -> Tree:
    """All words go up to the root together, one node at a time, and once more when it is known how far each has to."""
    depth = np.zeros(size, np.int64)
    for climbing, _ in _climb(parents, size):
        depth[climbing] += 1
    starts = np.concatenate(([0], np.cumsum(depth)))
    nodes, codes = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.uint8)
    for step, (climbing, child) in enumerate(_climb(parents, size), 1):  # the last node first
        place = starts[climbing + 1] - step
        nodes[place], codes[place] = parents[child], bits[child]
    return Tree(starts, nodes, codes)


def _climb(parents: NDArray[np.int32], size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Step by step: the words that are not at the root yet, and the nodes where these are."""
    at = np.arange(size)
    while len(climbing := np.flatnonzero(at != 2 * size - 2)):
        child = at[climbing]
        yield climbing, child
        at[climbing] = size + parents[child]
