"""Skip-gram and CBOW with the exact softmax over the vocabulary: the textbook's model, and what others approximate.

A pair's loss is the cross-entropy -log softmax(C v)[target], v the input's vector, C the contexts [V, d]. The scores of
an input with all words are the same for each of its targets: skip-gram computes them once for all words around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from mms_workloads.embedding.parameters import BlockStats, Parameters, Touches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mms_workloads.contract import WordEmbedding
    from mms_workloads.embedding.distribution import Distribution

INPUTS = 64  # whose gradients are added at once
TOKENS = 10_000  # whose windows are held at a time


@dataclass(frozen=True, slots=True)
class Windows:
    """Inputs with their targets. Input i is the mean of words[starts[i]:starts[i + 1]]."""

    words: NDArray[np.int32]
    starts: NDArray[np.int64]  # [n + 1]
    owners: NDArray[np.int64]  # of each pair: its input, ascending
    targets: NDArray[np.int32]  # of each pair


def train_block(
    parameters: Parameters,
    tokens: NDArray[np.int32],
    words: Distribution,
    task: WordEmbedding,
    *,
    rates: tuple[float, float],
    seed: int,
    threads: int = 1,
    touches: Touches | None = None,
) -> BlockStats:
    """Trains on a block in place. tokens: [n], below 0 ends a sentence; rates: learning rate at start and end.

    A touch of a context is the part of an input's targets that the model gives it, and each time that it is one. There
    must be all contexts.
    """
    rng, pairs, loss = np.random.default_rng(seed), 0, 0.0
    with threadpool_limits(limits=threads, user_api="blas"):
        for start in range(0, len(tokens), TOKENS):
            found = windows(tokens[start : start + TOKENS], words, task, rng)
            rate = rates[0] + (rates[1] - rates[0]) * start / len(tokens)
            count = len(found.starts) - 1
            for first in range(0, count, INPUTS):
                loss += step(parameters, part(found, first, min(first + INPUTS, count)), rate, touches)
            pairs += len(found.targets)
    return BlockStats(int((tokens >= 0).sum()), float(pairs), loss / pairs if pairs else None)


def step(parameters: Parameters, batch: Windows, rate: float, touches: Touches | None = None) -> float:
    """Takes a step against the summed gradient of the batch; returns its summed loss."""
    vectors, contexts = parameters.vectors, parameters.contexts
    at = batch.words if parameters.places is None else parameters.places.vectors[batch.words]
    sizes = np.diff(batch.starts)
    inputs = np.add.reduceat(vectors[at], batch.starts[:-1]) / sizes[:, None].astype(np.float32)
    scores = inputs @ contexts.T
    targets = np.bincount(batch.owners, minlength=len(sizes)).astype(np.float32)
    of_targets = scores[batch.owners, batch.targets]
    highest = scores.max(axis=1, keepdims=True)
    scores -= highest
    np.exp(scores, out=scores)
    sums = scores.sum(axis=1, keepdims=True)
    loss = float((targets * (np.log(sums) + highest)[:, 0]).sum() - of_targets.sum())
    scores *= targets[:, None] / sums
    if touches is not None:
        touches.contexts[:] += scores.sum(axis=0)
        np.add.at(touches.contexts, batch.targets, 1)
        np.add.at(touches.vectors, batch.words, np.repeat(targets, sizes))
    np.subtract.at(scores, (batch.owners, batch.targets), 1)
    scores *= rate
    change = scores @ contexts
    contexts -= scores.T @ inputs
    # Each word of a bag gets the whole of the mean's gradient, as in word2vec.c.
    np.subtract.at(vectors, at, np.repeat(change, sizes, axis=0))
    return loss


def windows(tokens: NDArray[np.int32], words: Distribution, task: WordEmbedding, rng: np.random.Generator) -> Windows:
    """Of a block, after frequent words were skipped."""
    used = tokens >= 0
    used[used] = rng.random(int(used.sum()), np.float32) < words.keep[tokens[used]]
    ids, sentence = tokens[used], np.cumsum(tokens < 0)[used]
    reach = np.full(len(ids), task.window)
    if task.windowing == "Dynamic":
        reach = rng.integers(1, task.window + 1, len(ids))
    centres, near = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for distance in range(1, task.window + 1):
        left = np.flatnonzero(sentence[:-distance] == sentence[distance:])
        for centre, other in ((left, left + distance), (left + distance, left)):
            within = reach[centre] >= distance
            centres.append(centre[within])
            near.append(other[within])
    centre, other = np.concatenate(centres), np.concatenate(near)
    bag = task.model == "CBOW"
    order = np.lexsort((other, centre) if bag else (centre, other))
    centre, other = centre[order], other[order]
    inputs, starts = np.unique(centre if bag else other, return_index=True)
    if bag:
        bounds = np.append(starts, len(other))
        return Windows(ids[other], bounds, np.arange(len(inputs)), ids[inputs])
    owners = np.repeat(np.arange(len(inputs)), np.diff(np.append(starts, len(other))))
    return Windows(ids[inputs], np.arange(len(inputs) + 1), owners, ids[centre])


def part(all_: Windows, first: int, last: int) -> Windows:
    """Inputs [first, last)."""
    words = slice(all_.starts[first], all_.starts[last])
    pairs = slice(*np.searchsorted(all_.owners, (first, last)))
    return Windows(
        all_.words[words], all_.starts[first : last + 1] - words.start, all_.owners[pairs] - first, all_.targets[pairs]
    )


def rows(vocabulary: int, tokens: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of vectors and of contexts that training on the block may touch, ascending: of contexts all."""
    return np.unique(tokens[tokens >= 0]).astype(np.int64), np.arange(vocabulary)
