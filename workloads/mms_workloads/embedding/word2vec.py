"""Skip-gram and CBOW with negative sampling or hierarchical softmax (Mikolov et al., 2013), by the native kernels.

Several threads train the same matrices without locks, each on a part of the block; with one thread the result follows
from the seed to the last bit.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mms_workloads.embedding import native
from mms_workloads.embedding.native import LINE, at
from mms_workloads.embedding.parameters import BlockStats, Parameters, Touches, no_touches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mms_workloads.contract import WordEmbedding
    from mms_workloads.embedding.distribution import Distribution

LEAST_TOKENS = 20_000  # of a thread: for fewer, starting it costs more than it saves


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

    Raises ValueError for matrices whose rows are not on cache lines, MemoryError.
    """
    model = _model(words, task, touches)
    model.stride = native.stride(parameters.vectors, parameters.contexts)
    model.vectors, model.contexts = at(parameters.vectors), at(parameters.contexts)
    if parameters.places is not None:
        model.vector_places, model.context_places = at(parameters.places.vectors), at(parameters.places.contexts)
    done = _run(model, _passes(_known(tokens, words), rates, seed, threads))
    measured = sum(one.measured for one in done)
    loss = sum(one.loss for one in done) / measured if measured else None
    return BlockStats(sum(one.words for one in done), float(sum(one.pairs for one in done)), loss)


def rows(
    tokens: NDArray[np.int32], words: Distribution, task: WordEmbedding, *, seed: int, threads: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of vectors and of contexts that training on the block with this seed touches, ascending."""
    touches = no_touches(len(words.keep), task.subwords.buckets if task.subwords else 0)
    passes = _passes(_known(tokens, words), (0.0, 0.0), seed, threads)
    for one in passes:
        one.replay = True
    _run(_model(words, task, touches), passes)
    return np.flatnonzero(touches.vectors), np.flatnonzero(touches.contexts)


def _known(tokens: NDArray[np.int32], words: Distribution) -> NDArray[np.int32]:
    """The kernels look up what they are given. Raises ValueError."""
    if tokens.size and int(tokens.max()) >= len(words.keep):
        raise ValueError(f"token {tokens.max()} of a vocabulary of {len(words.keep)} words")
    return tokens


def _model(words: Distribution, task: WordEmbedding, touches: Touches | None) -> native.Words:
    """As the kernels take it, without matrices."""
    model = native.Words(
        keep=at(words.keep),
        words=len(words.keep),
        stride=LINE,
        window=task.window,
        fixed=task.windowing == "Fixed",
        negatives=task.negatives,
        bag=task.model == "CBOW",
    )
    if touches is not None:
        model.vector_touches, model.context_touches = at(touches.vectors), at(touches.contexts)
    if words.noise is not None:
        model.noise = at(words.noise)
    if words.tree is not None:
        tree = words.tree
        model.tree_starts, model.tree_nodes = at(tree.starts), at(tree.nodes)
        model.tree_codes = at(tree.codes)
    if words.pieces is not None:
        model.subword_starts, model.subwords = at(words.pieces.starts), at(words.pieces.rows)
    return model


def _passes(tokens: NDArray[np.int32], rates: tuple[float, float], seed: int, threads: int) -> list[native.Pass]:
    """The block in parts, one for each thread that has enough to do."""
    size = len(tokens)
    parts = max(1, min(threads, size // LEAST_TOKENS))
    bounds = [size * i // parts for i in range(parts + 1)]
    fall = (rates[1] - rates[0]) / max(1, size)
    return [
        native.Pass(
            tokens=at(tokens) + tokens.itemsize * start,
            count=stop - start,
            seed=(seed * 0x9E3779B97F4A7C15 + part) % 2**64,
            first_rate=rates[0] + fall * start,
            last_rate=rates[0] + fall * stop,
            threads=parts,
        )
        for part, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]


def _run(model: native.Words, passes: Sequence[native.Pass]) -> Sequence[native.Pass]:
    if len(passes) == 1:
        native.train(model, passes[0])
    else:
        with ThreadPoolExecutor(len(passes)) as pool:
            list(pool.map(partial(native.train, model), passes))
    return passes
